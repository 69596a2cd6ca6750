"""Bad sweeps: each is one message before anything is made or started, and exit code 2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CARTPOLE
from processes import distrl

from distrl.errors import UserError
from distrl.execution.resources import cpu_count
from distrl.presets import DIRECTORY
from distrl.runs.sweep import Sweep, load_sweep
from distrl.runs.sweep_check import check_sweep, rungs, trial_count
from distrl.runs.tune import find_sweep_dir, new_sweep, resumed_sweep

GOOD: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"mlflow": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}, "rollout.steps": {"choice": [16, 32]}},
    "budget": {"trials": 4, "env_steps": 10240},
}


def sweep_of(directory: Path, *overrides: str) -> Sweep:
    (directory / "sweep.yaml").write_text(yaml.safe_dump(GOOD))
    return load_sweep(directory / "sweep.yaml", overrides)


def test_a_good_sweep_passes_and_reads_back_the_same(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path, "search.algorithm.epochs={choice: [1, 2], when: {rollout.steps: [16]}}", "algorithm.gamma=0.9"
    )
    assert check_sweep(sweep, str(tmp_path / "x")).name == "evaluation/return_mean"
    assert sweep.base_config().algorithm.gamma == 0.9  # type: ignore[attr-defined]
    (tmp_path / "again.yaml").write_text(sweep.to_yaml())
    again = load_sweep(tmp_path / "again.yaml")
    assert again.to_yaml() == sweep.to_yaml()
    assert [again.space.random(1, n) for n in range(9)] == [sweep.space.random(1, n) for n in range(9)]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.algorithm.lrr={uniform: [0, 1]}", "unknown key 'algorithm.lrr'. Did you mean 'algorithm.lr'"),
        ("metric=evaluation/retrun_mean", "Did you mean 'evaluation/return_mean'"),
        ("search.algorithm.lr={uniform: [1, 0]}", r"wrong way round. Did you mean \[0.0, 1.0\]"),
        ("search.algorithm.lr={choice: [1]}", "two or more different values"),
        ("search.algorithm.lr={uniform: [1, 1]}", "single point"),
        ("search.algorithm.lr={unifrom: [0, 1]}", "Did you mean 'uniform'"),
        ("search.algorithm.lr=3", "must be a space"),
        ("search={}", "search is missing"),
        ("budget.env_steps=100", "cannot hold one trial"),
        ("budget.trials=0", "greater than or equal to 1"),
        ("budget.trials=null", "budget.trials is missing"),
        ("scheduler=ashe", "'none', 'asha', 'halving', 'pbt' or 'pb2'"),
        ("seeds={tune: [1, 2], test: [2, 3]}", "in tune and in test"),
        ("seeds={tune: [1, 1]}", "different whole numbers"),
        ("search.seed={choice: [1, 2]}", "seeds.tune"),
        ("search.stop.env_steps={choice: [10240, 20480]}", "budget.env_steps"),
        ("search.cluster.runners={choice: [1, 2]}", "changes nothing that is learnt"),
        ("search.algorithm={choice: [{name: a2c}, {name: ppo}]}", "lies within search.algorithm"),
        ("search.algorithm.minibatch_size={choice: [64, 100]}", "no trial can have .*algorithm.minibatch_size=100"),
        ("search.algorithm.gamma={uniform: [0.9, 1.5]}", "no trial can have .*algorithm.gamma=1.5"),
        ("searcher=grid", "no list of values"),
        ("evaluation.every=0", "nothing is evaluated"),
        ("metric=final/return_mean evaluation.final_episodes=0", "plays no fresh episodes"),
        ("trial.runners=1000", f"takes 1001 CPUs for each trial .* this machine has {cpu_count()}"),
        ("budgte.trials=3", "unknown key 'budgte'"),
        ("algorithm.lrr=3", "unknown key 'algorithm.lrr'"),
        ("scheduler=pbt searcher=optuna", "Set searcher=random"),
        ("scheduler=pbt", "rollout.steps is none"),
    ],
)
def test_a_mistake_is_one_message(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_sweep(
            sweep_of(tmp_path, *(override.split(" ") if override[:5] in ("sched", "metri") else [override])),
            str(tmp_path),
        )
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(("override", "package"), [("searcher=optuna", "optuna"), ("scheduler=pb2", "sklearn")])
def test_a_package_that_is_missing_is_told_with_its_extra(
    override: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))
    with pytest.raises(UserError, match=rf"{package}.*distrl\[{override.partition('=')[2]}\]"):
        check_sweep(sweep_of(tmp_path, override), str(tmp_path))


def test_a_grid_is_tried_whole(tmp_path: Path) -> None:
    grid = ["searcher=grid", "search.algorithm.lr={grid: [1e-3, 1e-2, 2e-2]}"]
    assert trial_count(sweep_of(tmp_path, *grid, "budget.trials=null")) == 6
    with pytest.raises(UserError, match="the grid has 6 points"):
        check_sweep(sweep_of(tmp_path, *grid), str(tmp_path))


def test_rungs_have_evaluations_behind_them(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "budget.trials=64", "evaluation.every=4")  # 40 iterations, the first result at the 9th
    metric = check_sweep(sweep, str(tmp_path))
    assert rungs(sweep, sweep.base_config(), metric, 64) == [0.25, 0.5]
    assert rungs(sweep, sweep.base_config(), metric, 3) == [0.5]
    none = sweep_of(tmp_path, "scheduler=none")
    assert rungs(none, none.base_config(), metric, 64) == []


def test_a_name_in_use_and_another_space_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweep_of(tmp_path)
    made = tmp_path / "sweeps" / "mine"
    made.mkdir(parents=True)
    (made / "sweep.yaml").write_text(sweep.to_yaml())
    with pytest.raises(UserError, match="distrl tune --resume mine"):
        new_sweep("sweep.yaml", [], "mine")
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        find_sweep_dir("mien")
    assert resumed_sweep(made, ["budget.seconds=5", "trial.at_once=1"], "sweep.yaml").budget.seconds == 5
    for other in ("search.algorithm.lr={uniform: [0, 1]}", "budget.trials=5", "algorithm.gamma=0.5", "seeds.tune=[7]"):
        with pytest.raises(UserError, match="another sweep"):
            resumed_sweep(made, [other], None)


def test_the_command_line_tells_it_and_leaves_with_2(tmp_path: Path) -> None:
    sweep_of(tmp_path)
    for arguments in (["sweep.yaml", "metric=nonsense"], ["nowhere.yaml"], ["--resume", "x"], ["--status", "x"], []):
        done = distrl("tune", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
        assert not (tmp_path / "sweeps").exists()


@pytest.mark.parametrize("path", sorted((DIRECTORY / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_that_come_with_distrl_are_good(path: Path, tmp_path: Path) -> None:
    check_sweep(load_sweep(path.stem), str(tmp_path / "x"))
