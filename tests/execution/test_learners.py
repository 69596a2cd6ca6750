"""Several learners on Ray: the bits of one process, also where one of them is lost, and nothing open to the world."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CARTPOLE, DQN, Recorder, config_of, run_trainer

from distrl.execution.cluster import RayExecution
from distrl.execution.local import LocalExecution
from distrl.runs.resume import check_same

SLICES = {"slices": 4}
PPO = {**CARTPOLE, "learner": SLICES}
OFF_POLICY = {**DQN, "learner": SLICES}
MEMORY = {  # sequences, which stay whole
    **CARTPOLE,
    "algorithm": {**CARTPOLE["algorithm"], "shared_body": True, "memory": {"size": 8}},
    "cluster": {**CARTPOLE["cluster"], "step_timeout_s": 2},
    "learner": SLICES,
}


def learners(execution: RayExecution, count: int) -> list[psutil.Process]:
    """Those that were spawned last, in the order of their numbers."""
    handles = [handle for handle in execution._workers.values() if "LearnerAmongOthers" in repr(handle)]
    asked = [h.__ray_call__.options(concurrency_group="watch").remote(lambda _: os.getpid()) for h in handles[-count:]]
    return [psutil.Process(pid) for pid in execution.ray.get(asked)]


@pytest.mark.parametrize(("base", "count"), [(PPO, 4), (OFF_POLICY, 2)], ids=["ppo", "dqn"])
def test_any_number_of_learners_gives_the_bits_of_one_process(
    base: dict[str, Any], count: int, ray_execution: RayExecution, tmp_path: Path
) -> None:
    seen: list[psutil.Process] = []

    def look(row: dict[str, float]) -> None:
        if not seen:
            seen.extend(learners(ray_execution, count))
            assert len(seen) == count
            for process in seen:
                listening = [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                # Ray's own, and gloo's; where they met nobody listens any more.
                assert len(listening) == 2 and listening.count("127.0.0.1") == 1

    alone = run_trainer(config_of(base), LocalExecution(), tmp_path / "alone")
    config = config_of(base, f"learner.count={count}")
    several = run_trainer(config, ray_execution, tmp_path / "several", 1, Recorder(look))
    assert several.trainer.recovery.restarts == 0, several.observer.messages
    assert several.facts == alone.facts
    assert not psutil.wait_procs(seen, timeout=30)[1]


def test_one_that_is_killed_or_hangs_is_a_lost_learner(ray_execution: RayExecution, tmp_path: Path) -> None:
    """The second one: all go back to the newest checkpoint, and nobody waits for what does not come."""
    signs, victims = {4: signal.SIGKILL, 8: signal.SIGSTOP}, list[psutil.Process]()

    def on_row(row: dict[str, float]) -> None:
        sign = signs.pop(int(row["iteration"]), None)
        if sign is not None:
            victims.append(learners(ray_execution, 2)[1])
            victims[-1].send_signal(sign)

    alone = run_trainer(config_of(MEMORY), LocalExecution(), tmp_path / "alone")
    config = config_of(MEMORY, "learner.count=2")
    several = run_trainer(config, ray_execution, tmp_path / "several", 1, Recorder(on_row))
    killed, hung = several.observer.messages
    assert killed.startswith("the learner was lost (learner 2 of 2 was lost: ")
    assert killed.endswith("going back to iteration 3")
    assert hung.startswith("the learner was lost (learner 2 of 2 hung: its process has not answered")
    assert several.facts == alone.facts
    assert not psutil.wait_procs(victims, timeout=30)[1]


def test_a_run_goes_on_with_another_number_of_learners_but_not_of_slices() -> None:
    config = config_of(PPO, "learner.count=2")
    check_same(config.to_yaml(), config_of(PPO, "learner.count=4"), Path("run"))
    with pytest.raises(Exception, match=r"learner\.slices \(4 there, 2 here\)"):
        check_same(config.to_yaml(), config_of(PPO, "learner.slices=2"), Path("run"))
