"""Processes that hang, whichever: noticed, replaced as lost ones to the same bits, and no hindrance to Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CARTPOLE, DQN, Recorder, config_of, run_trainer
from processes import SMALL, family, result_of, start, told_by, wait_for_rows, write

from distrl.execution import alarm
from distrl.execution.cluster import RayExecution
from distrl.execution.local import LocalExecution
from distrl.heartbeat import HEART
from distrl.models.store import newest_checkpoint

HASTY = {"step_timeout_s": 2, "update_timeout_s": 60, "restarts": 1000}


def stopped(name: str) -> psutil.Process:
    """The process of a worker of this one's, which is stopped now."""
    for _ in range(3000):
        for process in psutil.Process().children(recursive=True):
            title = " ".join(process.cmdline())
            if title.startswith(f"ray::{name}") and "__init__" not in title:
                time.sleep(3)  # one that is stopped while it starts is waited for much longer
                process.suspend()
                return process
        time.sleep(0.01)
    raise AssertionError(f"no {name} is there")


@pytest.mark.parametrize(
    ("name", "told"), [("Learner", "the learner"), ("Replay", "a replay"), ("Evaluator", "the evaluator")]
)
def test_a_stopped_process_is_replaced_and_the_bits_are_the_same(
    name: str, told: str, ray_execution: RayExecution, tmp_path: Path
) -> None:
    config = config_of({**DQN, "cluster": HASTY})
    whole = run_trainer(config, LocalExecution(), tmp_path / "whole")
    victims: list[psutil.Process] = []

    def on_row(row: dict[str, float]) -> None:
        if row["iteration"] == 5 and not victims:
            victims.append(stopped(name))

    outcome = run_trainer(config, ray_execution, tmp_path / "run", runners=2, observer=Recorder(on_row))
    # By the watch, or by Ray, where it finds a connection half made.
    assert [m for m in outcome.observer.messages if f"{told} was lost" in m], outcome.observer.messages
    assert outcome.facts == whole.facts
    assert not psutil.wait_procs(victims, timeout=10)[1]


def test_an_env_that_never_comes_back_in_the_evaluator_is_played_elsewhere(
    ray_execution: RayExecution, tmp_path: Path
) -> None:
    def config(**kwargs: Any) -> Any:
        return config_of({**CARTPOLE, "env": {"id": "troubled:Troubled-v0", "kwargs": kwargs}, "cluster": HASTY})

    whole = run_trainer(config(), LocalExecution(), tmp_path / "whole")
    flag = tmp_path / "flag"
    looping = config(trouble="loop", at=20, flag=str(flag), where="Evaluator")
    outcome = run_trainer(looping, ray_execution, tmp_path / "run", runners=2)
    assert flag.exists()
    message = " ".join(outcome.observer.messages)
    assert "the evaluator was lost (hung for more than 2 s at evaluation 0 of troubled:Troubled-v0, env copy" in message
    assert outcome.facts == whole.facts


@pytest.mark.parametrize("trouble", ["hang", "loop"])
def test_an_env_that_hangs_in_the_process_of_the_run_is_left_and_rolled_again(trouble: str, tmp_path: Path) -> None:
    """In a call that waits, and in Python that goes round in circles."""

    def config(**kwargs: Any) -> Any:
        env = {"id": "troubled:Troubled-v0", "kwargs": kwargs}
        return config_of({**CARTPOLE, "env": env, "cluster": {**HASTY, "step_timeout_s": 1.5}})

    whole = run_trainer(config(), LocalExecution(), tmp_path / "whole")
    looping, before = config(trouble=trouble, at=0, flag=str(tmp_path / "flag")), signal.getsignal(alarm.SIGNAL)
    with alarm.alarm(looping.cluster):
        outcome = run_trainer(looping, LocalExecution(), tmp_path / "run")
    [message] = outcome.observer.messages
    assert message.startswith("a runner was lost (hung for more than 1.5 s at ") and "env copy" in message
    assert outcome.facts == whole.facts
    assert signal.getsignal(alarm.SIGNAL) is before


