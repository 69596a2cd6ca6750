"""A sweep's files, read: who leads, intervals, which key mattered, pictures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from distrl.errors import UserError
from distrl.reports.sweep_pictures import _omega_squared, expected_best, importances, plot_sweep
from distrl.reports.sweeps import read_sweep

SEARCH: dict[str, Any] = {
    "algorithm.lr": {"loguniform": [1e-4, 1e-2]},
    "algorithm.epochs": {"choice": [1, 2, 3]},
    "algorithm.gae_lambda": {"uniform": [0.8, 1], "when": {"algorithm.epochs": 2}},
}


def write_sweep(directory: Path, trials: int = 24, metric: str = "evaluation/return_mean") -> Path:
    """The score is that of the epochs, and a little chance."""
    generator = np.random.default_rng(1)
    directory.mkdir(parents=True, exist_ok=True)
    runs = []
    for number in range(trials):
        lr, epochs = float(10 ** generator.uniform(-4, -2)), int(generator.integers(1, 4))
        overrides = {"algorithm.lr": lr, "algorithm.epochs": epochs}
        if epochs == 2:
            overrides["algorithm.gae_lambda"] = float(generator.uniform(0.8, 1))
        for seed in (1, 2)[: 1 + (number % 3 == 0)]:
            score = 100.0 * epochs + float(generator.normal())
            run_dir = directory / f"trials/{number:04}/seed-{seed}"
            run_dir.mkdir(parents=True)
            rows = [
                {"iteration": k, "env_steps": 100.0 * (k + 1), "time": 1.0, "train/return_mean": score * k}
                for k in range(5)
            ]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (run_dir / "result.json").write_text(json.dumps({"status": "running" if number == 4 else "finished"}))
            (run_dir / "config.yaml").write_text("env: {id: CartPole-v1}\nalgorithm: {name: ppo}\n")
            runs.append(
                {
                    "trial": number, "overrides": overrides, "seed": seed, "status": "finished" if seed == 2 else "stopped",
                    "score": score, "env_steps": 500, "run_dir": str(run_dir), "seconds": 1.5, "weights_sha256": "0",
                    "rungs": [[250, score]], "ended": float(len(runs)), "error": None,
                }
            )  # fmt: skip
    sweep = {"search": SEARCH, "metric": metric, "searcher": "optuna", "trial": {"runners": 1}}
    (directory / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (directory / "trials.json").write_text(json.dumps(runs))
    return directory


def test_who_has_more_seeds_leads_and_then_who_has_the_better_score(tmp_path: Path) -> None:
    up, down = (
        read_sweep(write_sweep(tmp_path / m.partition("/")[0], metric=m))
        for m in ("evaluation/x", "steps_to_threshold")
    )
    assert [len(t.scores) for t in up.trials] == sorted((len(t.scores) for t in up.trials), reverse=True)
    finished = [t.score for t in up.trials if t.scores]
    assert finished == sorted(finished, reverse=True)  # type: ignore[type-var]
    assert [t.score for t in down.trials if t.scores] == sorted(finished)  # type: ignore[type-var]
    assert up.cpus == 2 and up.trials[0].seconds == 3.0
    assert [(path.parent.name, row["env_steps"]) for path, row in up.going] == [("0004", 500.0)]
    with pytest.raises(UserError, match="not the directory of a sweep"):
        read_sweep(tmp_path)


def test_importance_finds_the_key_that_matters(tmp_path: Path) -> None:
    found = importances(read_sweep(write_sweep(tmp_path)))
    assert found["algorithm.epochs"] > 0.99 and found["algorithm.lr"] < 0.3


def test_what_does_not_matter_has_no_importance_on_average() -> None:
    """The share of variance itself would be 2/11 here."""
    generator = np.random.default_rng(1)
    groups = np.repeat([0, 1, 2], 4)
    found = [_omega_squared(groups, generator.normal(size=12)) for _ in range(2000)]
    assert np.mean(found) < 0.09 and np.median(found) == 0
    table = np.array([3.0, 4, 5, 8, 9, 10])  # SS_between 37.5, SS_within 4, MS_within 1
    assert _omega_squared(np.array([0, 0, 0, 1, 1, 1]), table) == pytest.approx((37.5 - 1) / (41.5 + 1))


def test_the_expected_best_is_that_of_all_draws() -> None:
    scores = [3.0, 1.0, 4.0, 1.5]
    for sign, best in ((1, max), (-1, min)):
        wanted = [np.mean([best(draw) for draw in itertools.combinations(scores, n)]) for n in range(1, 5)]
        assert expected_best(scores, sign) == pytest.approx(wanted)


def test_pictures_are_drawn_also_of_one_trial_and_of_none(tmp_path: Path) -> None:
    names = ["parallel", "importance", "curves", "cost"]
    paths = plot_sweep(write_sweep(tmp_path / "many"), tmp_path / "plots")
    assert [path.stem for path in paths] == names
    for path in paths:
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 10
    assert [p.name for p in plot_sweep(write_sweep(tmp_path / "one", 1), tmp_path / "p", ".svg")] == [
        "parallel.svg", "curves.svg", "cost.svg",
    ]  # fmt: skip
    assert plot_sweep(write_sweep(tmp_path / "none", 0), tmp_path / "q") == []


def test_a_population_is_drawn_with_what_led_to_its_best_member(tmp_path: Path) -> None:
    sweep = {"search": SEARCH, "metric": "evaluation/return_mean", "searcher": "random", "scheduler": "pbt"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (tmp_path / "trials.json").write_text("[]")
    (tmp_path / "result.json").write_text('{"best": {"trial": 1}}')
    lines = []
    for rung, donors in enumerate([(None, None, None), (None, 0, None), (None, None, 1)]):
        for trial, donor in enumerate(donors):
            values = {"algorithm.lr": 1e-3 * (1 + rung), "algorithm.epochs": 1 + trial, "algorithm.gae_lambda": 0.9}
            piece = {"trial": trial, "seed": 1, "rung": rung}
            result = {"env_steps": 100 * (rung + 1), "rung_score": None if trial == 2 else float(trial)}
            lines += [{"event": "begun", **piece, "overrides": values, "donor": donor}]
            lines += [{"event": "ended", **piece, "result": result}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "events.jsonl").write_text(text + '{"event": "begun", "tri')  # as a killed sweep leaves it
    files = read_sweep(tmp_path)
    assert len(files.generations) == 9
    assert [(g.trial, g.number, g.env_steps) for g in files.lineage] == [(0, 0, 100), (1, 1, 200), (1, 2, 300)]
    paths = plot_sweep(tmp_path, tmp_path / "plots")
    assert [path.stem for path in paths] == ["population"]
    assert len(np.unique(np.asarray(Image.open(paths[0]).convert("L")))) > 10
