"""What the learner adds to an algorithm: its arithmetic, progress, versions, priorities by replay, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CARTPOLE, DQN, TAXI, config_of

from distrl.algorithms import tabular_q
from distrl.envs.make import describe_env
from distrl.errors import Diverged, UserError
from distrl.registry import algorithm_module
from distrl.settings import Config
from distrl.types import Array, Arrays, Batch, Fragment
from distrl.workers.learner import Learner, choose_device


def make_learner(config: Config, state: Arrays | None = None) -> Learner:
    module = algorithm_module(config.algorithm.name)
    return Learner(config, module.make_policy(config.algorithm, describe_env(config.env)), state)


# --- what goes in and what comes out ------------------------------------------------------------------------------


class Counting:
    """An algorithm whose only weight counts its updates, and that keeps what it is given."""

    def __init__(self) -> None:
        self.count, self.given, self.metrics = 0.0, list[Any](), {"loss": 1.0}

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        self.count += 1
        self.given.append((fragments, iteration, progress))
        return self.metrics

    def learn(self, batch: Batch, env_steps: int, progress: float) -> tuple[dict[str, float], Array]:
        self.count += 1
        self.given.append((batch, env_steps, progress))
        return self.metrics, batch.reward * 10

    def weights(self) -> Array:
        return np.array([self.count], np.float32)

    def state(self) -> Arrays:
        return {"count": np.array(self.count)}

    def load_state(self, state: Arrays) -> None:
        self.count = float(state["count"])


def counting(*overrides: str, base: dict[str, Any] = TAXI) -> tuple[Learner, Counting]:
    learner, algorithm = make_learner(config_of(base, *overrides)), Counting()
    learner.algorithm = algorithm
    return learner, algorithm


def batch_of(number: int, updates: int = 2, size: int = 3) -> Batch:
    """Its parts tell from which replay they are, which update they are for, and their place there."""
    cells = 100.0 * number + 10 * np.arange(updates)[:, None] + np.arange(size)
    return Batch(cells.astype(np.int64), *[cells.astype(np.float32)] * 6)


def test_an_update_gets_the_fragments_and_the_part_of_the_run_behind_it() -> None:
    learner, algorithm = counting("stop.env_steps=4000")
    fragments = [object(), object()]
    weights, metrics = learner.update(7, 1000, *fragments)  # type: ignore[arg-type]
    assert algorithm.given == [(fragments, 7, 0.25)]
    assert (weights.version, metrics.keys()) == (1, {"loss", "learn_s"})
    endless, algorithm = counting("stop.env_steps=null", "stop.seconds=1")
    endless.update(7, 1000)
    assert algorithm.given == [([], 7, 0.0)]


def test_a_batch_is_put_together_of_those_of_all_replays_and_the_errors_go_back_to_them() -> None:
    """As many columns of each update from each replay; epsilon counts the steps of this iteration too."""
    learner, algorithm = counting("stop.env_steps=4000", base=DQN)
    learner.learn(3, 1000, batch_of(0), batch_of(1))
    ((batch, env_steps, progress),) = algorithm.given
    assert (env_steps, progress) == (1000 + 256, 0.25)
    rows = [[0, 1, 2, 100, 101, 102], [10, 11, 12, 110, 111, 112]]
    assert batch.key.tolist() == batch.obs.tolist() == batch.weight.tolist() == rows
    for number in (0, 1):
        told = learner.priorities(number)
        assert told.key.tolist() == batch_of(number).key.ravel().tolist()
        assert told.td_error.tolist() == [10.0 * key for key in told.key]


def test_versions_are_counted_on_from_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = counting()
    assert learner.weights().version == 0
    assert [learner.update(k, 0)[0].version for k in range(3)] == [1, 2, 3]
    monkeypatch.setattr(tabular_q, "make", lambda *arguments: Counting())
    resumed = make_learner(config_of(TAXI), learner.state())
    assert (resumed.weights().version, resumed.weights().vector.tolist()) == (3, [3.0])
    assert resumed.update(3, 0)[0].version == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_end_the_run_and_are_named(value: float) -> None:
    learner, algorithm = counting()
    learner.update(0, 0)
    algorithm.metrics = {"loss": value, "entropy": 0.5, "explained_variance": float("nan")}
    with pytest.raises(Diverged, match=rf"update 2 at 512 env steps: loss is {value} .*entropy 0\.5"):
        learner.update(1, 512)
    algorithm.metrics, algorithm.count = {"loss": 1.0}, value
    with pytest.raises(Diverged, match=r"a weight is not finite \(loss 1\)"):
        learner.update(1, 512)


def test_an_explained_variance_of_nothing_is_no_divergence() -> None:
    learner, algorithm = counting()
    algorithm.metrics = {"explained_variance": float("nan")}
    learner.update(0, 0)


# --- the arithmetic -----------------------------------------------------------------------------------------------

TINY = np.full(2**20, 1e-40, np.float32)  # denormal, and many enough for all of torch's threads


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


@pytest.mark.parametrize(
    ("wanted", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 0.5, "cpu"),
        ("auto", 1, "cuda"),
        ("auto", 8, "cuda"),
        ("cpu", 8, "cpu"),
        ("cuda", 1, "cuda"),
    ],
)
def test_the_device_follows_from_what_is_wanted_and_what_is_there(wanted: str, gpus: float, device: str) -> None:
    assert choose_device(wanted, gpus) == device


@pytest.mark.parametrize("gpus", [0, 0.5])
def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(gpus: float) -> None:
    with pytest.raises(UserError, match=r"'cuda'.*no GPU.*learner.device=cpu"):
        choose_device("cuda", gpus)


def test_a_gpu_rounds_factors_to_ten_bits_only_where_it_may() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for precision in ("fast", "full"):  # full last: it is for the whole process
        for backend in backends:
            backend.allow_tf32 = precision == "full"
        make_learner(config_of(CARTPOLE, f"learner.precision={precision}"))
        assert [backend.allow_tf32 for backend in backends] == [precision == "fast"] * 2
