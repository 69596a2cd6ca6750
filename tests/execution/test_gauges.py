"""What operators see of a run; tests/runs/test_jobs.py scrapes it from a real Ray."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import CARTPOLE, DQN, config_of

from distrl.execution.gauges import GAUGES, Gauges

DASHBOARD = Path(__file__).parent.parent.parent / "configs" / "cluster" / "grafana.json"
ROW = {
    "iteration": 3,
    "env_steps": 1024,
    "time": 1000.0,
    "time/env_steps_per_s": 512.0,
    "time/learn_s": 0.1,
    "restarts": 2,
}


def test_a_row_is_told_as_operators_read_it() -> None:
    """256 steps an iteration at 512 a second take 0.5 s, of which the learner learnt 0.1 s; it was through at 1000.25."""
    told = Gauges(config_of(CARTPOLE), Path("/runs/mine")).values(ROW, 1000.25)
    assert told == {
        "env_steps": 1024, "env_steps_per_second": 512, "restarts": 2, "lag_seconds": 0.25, "learner_busy": pytest.approx(0.2),
    }  # fmt: skip


@pytest.mark.parametrize(("steps", "fill"), [(400, 0.25), (1600, 1.0), (99_999, 1.0)])
def test_a_replay_fills_until_it_is_full(steps: int, fill: float) -> None:
    """Of 1600 steps; every env step is inserted."""
    assert Gauges(config_of(DQN), Path("/runs/mine")).values(ROW | {"env_steps": steps}, 0)["replay_fill"] == fill


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert sorted(re.findall(r"ray_distrl_(\w+)", " ".join(asked))) == sorted(GAUGES)
    assert all(re.fullmatch(r'max by \(run\) \(ray_distrl_\w+\{run=~"\$run"\}\)', text) for text in asked)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {variable["name"] for variable in board["templating"]["list"]} == {"source", "run"}
