"""`distrl bench --against sb3`: Stable-Baselines3 and distrl in turns, on the same env with the same hyperparameters.

What only one of them has (normalised values, dueling networks, ...) stays as it is there. Each measures its own env steps/s
of training, learner included, without its start-up; all cores are for whose turn it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distrl.config import load_config
from distrl.errors import UserError
from distrl.settings import Config

MISSING = "--against sb3 needs Stable-Baselines3, which is not installed: pip install stable-baselines3"
# The network and batch that DQN is mostly compared by, and nothing that only one of them has.
DQN = (
    *("algorithm.hidden=[256, 256]", "algorithm.batch_size=64", "algorithm.n_step=1", "algorithm.double=false"),
    *("algorithm.layer_norm=false", "algorithm.target_every=500", "replay.samples_per_insert=32"),
)
TASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ppo_cartpole", ()),
    ("ppo_lunarlander", ()),
    ("a2c_cartpole", ()),
    ("dqn_cartpole", DQN),
)
CONSTANT = ("gamma", "gae_lambda", "max_grad_norm")  # what is called the same, and is a number


@dataclass(frozen=True)
class Comparison:
    """Env steps/s of training in each turn, of both; and what of the cores went elsewhere."""

    config: Config
    peer: list[float]
    ours: list[float]
    stolen: float | None  # share of the processors' time that a hypervisor gave to others; None: not told here
    load: float  # processes that wanted a core in the minute before, on the average

    @property
    def ratios(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of each turn, ours by the peer's, in their order."""
        return np.sort(np.array(self.ours) / np.array(self.peer))


def compare(configs: list[Config], seconds: float, rounds: int, local: bool) -> Iterator[Comparison]:
    """Train each config for so many seconds with both, in turns. Raises `UserError` where the peer is missing or cannot."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise UserError(MISSING)
    for config in configs:
        if config.algorithm.name not in PEERS:
            raise UserError(
                f"--against sb3 compares {', '.join(PEERS)}, and algorithm.name is {config.algorithm.name}."
            )
        load, before = psutil.getloadavg()[0], _ticks()
        turns = [(_peer(config, seconds), _ours(config, seconds, local)) for _ in range(rounds)]
        peer, ours = map(list, zip(*turns, strict=True))
        yield Comparison(config, peer, ours, _stolen(before, _ticks()), load)


def _ours(config: Config, seconds: float, local: bool) -> float:
    with tempfile.TemporaryDirectory(prefix="distrl-against-") as directory:
        result = Path(directory) / "run" / "result.json"
        limits = [f"stop.seconds={seconds}", "stop.return_mean=null", "stop.env_steps=1000000000"]
        quiet = ["evaluation.every=0", "evaluation.final_episodes=0", "track.mlflow=false", "track.video=false"]
        where = "--local" if local else "cluster.start=wait"  # or else its beginning would be of Ray's start
        _run(config, directory, "distrl", ["train", "{}", *limits, *quiet, "--quiet", where])
        return float(json.loads(result.read_text(encoding="utf-8"))["env_steps_per_s"])


def _peer(config: Config, seconds: float) -> float:
    with tempfile.TemporaryDirectory(prefix="distrl-against-") as directory:
        return float(_run(config, directory, "distrl.tools.against", ["{}", str(seconds)]).splitlines()[-1])


def _run(config: Config, directory: str, module: str, arguments: list[str]) -> str:
    """What a module says that is given the config as a file in the place of {}."""
    file = Path(directory) / "config.yaml"
    file.write_text(config.model_copy(update={"run_dir": f"{directory}/run"}).to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", module, *(word.format(file) for word in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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


def _rate(schedule: Any) -> float | Callable[[float], float]:
    """A schedule as the peer takes it, by the share of the run that is left."""
    start, end = schedule.start, schedule.end
    return float(start) if end is None else lambda left: end + (start - end) * left


def _on_policy(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    same = {name: getattr(algorithm, name) for name in CONSTANT if getattr(algorithm, name) is not None}
    weights = {"vf_coef": algorithm.value_coef, "ent_coef": algorithm.entropy_coef.start}
    return same | weights | {"n_steps": config.rollout.steps, "normalize_advantage": algorithm.normalize_advantage}


def _ppo(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    own = {"n_epochs": algorithm.epochs, "batch_size": algorithm.minibatch_size, "clip_range": _rate(algorithm.clip)}
    return _on_policy(config) | own


def _a2c(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    return _on_policy(config) | {"use_rms_prop": algorithm.optimizer == "rmsprop"}


def _dqn(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    replay, steps = config.replay, config.rollout.env_steps
    assert replay is not None
    return {
        "gamma": algorithm.gamma,
        "batch_size": algorithm.batch_size,
        "buffer_size": replay.capacity,
        "learning_starts": replay.start,
        "train_freq": config.rollout.steps,
        "gradient_steps": max(1, round(steps * replay.samples_per_insert / algorithm.batch_size)),
        "target_update_interval": max(1, round(algorithm.target_every * algorithm.batch_size / replay.samples_per_insert)),
        "exploration_final_eps": algorithm.epsilon.end if algorithm.epsilon.end is not None else algorithm.epsilon.start,
    }  # fmt: skip


PEERS: dict[str, Callable[[Config], dict[str, Any]]] = {"ppo": _ppo, "a2c": _a2c, "dqn": _dqn}


def _train_peer(config: Config, seconds: float) -> float:
    """env steps/s of Stable-Baselines3 in this process."""
    peer, make = (
        importlib.import_module("stable_baselines3"),
        importlib.import_module("stable_baselines3.common.env_util"),
    )
    nn, algorithm = importlib.import_module("torch.nn"), config.algorithm
    copies = config.rollout.shards * config.rollout.envs_per_shard
    env = make.make_vec_env(config.env.id, copies, config.seed, env_kwargs=config.env.kwargs)
    units: Any = algorithm
    network = {"net_arch": [*units.hidden], "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[units.activation]}
    model = getattr(peer, algorithm.name.upper())(
        "MlpPolicy",
        env,
        seed=config.seed,
        device="cpu",
        learning_rate=_rate(units.lr),
        policy_kwargs=network,
        **PEERS[algorithm.name](config),
    )
    start = time.perf_counter()
    model.learn(10**9, callback=lambda *_: time.perf_counter() - start < seconds)
    return float(model.num_timesteps / (time.perf_counter() - start))


if __name__ == "__main__":
    print(_train_peer(load_config(sys.argv[1]), float(sys.argv[2])))
