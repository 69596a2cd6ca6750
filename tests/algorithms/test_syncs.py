"""How often an update waits for the device: each number that Python reads is such a wait, and none may be in a minibatch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, DQN, config_of, run_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from distrl.execution.local import LocalExecution
from distrl.workers.learner import Learner


class Reads(TorchDispatchMode):
    """Counts what would make the processor wait for a GPU, whatever the device is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def reads(base: dict[str, Any], method: str, run_dir: Path, *overrides: str) -> list[tuple[int, int]]:
    """Of each update: how many minibatches it had, and how many numbers were read."""
    found: list[tuple[int, int]] = []
    original = getattr(Learner, method)

    def counted(self: Learner, *arguments: Any) -> Any:
        with Reads() as mode:
            result = original(self, *arguments)
        found.append((int(result[1].get("minibatches", 1)), sum(mode.seen.values())))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, method, counted)
        config = config_of(base, "evaluation={every: 0, final_episodes: 0}", "checkpoint.every=0", *overrides)
        run_trainer(config, LocalExecution(), run_dir)
    return [entry for entry in found if entry[0]]


@pytest.mark.parametrize(
    ("base", "method", "how", "minibatches", "most"),
    [
        (CARTPOLE, "update", "algorithm.epochs=6", 24, 2),
        ({**CARTPOLE, "algorithm": {"name": "a2c"}}, "update", "algorithm.gamma=0.9", 1, 4),
        (DQN, "learn", "replay.samples_per_insert=8", 60, 5),
    ],
    ids=["ppo", "a2c", "dqn"],
)
def test_no_minibatch_waits_for_the_device(
    base: dict[str, Any], method: str, how: str, minibatches: int, most: int, tmp_path: Path
) -> None:
    found = reads(base, method, tmp_path, "stop.env_steps=1280", how)
    assert max(number for number, _ in found) >= minibatches
    assert max(count for _, count in found) <= most, found