@pytest.mark.parametrize("hangs", [True, False])
def test_a_learner_that_is_slow_has_not_hung(hangs: bool, ray_execution: RayExecution, tmp_path: Path) -> None:
    """Its updates take more than the limit, none of its minibatches does; unless it hangs."""
    flag = str(tmp_path / "flag") if hangs else ""
    algorithm = {**CARTPOLE["algorithm"], "name": "slow", "minibatch_s": 1.2, "flag": flag}
    base = {
        **CARTPOLE,
        "algorithm": algorithm,
        "cluster": {**HASTY, "update_timeout_s": 4},
        "stop": {"env_steps": 768},
    }
    outcome = run_trainer(config_of(base), ray_execution, tmp_path / "run")
    told = [m for m in outcome.observer.messages if "the call of 'update'" in m]
    assert len(told) == hangs, outcome.observer.messages
    assert all("hung for more than 4 s at the call of 'update' after 4 minibatches" in m for m in told)


def test_a_minibatch_is_a_beat(tmp_path: Path) -> None:
    before = HEART.beats
    outcome = run_trainer(config_of(CARTPOLE, "evaluation.every=0"), LocalExecution(), tmp_path)
    minibatches = sum(row["train/minibatches"] for row in outcome.observer.rows if "train/minibatches" in row)
    assert HEART.beats - before > minibatches > 0


def test_ctrl_c_ends_a_run_whose_learner_hangs_from_the_newest_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(tmp_path, write(tmp_path, SMALL), f"run_dir={run_dir}", "stop.env_steps=10000000", "stop.grace_s=3")
    wait_for_rows(run_dir, 5, process)
    [learner] = [p for p in family(process) if " ".join(p.cmdline()).startswith("ray::Learner")]
    learner.suspend()
    time.sleep(1)  # what it had ended before is counted: now it is waited for
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    newest = newest_checkpoint(run_dir)
    assert f"is not done within stop.grace_s=3. The run goes on from {newest}." in told_by(process)
    assert result_of(run_dir)["status"] == "interrupted"


def test_ctrl_c_ends_a_run_that_hangs_in_its_own_process(tmp_path: Path) -> None:
    env = {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "loop", "at": 3000}}
    run_dir = tmp_path / "run"
    os.symlink(Path(__file__).parent / "troubled.py", tmp_path / "troubled.py")
    config = write(tmp_path, {**SMALL, "env": env})
    process = start(tmp_path, config, f"run_dir={run_dir}", "stop.env_steps=10000000", "stop.grace_s=0.5", "--local")
    wait_for_rows(run_dir, 7, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    told = told_by(process)
    assert "it is still at " in told and "of troubled:Troubled-v0, env copy" in told
    assert f"the run goes on from {newest_checkpoint(run_dir)}." in told
    assert result_of(run_dir)["status"] == "interrupted"


SLOW_DISK = """
import os, sys, time
from distrl.__main__ import main
from distrl.runs import run
from distrl.training import checkpoints

def slowly(*arguments, write=checkpoints.write_checkpoint):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(3)
    write(*arguments)

run.LATE_S, checkpoints.write_checkpoint = 0.5, slowly
main()
"""


def test_ctrl_c_waits_for_a_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    run_dir, config = tmp_path / "run", write(tmp_path, SMALL)
    words = ["train", config, f"run_dir={run_dir}", "stop.env_steps=10000000", "stop.grace_s=0.5", "--local", "-q"]
    process = psutil.Popen(
        [sys.executable, "-c", SLOW_DISK, *words], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr.readline() == b"writing\n"  # the first one
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "does not come to an end" not in told_by(process)
    assert result_of(run_dir)["status"] == "interrupted"
    newest = newest_checkpoint(run_dir)
    assert newest is not None and not list(run_dir.rglob("*.tmp"))
