"""RLlib, trained as a config says: what `distrl bench --against rllib` measures distrl by."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.config import load_config
from distrl.envs.make import make_env
from distrl.execution.resources import cpu_count
from distrl.settings import Config

ENV = "the config's env"
NATURE = [[32, 8, 4], [64, 4, 2], [64, 3, 1]]  # Mnih et al. 2015: channels, kernel, stride


def _ppo(config: Config, peer: Any) -> Any:
    algorithm: Any = config.algorithm
    return peer.PPOConfig().training(
        lambda_=algorithm.gae_lambda,
        num_epochs=algorithm.epochs,
        minibatch_size=algorithm.minibatch_size,
        train_batch_size_per_learner=config.rollout.env_steps,
        clip_param=algorithm.clip.start,
        vf_loss_coeff=algorithm.value_coef,
        entropy_coeff=algorithm.entropy_coef.start,
        grad_clip=algorithm.max_grad_norm,
        use_kl_loss=False,
    )


def _dqn(config: Config, peer: Any) -> Any:
    algorithm: Any = config.algorithm
    replay = config.replay
    assert replay is not None
    return peer.DQNConfig().training(
        train_batch_size_per_learner=algorithm.batch_size,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": replay.capacity},
        num_steps_sampled_before_learning_starts=replay.start,
        training_intensity=replay.samples_per_insert,
        target_network_update_freq=round(algorithm.target_every * algorithm.batch_size / replay.samples_per_insert),
        n_step=algorithm.n_step,
        double_q=algorithm.double,
        dueling=algorithm.dueling,
    )


CONFIGS: dict[str, Callable[[Config, Any], Any]] = {"ppo": _ppo, "dqn": _dqn}


def env_of(config: Config) -> gym.Env[Any, Any]:
    """An env copy, with images as RLlib takes them: [H, W, C]."""
    env = make_env(config.env)
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3 or space.shape[2] < space.shape[0]:
        return env
    low, high = (np.moveaxis(bound, 0, 2) for bound in (space.low, space.high))
    turned = gym.spaces.Box(low, high, dtype=space.dtype.type)
    return gym.wrappers.TransformObservation(env, lambda obs: np.moveaxis(obs, 0, 2), turned)


def configured(config: Config, runners: int) -> Any:
    """What RLlib takes, with its learner in the driver and so many env runners; 0: there too."""
    algorithm: Any = config.algorithm
    name = algorithm.name
    copies = config.rollout.shards * config.rollout.envs_per_shard
    made = CONFIGS[name](config, importlib.import_module(f"ray.rllib.algorithms.{name}"))
    model = importlib.import_module("ray.rllib.core.rl_module.default_model_config").DefaultModelConfig
    hidden, activation = [*algorithm.hidden], algorithm.activation
    env = env_of(config)
    if len(env.observation_space.shape or ()) == 3:
        network = {"conv_filters": NATURE, "head_fcnet_hiddens": hidden, "head_fcnet_activation": activation}
    else:
        network = {"fcnet_hiddens": hidden, "fcnet_activation": activation}
    return (
        made.environment(ENV)
        .env_runners(
            num_env_runners=runners,
            num_envs_per_env_runner=max(1, copies // max(1, runners)),
            rollout_fragment_length=config.rollout.steps,
        )
        .learners(num_learners=0)
        .training(gamma=algorithm.gamma, lr=algorithm.lr.start)
        .rl_module(model_config=model(**network, vf_share_layers=getattr(algorithm, "shared_body", False)))
        .debugging(seed=config.seed, log_level="ERROR")
    )


def train(config: Config, seconds: float, local: bool) -> float:
    """env steps/s of training for so many seconds, from its first update on; on Ray with as many runners as distrl would take, or `local`."""
    import ray
    from ray import tune

    runners = 0 if local else min(cpu_count(), config.rollout.shards)
    ray.init(address="local", num_cpus=runners + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tune.register_env(ENV, lambda _: env_of(config))
    algorithm = configured(config, runners).build_algo()
    learning: list[tuple[float, float]] = []  # when, and env steps so far, after what has learnt
    while not learning or learning[-1][0] - learning[0][0] < seconds:
        said = algorithm.train()
        if said.get("learners"):
            learning.append((time.perf_counter(), said["env_runners"]["num_env_steps_sampled_lifetime"]))
    (start, before), (end, done) = learning[0], learning[-1]
    rate = (done - before) / (end - start)
    algorithm.stop()
    ray.shutdown()
    return float(rate)


if __name__ == "__main__":
    print(train(load_config(sys.argv[1]), float(sys.argv[2]), "--local" in sys.argv))
