"""`distrl bench`: training against the bare environment, on the same cores, in one go.

The yardstick is the same env copies stepped with random actions by one plain process a core, without Ray, policy or
learner. It is measured before and after training, since shared machines change from minute to minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distrl.acting.make import make_policy
from distrl.acting.network import single_threaded
from distrl.acting.team import TeamPolicy
from distrl.envs.make import describe_env
from distrl.envs.multi import apart, grouped
from distrl.envs.shard import make_shard
from distrl.errors import UserError
from distrl.execution.resources import cpu_count
from distrl.runs.plan import plan_run
from distrl.seeding import stream
from distrl.settings import Config, EnvSettings, ReplaySettings
from distrl.tools.memory import watch_memory
from distrl.tools.random_actions import RandomActions
from distrl.tracking.metrics import read_metrics
from distrl.types import Batch, Fragment, Priorities
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay
from distrl.workers.replays import agents_apart
from distrl.workers.runner import Runner

BATCH = 256  # steps drawn at once, where a replay is measured


@dataclass(frozen=True)
class ReplayBenchmark:
    """A replay and the network that learns from it, each alone in this process."""

    adds_per_s: float  # steps stored
    batch_ms: float  # to draw a prioritised batch of 256
    priorities_ms: float  # to give its steps new priorities
    updates_per_s: float  # of the network, from batches that lie ready


@dataclass(frozen=True)
class Benchmark:
    simulation: tuple[float, float]  # env steps/s of random actions, before and after training
    result: dict[str, Any]  # result.json of the training run
    memory: dict[str, float]  # peak MB (PSS) by process
    peak_memory: float  # peak MB of all processes together
    driver_s: float  # the driver's own time in an iteration, median
    env_steps_per_s: float  # of training, since its first update had ended, by wall-clock
    updates_per_s: float  # in that time
    waiting: float  # the share of it in which the learner did not learn
    config: Config
    replay: ReplayBenchmark | None = None
    cores: int = field(default_factory=cpu_count)

    @property
    def ratio(self) -> float:
        """Training's env steps/s as a share of pure simulation's."""
        return float(self.env_steps_per_s / np.mean(self.simulation))


def simulate(env: EnvSettings, seed: int, shards: list[int], copies: int, seconds: float) -> float:
    """env steps/s of shards stepped in turn with random actions in this process."""
    info = apart(describe_env(env))
    live = [make_shard(env, seed, shard, copies, info.obs_layout) for shard in shards]
    actions = RandomActions(info, seed, copies)
    steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for shard in live:
            for _ in range(32):
                shard.step(actions.batch(shard.obs))
        steps += 32 * len(live)
    return steps * copies / elapsed


def simulate_all(config: Config, seconds: float) -> float:
    """env steps/s of all shards, one process a core."""
    processes = min(cpu_count(), config.rollout.shards)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                simulate,
                config.env,
                config.seed,
                list(range(i, config.rollout.shards, processes)),
                config.rollout.envs_per_shard,
                seconds,
            )
            for i in range(processes)
        ]
        return sum(job.result() for job in jobs)


def measure_replay(config: Config, seconds: float) -> ReplayBenchmark | None:
    """Roll the env, store what it gave, draw from it and learn from that, one after the other. None: agents are in groups.

    Args:
        seconds: for each of them
    """
    single_threaded()
    policy = make_policy(config, grouped(describe_env(config.env), config.policies))
    if isinstance(policy, TeamPolicy):
        return None
    learner, agents = Learner(config, policy, None), agents_apart(config, policy)
    runner = Runner(config.env, config.rollout, config.seed, policy)
    weights, fragments = learner.weights(), list[Fragment]()
    start, iteration = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or iteration < 4:
        for shard in range(config.rollout.shards):
            fragments.append(runner.rollout(shard, iteration, weights, "live" if iteration else None)[1])
        iteration += 1
    replay = Replay(_drawing(config, BATCH, 1.0), 0, None, agents)
    start = time.perf_counter()
    replay.add(*fragments)
    adds_per_s = replay.inserted / (time.perf_counter() - start)

    def draw() -> Batch:
        replay.settled = replay.inserted - BATCH
        return replay.sample(0, 0)

    batch = draw()
    new = Priorities(batch.key.ravel(), stream(config.seed, "benchmark").random(batch.key.size, np.float32))
    batch_s, priorities_s = _repeat(draw, seconds), _repeat(lambda: replay.update_priorities(new), seconds)
    use = config.algorithm.replayed
    assert use is not None
    own = Replay(_drawing(config, use.batch_size, 8.0), 0, None, agents)
    own.add(*fragments)
    own.settled = own.inserted - use.batch_size
    batch = own.sample(0, 0)  # 8 updates
    update_s = _repeat(lambda: learner.learn(0, 0, batch), seconds) / len(batch.key)
    return ReplayBenchmark(adds_per_s, 1e3 * batch_s, 1e3 * priorities_s, 1 / update_s)


def _drawing(config: Config, batch_size: int, samples_per_insert: float) -> Config:
    """With one prioritised replay that draws batches of this size at once."""
    replay = ReplaySettings.model_validate(
        {**(config.replay or ReplaySettings()).model_dump(), "shards": 1, "prioritized": True, "start": 1}
        | {"samples_per_insert": samples_per_insert}
    )
    algorithm = config.algorithm.model_copy(update={"batch_size": batch_size})
    return config.model_copy(update={"replay": replay, "algorithm": algorithm})


def _repeat(call: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a call."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def run(config: Config, seconds: float, local: bool) -> Benchmark:
    """Simulate, train for `seconds` through the command line, simulate again. Raises `UserError` as training does."""
    plan_run(config)
    replay = None if config.replay is None else measure_replay(config, seconds / 10)
    before = simulate_all(config, seconds / 4)
    with tempfile.TemporaryDirectory(prefix="distrl-bench-") as directory:
        run_dir, file = Path(directory) / "run", Path(directory) / "config.yaml"
        file.write_text(config.model_copy(update={"run_dir": str(run_dir)}).to_yaml(), encoding="utf-8")
        overrides = [
            f"stop.seconds={seconds}",
            "stop.return_mean=null",
            "evaluation.every=0",
            "evaluation.final_episodes=0",
        ]
        overrides += [
            "track.mlflow=false",
            "track.video=false",
            "cluster.start=wait",
        ]  # one way of training all the time
        command = [
            sys.executable,
            "-m",
            "distrl",
            "train",
            str(file),
            *overrides,
            "--quiet",
            *(["--local"] if local else []),
        ]
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        memory, peak = watch_memory(process)
        if process.returncode:
            assert process.stderr is not None
            raise UserError(f"training failed: {process.stderr.read().decode().strip()}")
        result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        rows = learnt_rows(run_dir)
    learning = while_learning(rows, config.schedule.lag)
    after = simulate_all(config, seconds / 4)
    driver_s = float(np.median([row["time/driver_s"] for row in rows]))
    return Benchmark((before, after), result, memory, peak, driver_s, *learning, config, replay)


def learnt_rows(run_dir: Path) -> list[dict[str, float]]:
    """Of metrics.jsonl, those of iterations."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{name: float(value) for name, value in row.items()} for row in rows if "time/learn_s" in row]


def while_learning(rows: list[dict[str, float]], lag: int) -> tuple[float, float, float]:
    """Env steps/s, updates/s and the share of time that the learner waited, from the end of the first update on.

    The first update waits until the learner has its libraries, which is start-up. It has ended where an iteration begins that
    is `lag` + 1 behind its own.

    Raises:
        UserError: there were no two iterations from then on.
    """
    learning = [row for row in rows if row.get("train/minibatches", 1.0)][lag + 1 :]
    if len(learning) < 2:
        raise UserError("Training was too short to measure: hardly an update had ended before it did. Raise --seconds.")
    first, *rest = learning
    wall = rest[-1]["time"] - first["time"]
    updates = sum(row.get("train/minibatches", 1.0) for row in rest)
    env_steps = rest[-1]["env_steps"] - first["env_steps"]
    return env_steps / wall, updates / wall, max(0.0, 1 - sum(row["time/learn_s"] for row in rest) / wall)
