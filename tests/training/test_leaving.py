"""A run that is to end leaves a long update at the border of a minibatch, and goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, DQN, HASHED, Outcome, Recorder, config_of, run_trainer
from faulty import FaultyExecution
from processes import SMALL, distrl, result_of, start, told_by, write
from test_same_bits import BASES, MEMORY, PENDULUM

from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.heartbeat import HEART
from distrl.models.store import list_checkpoints, read_model
from distrl.settings import Config
from distrl.training import checkpoints
from distrl.workers import leaving
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner

TASKS: dict[str, tuple[dict[str, Any], int, bool]] = {  # lag, and whether the learner is late
    "cartpole": (CARTPOLE, 1, True),
    "without lag": (CARTPOLE, 0, False),
    "memory": (MEMORY, 1, True),
    "normalised": (PENDULUM, 1, False),
    "groups": (BASES["apart"], 1, False),
    "replay": (DQN, 1, True),
    "replay on the device": (BASES["wrapped"], 1, True),
}


class Late(FaultyExecution):
    """Loses nothing, and does what it is asked for only where somebody waits for it; the learner last."""

    def __init__(self) -> None:
        super().__init__(1, losses=0)
        self.rng = self  # type: ignore[assignment]

    def choice(self, workers: Any) -> Any:
        return min(workers, key=lambda worker: worker.name == "learner")

    def random(self) -> float:
        return 0.5

    def permutation(self, n: int) -> range:
        return range(n)


def left(
    config: Config,
    execution: Execution,
    run_dir: Path,
    at: int,
    start: Path | None = None,
    who: type = Learner,
) -> tuple[Outcome, int]:
    """The run, which is to end from the so-many-th minibatch of its learner (or step of its evaluator) on, and waits for none.

    How many there were, too.
    """
    seen = 0
    beat = type(HEART).beat

    def counting(self: Any, *arguments: Any) -> None:
        nonlocal seen
        if HEART.can_leave and isinstance(HEART.worker, who):
            seen += 1
            self.leave = self.leave or seen >= at
        beat(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaving, "LONG_S", -1.0)
        patch.setattr(checkpoints, "LEAVE_S", 0.0)
        patch.setattr(type(HEART), "beat", counting)
        patch.setattr(HEART, "leave", False)
        outcome = run_trainer(
            config, execution, run_dir, start=start, interrupted=lambda: "interrupted" if HEART.leave else None
        )
    return outcome, seen


@pytest.mark.parametrize("task", TASKS)
def test_an_update_that_was_left_is_made_again(task: str, tmp_path: Path) -> None:
    """In the first update, in a later one, in the last one; the one that is made again is left again, too."""
    base, lag, late = TASKS[task]
    config = config_of(base, f"schedule.lag={lag}", f"stop.env_steps={256 * 7}", "evaluation.every=3")
    whole, minibatches = left(config, LocalExecution(), tmp_path / "whole", 10**9)
    owed = set()
    for at in (2, minibatches // 2, minibatches):
        run_dir = tmp_path / str(at)
        rows: list[dict[str, float]] = []
        begin: Path | None = None
        for minibatch in (at, 1):
            cut, _ = left(config, Late() if late else LocalExecution(), run_dir, minibatch, begin)
            assert cut.trainer.progress.stopped == "interrupted"
            rows += cut.observer.rows
            begin = list_checkpoints(run_dir)[-1]
            owed.add(len(cut.trainer.updates.unsettled))
            known = [int(row["iteration"]) for row in rows if "restarts" in row]
            assert read_model(begin)[1]["version"] == int(begin.name) - len(cut.trainer.updates.unsettled) == len(known)
            assert known == list(range(len(known)))  # each row once, none of an update that is owed
        again = run_trainer(config, LocalExecution(), run_dir, start=begin)
        again.observer.rows = rows + again.observer.rows
        assert again.facts == whole.facts
    assert owed <= {1, 1 + lag} and (not late or 1 + lag in owed)


def test_an_evaluation_that_was_left_is_made_again(tmp_path: Path) -> None:
    """The first one, one amid the training, that of the last weights or of the best ones; and once more where it goes on."""
    config = config_of(
        CARTPOLE, "schedule.lag=0", f"stop.env_steps={256 * 7}", "evaluation={every: 3, final_episodes: 3}"
    )
    whole, steps = left(config, LocalExecution(), tmp_path / "whole", 10**9, who=Evaluator)
    for at in (1, steps // 3, steps):
        run_dir = tmp_path / str(at)
        cut, seen = left(config, LocalExecution(), run_dir, at, who=Evaluator)
        assert cut.trainer.progress.stopped == "interrupted" and at <= seen < steps + 1
        again, _ = left(config, LocalExecution(), run_dir, 1, list_checkpoints(run_dir)[-1], Evaluator)
        assert again.trainer.progress.stopped == "interrupted"
        last = run_trainer(config, LocalExecution(), run_dir, start=list_checkpoints(run_dir)[-1])
        assert last.sha256 == whole.sha256 and last.trainer.evaluations.final == whole.trainer.evaluations.final
        assert read_model(run_dir / "best")[1] == read_model(tmp_path / "whole" / "best")[1]


def test_a_large_table_is_left_between_updates(tmp_path: Path) -> None:
    """Which has no minibatches: an update is waited for."""
    config = config_of(HASHED)
    whole = run_trainer(config, LocalExecution(), tmp_path / "whole")
    observer = Recorder()
    run_trainer(
        config,
        LocalExecution(),
        tmp_path / "cut",
        observer=observer,
        interrupted=lambda: "interrupted" if len(observer.rows) > 5 else None,
    )
    again = run_trainer(config, LocalExecution(), tmp_path / "cut", start=list_checkpoints(tmp_path / "cut")[-1])
    assert again.sha256 == whole.sha256


def test_ctrl_c_in_an_update_of_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with a checkpoint that owes the update, which is made where the run goes on; in one process, and on Ray."""
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}")
    flag, found = tmp_path / "flag", set()
    lasting = {**CARTPOLE["algorithm"], "name": "slow", "flag": str(flag), "minibatches": True}
    config = write(tmp_path, {**SMALL, "algorithm": lasting})
    for run, where in (("here", ["--local"]), ("there", [])):
        flag.unlink(missing_ok=True)
        process = start(tmp_path, config, f"run_dir={run}", "stop.grace_s=80", *where)
        while not flag.exists():
            assert process.poll() is None, told_by(process)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
        assert [line for line in told_by(process).splitlines() if line][1:] == []
        [checkpoint] = list_checkpoints(tmp_path / run)
        assert (checkpoint / "owed.npz").exists() and read_model(checkpoint)[1]["version"] == 0
    for arguments in (["--resume", "here"], ["--resume", "there"], [config, "run_dir=whole"]):
        done = distrl("train", *arguments, "--local", "-q", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        result = result_of(tmp_path / arguments[-1].removeprefix("run_dir="))
        found.add(result["weights_sha256"])
    assert len(found) == 1
    rows = [json.loads(line)["iteration"] for line in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and len(rows) > 10
