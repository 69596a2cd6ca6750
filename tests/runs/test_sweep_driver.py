"""What a sweep's driver keeps true while things end: by the clock, by failing, after a kill between any two events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARTPOLE
from sweeping import Killed, read_trials, sweep_here

from distrl.config import load_config
from distrl.errors import UserError
from distrl.models.store import find_model, read_model
from distrl.runs.sweep_jobs import STOP
from distrl.runs.tune import Driver
from distrl.tracking.metrics import read_metrics

SWEEP: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"mlflow": False, "video": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 3, "env_steps": 5120},  # 20 iterations
    "scheduler": "halving",
    "seeds": {"tune": [1, 2], "test": [101]},
}
SAME = ("trial", "seed", "overrides", "score", "status", "env_steps", "weights_sha256")


def told(sweep_dir: Path) -> list[list[Any]]:
    return [[trial[name] for name in SAME] for trial in read_trials(sweep_dir)]


def test_a_sweep_that_is_killed_before_each_of_its_events_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = sweep_here(monkeypatch, SWEEP, whole)
    jobs = len((whole / "events.jsonl").read_text().splitlines())
    for number in range(jobs):
        try:
            sweep_here(monkeypatch, SWEEP, killed, kill_at=number % 2, resume=number > 0)
        except Killed:
            json.loads((killed / "trials.json").read_text())
            load_config(killed / "best.yaml")
            continue
        break
    assert told(killed) == told(whole)
    assert json.loads((killed / "result.json").read_text())["best"] == result.data["best"]
    assert {trial["status"] for trial in read_trials(whole)} == {"finished", "stopped"}


def test_the_time_of_a_search_stops_what_runs_and_a_resume_with_more_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sweep_here(monkeypatch, {**SWEEP, "scheduler": "none"}, whole)

    def time_is_up(driver: Driver, count: int) -> None:
        if count == 1:
            driver.out_of_time = True
            (cut / STOP).touch()

    result = sweep_here(monkeypatch, {**SWEEP, "scheduler": "none"}, cut, before=time_is_up)
    first, second = read_trials(cut)
    assert (first["status"], second["status"]) == ("finished", "stopped") and second["env_steps"] < 5120
    assert result.data["best"]["trial"] == 0 and len(result.data["test"]["best"]) == 1
    sweep_here(monkeypatch, {**SWEEP, "scheduler": "none"}, cut, resume=True)
    assert told(cut) == told(whole)


def test_a_sweep_in_which_all_fails_has_no_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = {**SWEEP["base"], "env": {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "raise", "at": 1}}}
    result = sweep_here(monkeypatch, {**SWEEP, "base": base}, tmp_path / "s")
    assert result.data["best"] is None and result.data["test"] == {"best": [], "base": []}
    trials = read_trials(tmp_path / "s")
    assert len(trials) == 3 and all(
        t["status"] == "failed" and "hung up" in t["error"] and t["score"] is None for t in trials
    )
    assert load_config(tmp_path / "s" / "best.yaml").env.kwargs["trouble"] == "raise"


def test_a_score_may_be_that_of_the_best_model_in_fresh_episodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = {**SWEEP, "metric": "final/return_mean", "budget": {"trials": 4, "env_steps": 5120}}
    with pytest.raises(UserError, match="no model yet: it has that of its winner at its end"):
        sweep_here(monkeypatch, data, tmp_path / "s", before=lambda driver, count: find_model(tmp_path / "s") and None)
    result = sweep_here(monkeypatch, data, tmp_path / "s", resume=True)
    returns = {}
    for trial in read_trials(tmp_path / "s"):
        run_dir = Path(trial["run_dir"])
        if trial["status"] == "finished":
            ended = json.loads((run_dir / "result.json").read_text())["evaluation"]
            assert (trial["score"], ended["episodes"]) == (ended["mean"], 6)
            returns[trial["trial"], trial["seed"]] = trial["score"]
        else:  # what it was compared by
            rows = read_metrics(run_dir / "metrics.jsonl")
            assert trial["score"] == [r["evaluation/return_mean"] for r in rows if "evaluation/return_mean" in r][-1]
    best = result.data["best"]
    assert best["returns"] == [returns[best["trial"], seed] for seed in (1, 2)] == best["scores"]
    seed = 1 + int(np.argmax(best["returns"]))
    assert result.winner is not None and result.winner.match(f"trials/{best['trial']:04}/seed-{seed}")
    own = read_model(result.winner / "best")[1]["sha256"]
    assert read_model(find_model(tmp_path / "s"))[1]["sha256"] == own
