from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # of a machine that has much else to do

from distrl.acting.make import initial_weights, make_policy
from distrl.acting.network import single_threaded
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.multi import grouped
from distrl.execution import Execution
from distrl.execution.cluster import RayExecution
from distrl.execution.resources import Resources, Seat
from distrl.models.store import list_checkpoints, read_model, weights_sha256
from distrl.settings import Config
from distrl.training.callbacks import Callbacks
from distrl.training.job import Job
from distrl.training.trainer import Trainer, make_trainer

CARTPOLE: dict[str, Any] = {
    "env": {"id": "CartPole-v1"},
    "algorithm": {"name": "ppo", "minibatch_size": 64, "lr": 1e-3, "hidden": [32, 32]},
    "rollout": {"shards": 4, "envs_per_shard": 4, "steps": 16},
    "stop": {"env_steps": 256 * 12},
    "evaluation": {"every": 4, "episodes": 4, "final_episodes": 6},
    "checkpoint": {"every": 3},
    "cluster": {"restarts": 1000},
}
LUNARLANDER: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "LunarLander-v3", "max_episode_steps": 60},
    "evaluation": {"every": 5, "episodes": 2, "final_episodes": 2},
}
DQN: dict[str, Any] = {
    **CARTPOLE,
    "algorithm": {
        "name": "dqn", "n_step": 3, "batch_size": 32, "hidden": [32, 32], "target_every": 20, "dueling": True,
        "epsilon": {"start": 1, "end": 0.05, "over": 2000},
    },
    "replay": {
        "capacity": 1600, "start": 400, "samples_per_insert": 2, "prioritized": True, "shards": 2,
    },
}  # fmt: skip
TAXI: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "Taxi-v4", "max_episode_steps": 50},
    "algorithm": {"name": "q", "method": "double_q", "rehearsal": {"updates": 2, "batch": 100}, "visit_power": 3},
}
HASHED: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "MountainCar-v0", "max_episode_steps": 40},
    "stop": {"env_steps": 256 * 26},
    "algorithm": {
        "name": "q",
        "method": "sarsa",
        "coding": {"kind": "bins", "n": [300, 300]},
        "capacity": 10_000,  # large enough that only changes are sent
        "epsilon": {"start": 1, "end": 0.1, "over": 50, "unit": "episodes", "shape": "exponential"},
    },
}


LONGEST = ("test_same_bits", "test_nodes", "test_tune", "test_jobs", "test_ray_dies", "test_handover", "test_cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, so that processes which share the suite end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system lets no file grow beyond `size` bytes, as a full disk would cut one off."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass
class Recorder:
    """An observer that keeps what it hears, and may act on a row."""

    on_row: Callable[[dict[str, float]], None] | None = None
    rows: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def record(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.on_row is not None:
            self.on_row(row)

    def note(self, message: str) -> None:
        self.messages.append(message)

    def warn(self, message: str) -> None:
        self.messages.append(message)


@dataclass
class Outcome:
    trainer: Trainer
    observer: Recorder
    run_dir: Path

    @property
    def sha256(self) -> str:
        """Of the final weights."""
        return weights_sha256(read_model(list_checkpoints(self.run_dir)[-1])[0])

    @property
    def facts(self) -> tuple[Any, ...]:
        """All that must be the same in the same run: final weights, best model, scores, episodes, recorded returns."""
        trainer = self.trainer
        told = ("train/return_mean", "evaluation/return_mean", "evaluation/env_steps")
        rows = {int(r["iteration"]): [r.get(name) for name in told] for r in self.observer.rows}
        best = weights_sha256(read_model(self.run_dir / "best")[0])
        return (
            self.sha256,
            best,
            trainer.evaluations.final,
            trainer.progress.episodes,
            trainer.progress.recent_returns,
            rows,
        )


def bring(package: Path, points: str) -> None:
    """Make a directory on the module path a distribution with these entry points, as an installed package is."""
    info = package / "toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def config_of(base: dict[str, Any], *overrides: str) -> Config:
    return load_config(base, overrides)


def run_trainer(
    config: Config,
    execution: Execution,
    run_dir: Path,
    runners: int = 1,
    observer: Recorder | None = None,
    start: Path | None = None,
    interrupted: Callable[[], str | None] = lambda: None,
    callbacks: Callbacks | None = None,
    resources: Resources | None = None,
) -> Outcome:
    single_threaded()
    info = grouped(describe_env(config.env), config.policies)
    policy = make_policy(config, info)
    observer = observer or Recorder()
    about = {"env": config.env.model_dump(mode="json")}
    weights = initial_weights(config, policy)
    job = Job(config, policy, weights, about, info.reward_threshold, run_dir, start)
    resources = resources or Resources((Seat(cpus=0.1),) * runners, (Seat(cpus=0.1),) * config.learner.count)
    trainer = make_trainer(job, execution, resources, observer, interrupted, callbacks)
    try:
        trainer.run()
    finally:
        for worker in trainer.workers:
            trainer.recovery.execution.kill(worker)
    return Outcome(trainer, observer, run_dir)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the processes of a test put what is temporary; its name is short, for the paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@pytest.fixture(scope="session")
def ray_execution() -> Iterator[RayExecution]:
    """One Ray for the tests that need one; every run has workers of its own."""
    execution = RayExecution("local", 256 * 2**20)
    yield execution
    execution.close()
