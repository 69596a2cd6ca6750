"""Who leads in a sweep, and how far what is under way is, at every moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE
from sweeping import read_trials, sweep_here

from distrl.runs.sweep_view import Tail
from distrl.runs.tune import Driver
from distrl.tracking.board import View

SWEEP: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"mlflow": False, "video": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 4, "env_steps": 5120, "seconds": 3600},
    "scheduler": "halving",
    "seeds": {"tune": [1], "test": [101]},
}


def test_a_sweep_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    views: list[View] = []

    def look(driver: Driver, count: int) -> None:
        views.append(driver.views.of(driver.busy))

    sweep_here(monkeypatch, SWEEP, tmp_path / "s", before=look)
    first, last = views[0], views[-1]
    assert first.headline == "s (halving): 1 of 4 trials begun, 0 finished; searched 0:00:00 of 1:00:00"
    assert first.leaders == [] and [(run.name, run.done, run.total) for run in first.going] == [
        ("trial 0 seed 1", 0, 5120)
    ]
    trials = read_trials(tmp_path / "s")
    best = max((t for t in trials if t["status"] == "finished"), key=lambda t: t["score"])
    assert last.leaders[0][:4] == (str(best["trial"]), f"{best['score']:.4g}", "1", "finished")
    finished = sum(t["status"] == "finished" for t in trials)
    assert f"4 of 4 trials begun, {finished} finished, 1 on test seeds" in last.headline
    assert f"best {best['score']:.4g} of trial {best['trial']}" in last.headline
    assert last.going[0].name == "test seed 101, base"
    again = next(view for view in views if view.going[0].done)  # a run that goes on from a rung
    number = again.going[0].name.split()[1]
    assert (
        next(row for row in again.leaders if row[0] == number)[3] == "running" and "return" in again.going[0].parts[1]
    )


def test_a_tail_reads_what_is_new_and_begins_anew_where_the_end_was_replaced(tmp_path: Path) -> None:
    tail, file = Tail(tmp_path), tmp_path / "metrics.jsonl"
    assert tail.read() == {}
    file.write_text(json.dumps({"env_steps": 1, "a": 2}) + "\n" + '{"env_st')
    assert tail.read() == {"env_steps": 1, "a": 2}
    with file.open("a") as more:
        more.write('eps": 3}\n')
    assert tail.read() == {"env_steps": 3, "a": 2}
    file.write_text('{"env_steps": 2}\n')
    assert tail.read() == {"env_steps": 2, "a": 2}
