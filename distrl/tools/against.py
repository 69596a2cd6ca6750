"""`distrl bench --against PEER`: another library and distrl in turns, on the same env with the same hyperparameters.

What only one of them has (normalised values, double Q-learning, ...) stays as it is there, and is told. Each measures its own
env steps/s of training, learner included, from the end of its first update on: what lies before is start-up, and a replay that
fills. All cores are for whose turn it is, and in one process (`local`) the learner has as many threads as cores, as torch gives
them to the peer.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distrl.errors import UserError
from distrl.execution.resources import cpu_count
from distrl.outside import HUGE_PAGES
from distrl.settings import Config, dotted
from distrl.tools import peer_rllib, peer_sb3
from distrl.tools.benchmark import learnt_rows, while_learning

# The network and batch that DQN is mostly compared by, and nothing that only one of them has.
PLAIN_DQN = ("algorithm.n_step=1", "algorithm.double=false", "algorithm.layer_norm=false", "algorithm.target_every=500")
ONE_SHARD = ("rollout.shards=1", "rollout.envs_per_shard=16")  # all env copies side by side, as the peer has them
DQN = ("algorithm.hidden=[256, 256]", "algorithm.batch_size=64", "replay.samples_per_insert=32", *ONE_SHARD, *PLAIN_DQN)
PIXELS = ("replay.capacity=20000", "replay.start=200", *PLAIN_DQN)
TASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ppo_cartpole", ()),
    ("ppo_lunarlander", ()),
    ("a2c_cartpole", ()),
    ("dqn_cartpole", DQN),
    ("dqn_flappy_pixels", PIXELS),
)

MORE: dict[str, Any] = {  # settings that not every peer has, or is given, with the value at which all do the same
    "algorithm.double": False,
    "algorithm.dueling": False,
    "algorithm.munchausen": None,
    "algorithm.layer_norm": False,
    "algorithm.normalize_value": False,
    "algorithm.adaptive_kl": None,
    "algorithm.memory": None,
    "algorithm.critic_lr": None,
    "replay.prioritized": False,
    "normalize.obs": False,
    "normalize.reward": False,
}


@dataclass(frozen=True)
class Peer:
    """Another library."""

    title: str
    needs: tuple[str, ...]  # modules
    install: str
    algorithms: tuple[str, ...]
    module: str  # which trains with it: CONFIG SECONDS [--local]
    has: tuple[str, ...]  # of `MORE`


PEERS = {
    "sb3": Peer("SB3", ("stable_baselines3",), "stable-baselines3", tuple(peer_sb3.OPTIONS), peer_sb3.__name__, ("normalize.obs", "normalize.reward")),
    "rllib": Peer("RLlib", ("tree", "lz4", "ormsgpack"), "dm-tree lz4 ormsgpack", tuple(peer_rllib.CONFIGS), peer_rllib.__name__, ("algorithm.double", "algorithm.dueling")),
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Env steps/s of training in each turn, of both; and what of the cores went elsewhere."""

    config: Config
    theirs: list[float]
    ours: list[float]
    stolen: float | None  # share of the processors' time that a hypervisor gave to others; None: not told here
    load: float  # processes that wanted a core in the minute before, on the average

    @property
    def ratios(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of each turn, ours by theirs, in their order."""
        return np.sort(np.array(self.ours) / np.array(self.theirs))


def only_ours(peer: Peer, config: Config) -> list[str]:
    """What the config asks for and the peer does without, as settings."""
    values = dotted(config.model_dump())
    more = ((key, same) for key, same in MORE.items() if key in values and key not in peer.has)
    return [f"{key}={values[key]}" for key, same in more if values[key] != same]


def tasks(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Those of `TASKS` that a peer has the algorithm for."""
    return [task for task in TASKS if task[0].partition("_")[0] in PEERS[name].algorithms]


def compare(name: str, configs: list[Config], seconds: float, rounds: int, local: bool) -> Iterator[Comparison]:
    """Train each config for so many seconds with both, in turns. Raises `UserError` where the peer is missing or cannot."""
    peer = PEERS[name]
    missing = [module for module in peer.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"--against {name} needs {', '.join(missing)}, which is not installed: pip install {peer.install}"
        )
    for config in configs:
        if config.algorithm.name not in peer.algorithms:
            raise UserError(
                f"--against {name} compares {', '.join(peer.algorithms)}, and algorithm.name is {config.algorithm.name}."
            )
        load, before = psutil.getloadavg()[0], _ticks()
        turns = [(_theirs(peer, config, seconds, local), _ours(config, seconds, local)) for _ in range(rounds)]
        theirs, ours = map(list, zip(*turns, strict=True))
        yield Comparison(config, theirs, ours, _stolen(before, _ticks()), load)


def _ours(config: Config, seconds: float, local: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="distrl-against-") as directory:
        limits = [f"stop.seconds={seconds}", "stop.return_mean=null", "stop.env_steps=1000000000"]
        quiet = ["evaluation.every=0", "evaluation.final_episodes=0", "track.mlflow=false", "track.video=false"]
        where = ["--local", f"learner.threads={cpu_count()}"] if local else ["cluster.start=wait"]
        _run(config, directory, "distrl", ["train", "{}", *limits, *quiet, "--quiet", *where])
        return while_learning(learnt_rows(Path(directory) / "run"), config.schedule.lag)[0]


def _theirs(peer: Peer, config: Config, seconds: float, local: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="distrl-against-") as directory:
        arguments = ["{}", str(seconds), *(["--local"] if local else [])]
        return float(_run(config, directory, peer.module, arguments).splitlines()[-1])


def _run(config: Config, directory: str, module: str, arguments: list[str]) -> str:
    """What a module says that is given the config as a file in the place of {}."""
    file = Path(directory) / "config.yaml"
    file.write_text(config.model_copy(update={"run_dir": f"{directory}/run"}).to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", module, *(word.format(file) for word in arguments)]
    plain = {name: value for name, value in os.environ.items() if (name, value) != HUGE_PAGES}  # ours asks by itself
    done = subprocess.run(command, capture_output=True, text=True, env=plain, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:4])} failed: {(done.stderr.strip().splitlines() or ['in silence'])[-1]}")
    return done.stdout


def _ticks() -> list[int]:
    """What the processors did so far: user, nice, system, idle, iowait, irq, softirq, steal; [] where nobody tells."""
    stat = Path("/proc/stat")
    return [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]] if stat.exists() else []


def _stolen(before: list[int], after: list[int]) -> float | None:
    passed = [b - a for a, b in zip(before, after, strict=True)]
    return passed[7] / max(1, sum(passed)) if len(passed) == 8 else None
