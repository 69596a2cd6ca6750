"""Populations: who takes over whom, that changed values reach the optimiser, and that a kill changes nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARTPOLE
from sweeping import Killed, read_trials, sweep_here

from distrl.config import load_config
from distrl.models.store import find_model, list_checkpoints, read_model, weights_sha256
from distrl.reports.sweeps import compared, read_sweep
from distrl.runs.sweep import Sweep
from distrl.runs.sweep_decisions import Outcome, Piece
from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_population import Population, _most_promising
from distrl.runs.sweep_spaces import Space
from distrl.runs.sweep_trial import work
from distrl.tracking.metrics import read_metrics

BASE = {**CARTPOLE, "track": {"mlflow": False, "video": False}}
PBT: dict[str, Any] = {
    "base": BASE,
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}, "algorithm.epochs": {"integer": [1, 4]}},
    "budget": {"trials": 4, "env_steps": 2560},  # 10 iterations
    "scheduler": "pbt",
    "population": {"generations": 3},
    "seeds": {"tune": [1], "test": [101]},
}


def sweep_of(**changes: Any) -> Sweep:
    data = {**PBT, **changes}
    spaces = {key: Space.model_validate(space) for key, space in data["search"].items()}
    return Sweep.model_validate({**data, "search": spaces})


def simulate(sweep: Sweep, workers: int, order: int, members: int = 8) -> Population:
    """A population in which a high learning rate is good, and member 3 fails in the second generation."""
    population, shuffled = Population(sweep, Metric("train/return_mean"), members), random.Random(order)
    values = {member: sweep.space.random(sweep.seed, member) for member in range(members)}
    busy: list[Piece] = []
    while True:
        while len(busy) < workers and (piece := population.next(busy)) is not None:
            move = population.moves(piece.rung).get(piece.trial)
            values[piece.trial] = values[piece.trial] if move is None else move.overrides
            population.begin(piece, values[piece.trial], None if move is None else move.donor)
            busy.append(piece)
        if not busy:
            return population
        piece = busy.pop(shuffled.randrange(len(busy)))
        score = 1000 * values[piece.trial]["algorithm.lr"] + piece.rung
        status = "finished" if piece.rung == population.last else "paused"
        failed = piece.trial == 3 and piece.rung == 1
        population.tell(piece, Outcome("failed", None, None) if failed else Outcome(status, score, score))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_the_worst_take_over_the_best_whoever_is_faster(scheduler: str) -> None:
    search = PBT["search"] if scheduler == "pbt" else {"algorithm.lr": PBT["search"]["algorithm.lr"]}
    sweep = sweep_of(scheduler=scheduler, search=search, population={"generations": 4})
    one, *others = [simulate(sweep, workers, order) for workers in (1, 3, 8) for order in range(2)]
    assert all(other.begun == one.begun and other.donors == one.donors for other in others)
    for generation in range(1, 4):
        before = [(m, one.outcomes[one.piece(m, generation - 1)].rung_score) for m in one.alive(generation)]
        ranking = [m for m, _ in sorted(before, key=lambda pair: -(pair[1] or 0))]
        taken = {p.trial: donor for p, donor in one.donors.items() if p.rung == generation}
        quarter = len(ranking) // 4
        assert set(taken) == set(ranking[len(ranking) - quarter :]) and set(taken.values()) <= set(ranking[:quarter])
    assert 3 not in one.alive(2) and one.leader() is not None and one.leader() != 3
    lineage = one.lineage(one.leader())  # type: ignore[arg-type]
    assert [generation for generation, _ in lineage] == [0, 1, 2, 3]
    if scheduler == "pb2":
        assert all(1e-4 <= values["algorithm.lr"] <= 1e-2 for values in one.begun.values())


def test_pb2_goes_where_the_gain_was_and_does_not_try_a_place_twice() -> None:
    generator = np.random.default_rng(1)
    known = np.column_stack([np.full(40, 0.1), generator.random(40)])
    gains = -((known[:, 1] - 0.7) ** 2) + 0.01 * generator.normal(size=40)
    candidates = np.column_stack([np.full(200, 0.2), np.linspace(0, 1, 200)])
    first = _most_promising(known, gains, candidates, np.zeros((0, 2)))
    assert abs(candidates[first, 1] - 0.7) < 0.15
    sparse, few = known[:3], gains[:3]
    one = _most_promising(sparse, few, candidates, np.zeros((0, 2)))
    assert _most_promising(sparse, few, candidates, candidates[[one]]) != one


def job_of(
    run_dir: Path, config: dict[str, Any], pause_at: int | None, begin_from: Path | None = None
) -> dict[str, Any]:
    resolved = load_config(config).model_dump(mode="json") | {"run_dir": str(run_dir)}
    return {
        "run_dir": str(run_dir), "phases": [{"config": resolved, "pause_at": pause_at}], "runners": 0,
        "begin_from": None if begin_from is None else str(begin_from), "metric": "train/return_mean",
        "rung_metric": "train/return_mean", "stop_file": str(run_dir.parent / "stop"),
    }  # fmt: skip


def vector(run_dir: Path, iteration: int) -> np.ndarray[Any, Any]:
    path = next(p for p in list_checkpoints(run_dir) if int(p.name) == iteration)
    arrays = read_model(path)[0].arrays()
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def test_a_changed_learning_rate_reaches_the_optimiser(tmp_path: Path) -> None:
    """From one state, one step of Adam: with ten times the rate the weights move ten times as far, in the same direction."""
    whole = {**BASE, "algorithm": {**BASE["algorithm"], "epochs": 1, "minibatch_size": 256, "lr": 1e-4}}
    donor = tmp_path / "donor"
    assert work(job_of(donor, whole, pause_at=4))["status"] == "paused"
    (state,) = [p for p in list_checkpoints(donor) if int(p.name) == 4]
    moved = {}
    for name, lr in (("same", 1e-4), ("tenfold", 1e-3)):
        config = {**whole, "algorithm": {**whole["algorithm"], "lr": lr}}
        told = work(job_of(tmp_path / name, config, pause_at=5, begin_from=state))
        assert told["status"] == "paused" and told["env_steps"] == 5 * 256
        moved[name] = vector(tmp_path / name, 5) - vector(donor, 4)
        assert read_metrics(tmp_path / name / "metrics.jsonl")[-1]["train/learning_rate"] == pytest.approx(lr)
    there = np.abs(moved["same"]) > 1e-6
    assert there.sum() > 500
    np.testing.assert_allclose(moved["tenfold"][there], 10 * moved["same"][there], rtol=0.02, atol=1e-6)
    work(job_of(donor, whole, pause_at=5))
    np.testing.assert_array_equal(vector(donor, 5) - vector(donor, 4), moved["same"])


def test_a_population_is_the_same_after_a_kill_and_its_winner_is_trained_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = sweep_here(monkeypatch, {**PBT, "set": {"track.video": True}}, whole)
    for at in (5, 2):  # in the second generation, and in the third
        with pytest.raises(Killed):
            sweep_here(monkeypatch, PBT, killed, kill_at=at, resume=killed.exists())
    again = sweep_here(monkeypatch, PBT, killed, resume=True)
    names = ("trial", "overrides", "score", "status", "env_steps", "weights_sha256")
    assert [[t[n] for n in names] for t in read_trials(killed)] == [[t[n] for n in names] for t in read_trials(whole)]
    assert again.data["best"] == result.data["best"]
    schedule = result.data["best"]["schedule"]
    assert [generation for generation, _ in schedule] == [0, 1, 2]
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    takers = [event for event in events if event["event"] == "begun" and event["donor"] is not None]
    assert len(takers) == 2  # one of four, twice
    for event in takers:
        rows = read_metrics(whole / "trials" / f"{event['trial']:04}" / "seed-1" / "metrics.jsonl")
        first = next(row for row in rows if row["iteration"] >= 10 * event["rung"] / 3)
        assert first["train/learning_rate"] == pytest.approx(event["overrides"]["algorithm.lr"])
    best = result.data["best"]
    assert result.winner == whole / "trials" / f"{best['trial']:04}" / "seed-1" and len(best["returns"]) == 1
    kept, winners = (read_model(find_model(path))[0] for path in (whole, result.winner))
    assert weights_sha256(kept) == weights_sha256(winners) and (whole / "model").exists()
    assert "What made it is its schedule" in (whole / "best.yaml").read_text().splitlines()[1]
    assert {path.name for path in (whole / "plots").iterdir()} == {"population.png", "curves.png", "cost.png"}
    assert (whole / "videos" / "best.webm").stat().st_size > 1000 and not (killed / "videos").exists()
    files = read_sweep(whole)
    assert [[g.number, g.overrides] for g in files.lineage] == schedule and files.lineage[-1].trial == best["trial"]
    assert compared(files)[0][0] == f"trial {best['trial']}, by its schedule"
    tested = read_metrics(Path(result.data["test"]["best"][0]["run_dir"]) / "metrics.jsonl")
    rates = dict.fromkeys(
        round(float(row["train/learning_rate"]), 12) for row in tested if "train/learning_rate" in row
    )
    assert list(rates) == list(dict.fromkeys(round(values["algorithm.lr"], 12) for _, values in schedule))
