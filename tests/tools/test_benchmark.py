"""`distrl bench`: what its numbers are of."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
import toys
from conftest import CARTPOLE, DQN, config_of

from distrl.errors import UserError
from distrl.tools.benchmark import Benchmark, measure_replay, simulate, simulate_all, while_learning
from distrl.tools.memory import process_memory, watch_memory
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay

PIXELS: dict[str, Any] = {
    **DQN,
    "env": {"id": "distrl/FlappyBirdPixels-v0", "max_episode_steps": 70},
    "algorithm": {"name": "dqn", "batch_size": 16, "hidden": [16], "body": "small_cnn"},
    "rollout": {"shards": 2, "envs_per_shard": 2, "steps": 8},
}


def test_simulation_counts_every_step_of_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that takes at least a millisecond is no faster than that, however many copies and shards there are."""
    steps, step = 0, toys.Walk.step

    def slow(self: toys.Walk, action: int) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(0.001)
        return step(self, action)

    monkeypatch.setattr(toys.Walk, "step", slow)
    start = time.perf_counter()
    rate = simulate(toys.settings(toys.WALK, 10), seed=1, shards=[0, 3], copies=2, seconds=0.3)
    whole = time.perf_counter() - start
    assert steps / whole <= rate <= 1000
    assert rate > 0.8 * steps / whole


def test_the_simulation_of_all_cores_is_the_sum_of_theirs() -> None:
    config = config_of(CARTPOLE, "rollout.shards=3")
    alone = simulate(config.env, 1, [0], 4, 0.2)
    assert 0 < simulate_all(config, 0.2) < 100 * alone
    bench = Benchmark((100.0, 300.0), {}, {}, 0.0, 0.0, 50.0, 0.0, 0.0, config)
    assert bench.ratio == 0.25


@pytest.mark.parametrize("lag", [0, 1])
def test_training_is_counted_from_the_end_of_the_first_update_on(lag: int) -> None:
    """For which the learner loads its libraries, while `lag` more iterations begin."""
    filling = [
        {"time": float(t), "env_steps": 100.0 * t, "time/learn_s": 0.0, "train/minibatches": 0.0} for t in range(50)
    ]
    learning = [
        {"time": 50.0 + t, "env_steps": 5000.0 + 40 * t, "time/learn_s": 0.75, "train/minibatches": 8.0}
        for t in range(7)
    ]
    for row in learning[lag + 1 :]:
        row["time"] += 30
    assert while_learning(filling + learning, lag) == (40.0, 8.0, 0.25)
    with pytest.raises(UserError, match="--seconds"):
        while_learning(filling + learning[: lag + 2], lag)
    with pytest.raises(UserError, match="--seconds"):
        while_learning(filling, lag)


@pytest.mark.parametrize("base", [PIXELS, DQN], ids=["pixels", "vectors"])
def test_a_replay_and_its_network_are_measured_alone(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as slow as it is made here, at least; an update comes eight to a call."""

    def slowed(cls: type, method: str, seconds: float) -> None:
        call = getattr(cls, method)

        def slow(*arguments: Any) -> Any:
            time.sleep(seconds)
            return call(*arguments)

        monkeypatch.setattr(cls, method, slow)

    for method, seconds in (("add", 0.5), ("sample", 0.02), ("update_priorities", 0.01)):
        slowed(Replay, method, seconds)
    slowed(Learner, "learn", 0.08)
    config = config_of(base, "replay.capacity=20000")
    measured = measure_replay(config, 0.05)
    assert measured is not None
    assert 0 < measured.adds_per_s <= 20_000 / 0.5
    assert measured.batch_ms >= 20
    assert measured.priorities_ms >= 10
    assert 0 < measured.updates_per_s <= 8 / 0.08


def test_of_several_agents_a_replay_is_measured_where_they_share_one() -> None:
    env = {"id": "mpe2/simple_spread_v3", "kwargs": {"N": 2}}
    config = config_of({**DQN, "env": env}, "replay.capacity=20000")
    assert measure_replay(config, 0.02) is not None
    assert measure_replay(config.with_(policies="per_agent"), 0.02) is None


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    """Peaks, by kind: 80 MB that a child of the process holds for a while are seen, as another program's."""
    child = "import time; x = b'x' * 80_000_000; time.sleep(3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = psutil.Popen([psutil.Process().exe(), "-c", parent])
    memory, together = watch_memory(process)
    assert memory.keys() == {"driver", "others"}
    assert memory["others"] > 80 > memory["driver"]
    assert together == pytest.approx(sum(memory.values()), rel=0.2)
    assert process_memory(process) == {}  # it has ended
