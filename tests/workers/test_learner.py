"""The arithmetic that an algorithm learns in, and what of it is seen outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CARTPOLE, DQN, TAXI, config_of

from distrl.envs.make import describe_env
from distrl.registry import algorithm_module
from distrl.settings import Config
from distrl.types import Array, Batch
from distrl.workers.learner import Learner

TINY = np.full(2**20, 1e-40, np.float32)  # denormal, and many enough for all of torch's threads


def make_learner(config: Config) -> Learner:
    module = algorithm_module(config.algorithm.name)
    return Learner(config, module.make_policy(config.algorithm, describe_env(config.env)), None)


def share_flushed(array: Array) -> float:
    """Of float32 numbers; their bits are looked at, since a comparison may take denormal ones for 0."""
    return float((array.view(np.int32) == 0).mean())


def watch(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What becomes of denormal numbers inside an update, by torch and by NumPy."""
    seen: dict[str, float] = {}

    def look(*arguments: Any) -> Any:
        seen["torch"] = share_flushed((torch.from_numpy(TINY) * 1.0).numpy())
        seen["numpy"] = share_flushed(TINY * np.float32(1.0))
        return {}

    monkeypatch.setattr(learner.algorithm, "update", look, raising=False)
    monkeypatch.setattr(learner.algorithm, "learn", lambda *arguments: (look(), np.zeros((0, 1))), raising=False)
    return seen


@pytest.mark.parametrize("base", [CARTPOLE, DQN])
def test_denormal_numbers_are_flushed_while_learning_and_only_then(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process the runners act in the learner's thread, and must act as in processes of their own."""
    learner = make_learner(config_of(base))
    seen = watch(learner, monkeypatch)
    if base is DQN:
        learner.learn(0, 0, Batch(*[np.zeros((0, 1))] * 7))
    else:
        learner.update(0, 0)
    assert seen == {"torch": 1.0, "numpy": 1.0}
    assert share_flushed(TINY * np.float32(1.0)) == 0.0


def test_a_failed_update_leaves_no_trace_in_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(config_of(CARTPOLE))
    monkeypatch.setattr(learner.algorithm, "update", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learner.update(0, 0)
    assert share_flushed(TINY * np.float32(1.0)) == 0.0


def test_a_table_learns_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(config_of(TAXI))
    seen = watch(learner, monkeypatch)
    learner.update(0, 0)
    assert seen["numpy"] == 0.0


CODE = """
import pytest
from conftest import CARTPOLE, config_of
from test_learner import make_learner, watch

learner = make_learner(config_of(CARTPOLE, "learner.threads=3", "algorithm.hidden=[512,512]"))
seen = watch(learner, pytest.MonkeyPatch())
learner.update(0, 0)
print(seen["torch"])
"""


def test_denormal_numbers_are_flushed_in_all_of_torchs_threads() -> None:
    """In a process of its own, since its threads are kept."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {paths}\n{CODE}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["1.0"]
