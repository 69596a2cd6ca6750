"""A run that begins in one place and goes on in another: the same bits, wherever the border lies, whatever is lost around it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import CARTPOLE, DQN, Recorder, config_of, run_trainer
from faulty import FaultyExecution
from processes import SMALL, distrl, family, gone, result_of, start, wait_for_rows, write
from test_same_bits import MEMORY

from distrl.errors import ExecutionLost, UserError
from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.execution.moving import MovingExecution
from distrl.execution.resources import Resources, Seat
from distrl.models.store import list_checkpoints
from distrl.training import handover, trainer
from distrl.training.handover import Handover

ASKED = "cluster.runners=2"  # a number that was asked for: it goes as soon as it can


@dataclass
class Another:
    """An execution that is ready when it was asked so often."""

    execution: Execution
    patience: int
    refusal: Exception | None = None
    log: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.log.append("begun")

    def ready(self) -> bool:
        if self.refusal is not None:
            raise self.refusal
        self.patience -= 1
        return self.patience < 0

    def take(self) -> tuple[Execution, Resources]:
        self.log.append("taken")
        return self.execution, Resources((Seat(), Seat()))

    def close(self) -> None:
        self.log.append("closed")


TASKS: dict[str, tuple[dict[str, Any], str, Iterable[int]]] = {
    "cartpole": (CARTPOLE, "schedule.lag=1", range(10)),
    "without lag": (CARTPOLE, "schedule.lag=0", (0, 4)),
    "memory": (MEMORY, "schedule.lag=1", (0, 3)),
    "replay": (DQN, "checkpoint.replay=false", (0, 5)),  # which says what a checkpoint on disk holds: this is none
}


@pytest.mark.parametrize("task", TASKS)
def test_the_border_can_lie_anywhere(task: str, tmp_path: Path) -> None:
    """At each of the first ten iterations, of one task; behind it workers are lost, and the run goes back, perhaps to before it."""
    base, override, borders = TASKS[task]
    config = config_of(base, override, ASKED)
    whole = run_trainer(config, LocalExecution(), tmp_path / "whole")
    losses = 0 if task == "replay" else 6  # a checkpoint without a replay is none to go back to
    for border in borders:
        faulty = FaultyExecution(border, losses=losses)
        other = Another(faulty, border)
        outcome = run_trainer(config, MovingExecution(other), tmp_path / str(border))
        assert other.log == ["begun", "taken"]
        assert len(faulty.lost) == losses - faulty.losses and (not losses or faulty.lost)
        assert outcome.facts == whole.facts
        assert any("training goes on there" in message for message in outcome.observer.messages)


def test_interrupted_on_either_side_it_resumes_in_either_place(tmp_path: Path) -> None:
    config = config_of(CARTPOLE, ASKED)
    whole = run_trainer(config, LocalExecution(), tmp_path / "whole")
    for at in (2, 5):  # before the border, and behind it
        run_dir = tmp_path / str(at)
        observer = Recorder()
        cut = run_trainer(
            config,
            MovingExecution(Another(LocalExecution(), 3)),
            run_dir,
            observer=observer,
            interrupted=lambda seen=observer, at=at: "interrupted" if len(seen.rows) >= at else None,
        )
        assert cut.trainer.progress.stopped == "interrupted"
        again = run_trainer(
            config, MovingExecution(Another(LocalExecution(), 1)), run_dir, start=list_checkpoints(run_dir)[-1]
        )
        assert again.sha256 == whole.sha256


@pytest.mark.parametrize("refusal", [UserError("Ray could not be started."), ExecutionLost("Ray died")])
def test_where_it_cannot_go_it_stays(refusal: Exception, tmp_path: Path) -> None:
    config = config_of(CARTPOLE, ASKED)
    other = Another(LocalExecution(), 0, refusal)
    outcome = run_trainer(config, MovingExecution(other), tmp_path / "run")
    assert outcome.observer.messages[1:] == [f"training goes on in this process: {refusal}"]
    assert outcome.facts == run_trainer(config, LocalExecution(), tmp_path / "whole").facts


@pytest.mark.parametrize(
    ("rolling", "learning", "left", "load", "wanted"),
    [
        (1.0, 0.5, 100, 1, True),  # about 0.9 s on two cores instead of 1.5 s
        (1.0, 0.5, 100, 40, False),  # but Ray would take minutes to start
        (1.0, 0.5, 5, 1, False),  # but soon it is over
        (0.005, 0.02, 1000, 1, False),  # what Ray costs is as much as it saves
        (0.0, 3.0, 1000, 1, False),  # nothing to share out
    ],
)
def test_of_itself_it_goes_where_that_pays(
    rolling: float,
    learning: float,
    left: int,
    load: float,
    wanted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(Handover, "seconds", lambda self: None if self.ledger.rows < 2 else (rolling, learning))
    other, observer = Another(LocalExecution(), 10**9), Recorder()
    config = config_of(CARTPOLE, "evaluation={every: 0, final_episodes: 0}", f"stop.env_steps={256 * (3 + left)}")
    run_trainer(
        config,
        MovingExecution(other),
        tmp_path,
        observer=observer,
        interrupted=lambda: "interrupted" if len(observer.rows) > 3 else None,
    )
    assert other.log == (["begun"] if wanted else [])


def test_what_an_iteration_takes_is_measured_once_all_is_warm(tmp_path: Path) -> None:
    """Against the clock between the rows of the run, of which the first does not count. Reports that lie ready take no time."""
    slow = {**CARTPOLE, "env": {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "sleep"}}}
    found: list[tuple[int, tuple[float, float]]] = []
    other, observer = Another(LocalExecution(), 10**9), Recorder()

    class Watched(Handover):
        def seconds(self) -> tuple[float, float] | None:
            seconds = super().seconds()
            if seconds is not None:
                found.append((len(observer.rows), seconds))
            return seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Handover", Watched)
        run_trainer(config_of(slow, "stop.env_steps=1280"), MovingExecution(other), tmp_path, observer=observer)
    (seen, (rolling, learning)), *_ = found
    whole = (observer.rows[seen - 1]["time"] - observer.rows[0]["time"]) / (seen - 1)
    assert rolling + learning == pytest.approx(whole, rel=0.05)
    assert learning == pytest.approx(np.mean([row["time/learn_s"] for row in observer.rows[1:seen]]))


def at_once(directory: Path, *overrides: str) -> tuple[str, ...]:
    return (write(directory, SMALL), "cluster.start=at_once", "run_dir=run", "checkpoint.every=1", *overrides)


def test_with_a_real_ray_that_joins(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins before Ray is up, goes on with two runners, and one of these is killed: the bits of one process."""
    slow = ("env.id=troubled:Troubled-v0", "env.kwargs={trouble: sleep}", "stop.env_steps=4096")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}")
    process = start(tmp_path, *at_once(tmp_path, *slow))
    wait_for_rows(tmp_path / "run", 1, process)
    early = [p for p in family(process) if "ray::Runner" in _title(p)]
    deadline = time.monotonic() + 90
    while len(runners := [p for p in family(process) if "Runner" in _title(p)]) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    assert not early and len(runners) == 2
    runners[0].send_signal(signal.SIGKILL)
    assert process.wait(120) == 0, process.stderr.read()
    local = distrl("train", *at_once(tmp_path, *slow), "run_dir=local", "--local", "-q", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    assert result_of(tmp_path / "run")["weights_sha256"] == result_of(tmp_path / "local")["weights_sha256"]
    assert not list(temporary.iterdir())


def test_a_run_that_ends_before_ray_is_up_does_not_wait_for_it(temporary: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *at_once(tmp_path, "stop.env_steps=256"))
    members: list[psutil.Process] = []
    while process.poll() is None:
        members += [p for p in family(process) if p not in members]
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr.read()
    assert result_of(tmp_path / "run")["status"] == "finished"
    assert gone(members, 10)
    assert not list(temporary.iterdir())


def test_a_ray_that_dies_while_it_starts_costs_a_warning(temporary: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *at_once(tmp_path, "stop.env_steps=20000", "checkpoint.every=0"))
    deadline = time.monotonic() + 60
    while not (found := [p for p in family(process) if "gcs_server" in _title(p)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    found[0].kill()
    assert process.wait(120) == 0, process.stderr.read()
    assert result_of(tmp_path / "run")["status"] == "finished"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
