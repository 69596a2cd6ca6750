"""Stable-Baselines3, trained as a config says: what `distrl bench --against sb3` measures distrl by."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

from distrl.config import load_config
from distrl.envs.make import make_env
from distrl.settings import Config

SAME = ("gamma", "gae_lambda", "max_grad_norm")  # what is called the same, and is a number


def rate(schedule: Any) -> float | Callable[[float], float]:
    """A schedule as it is taken there, by the share of the run that is left."""
    start, end = schedule.start, schedule.end
    return float(start) if end is None else lambda left: end + (start - end) * left


def _on_policy(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    same = {name: getattr(algorithm, name) for name in SAME if getattr(algorithm, name) is not None}
    weights = {"vf_coef": algorithm.value_coef, "ent_coef": algorithm.entropy_coef.start}
    return same | weights | {"n_steps": config.rollout.steps, "normalize_advantage": algorithm.normalize_advantage}


def _ppo(config: Config) -> dict[str, Any]:
    algorithm: Any = config.algorithm
    own = {"n_epochs": algorithm.epochs, "batch_size": algorithm.minibatch_size, "clip_range": rate(algorithm.clip)}
    own |= {"clip_range_vf": algorithm.value_clip, "target_kl": algorithm.target_kl}
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
        "n_steps": algorithm.n_step,
        "tau": algorithm.tau,
        "batch_size": algorithm.batch_size,
        "buffer_size": replay.capacity,
        "learning_starts": replay.start,
        "train_freq": config.rollout.steps,
        "gradient_steps": max(1, round(steps * replay.samples_per_insert / algorithm.batch_size)),
        "target_update_interval": max(1, round(algorithm.target_every * algorithm.batch_size / replay.samples_per_insert)),
        "exploration_final_eps": algorithm.epsilon.end if algorithm.epsilon.end is not None else algorithm.epsilon.start,
    }  # fmt: skip


OPTIONS: dict[str, Callable[[Config], dict[str, Any]]] = {"ppo": _ppo, "a2c": _a2c, "dqn": _dqn}


def make(config: Config) -> Any:
    """The model, with all env copies in this process; images are seen by its own Nature CNN."""
    peer, vectors = (importlib.import_module(f"stable_baselines3{part}") for part in ("", ".common.env_util"))
    nn, algorithm = importlib.import_module("torch.nn"), config.algorithm
    copies = config.rollout.shards * config.rollout.envs_per_shard
    env = vectors.make_vec_env(lambda: make_env(config.env), copies, config.seed)
    if (on := config.normalize).obs or on.reward:
        normalised = importlib.import_module("stable_baselines3.common.vec_env").VecNormalize
        env = normalised(env, norm_obs=on.obs, norm_reward=on.reward, gamma=config.algorithm.discount)
    units: Any = algorithm
    network = {"net_arch": [*units.hidden], "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[units.activation]}
    image = len(env.observation_space.shape) == 3
    if image:
        network |= {"net_arch": [*units.hidden[1:]], "features_extractor_kwargs": {"features_dim": units.hidden[0]}}
    elif getattr(units, "shared_body", False):
        network |= {"net_arch": [], "features_extractor_class": _body(units.hidden, network["activation_fn"])}
    return getattr(peer, algorithm.name.upper())(
        "CnnPolicy" if image else "MlpPolicy",
        env,
        seed=config.seed,
        device="cpu",
        learning_rate=rate(units.lr),
        policy_kwargs=network,
        **OPTIONS[algorithm.name](config),
    )


def _body(hidden: Sequence[int], activation: Any) -> Any:
    """Hidden layers that actor and critic share."""
    nn, base = (importlib.import_module(name) for name in ("torch.nn", "stable_baselines3.common.torch_layers"))

    class Body(base.BaseFeaturesExtractor):  # type: ignore[misc,name-defined]
        def __init__(self, space: Any) -> None:
            super().__init__(space, hidden[-1])
            sizes = [*space.shape, *hidden]
            layers = [(nn.Linear(i, o), activation()) for i, o in pairwise(sizes)]
            self.layers = nn.Sequential(*chain(*layers))

        def forward(self, obs: Any) -> Any:
            return self.layers(obs)

    return Body


def train(config: Config, seconds: float) -> float:
    """env steps/s of training for so many seconds, from its first update on."""
    model, begun = make(config), list[tuple[float, int]]()

    def go_on(*_: Any) -> bool:
        if not begun and model._n_updates:
            begun.append((time.perf_counter(), model.num_timesteps))
        return not begun or time.perf_counter() - begun[0][0] < seconds

    model.learn(10**9, callback=go_on)
    start, before = begun[0]
    return float((model.num_timesteps - before) / (time.perf_counter() - start))


if __name__ == "__main__":
    print(train(load_config(sys.argv[1]), float(sys.argv[2])))
