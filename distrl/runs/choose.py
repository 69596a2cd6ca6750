"""A config for an environment and an algorithm, where nobody wrote one: a preset, or defaults that suit the spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.multi import apart
from distrl.presets import presets_for
from distrl.settings import Config
from distrl.types import EnvInfo

REPLAY_BYTES = (
    2**30
)  # of a replay of images, about: not of this machine's memory, for the same command means the same run
LONGEST = 1000  # steps of an episode, where the env itself knows no limit


def choose_config(env_id: str, algorithm: str | None, overrides: Sequence[str] = ()) -> tuple[Config, str]:
    """A config, and where it comes from, for people. `algorithm` None: of a preset, else ppo.

    Raises:
        UserError: the env cannot be made, or the algorithm or an override is wrong
    """
    fitting = presets_for(env_id, algorithm)
    if fitting:
        as_asked = (p for p in fitting if load_config(p.path, _of_env(overrides)).env.kwargs == p.env_kwargs)
        preset = next(as_asked, fitting[0])  # env.kwargs make another env: continuous actions, another map
        return load_config(preset.path, overrides), f"the preset {preset.name}"
    # What the env needs to be made may be among the overrides.
    given = load_config({"env": {"id": env_id}, "algorithm": {"name": algorithm or "ppo"}}, _of_env(overrides))
    chosen, reasons = defaults(apart(describe_env(given.env)), algorithm or "ppo")
    chosen["env"] = {"id": env_id} | chosen.get("env", {})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return load_config(chosen, overrides), f"defaults for its spaces{why}, as no preset is for this pair"


def _of_env(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.startswith(("env.", "env="))]


def defaults(info: EnvInfo, algorithm: str) -> tuple[dict[str, Any], list[str]]:
    """What differs from the defaults of the settings for an env's spaces, and why."""
    config: dict[str, Any] = {"algorithm": {"name": algorithm}}
    reasons = []
    if info.groups:
        config["policies"] = "per_agent"
        reasons.append("a policy for each agent, as they see or do different things")
    if info.max_episode_steps is None and not info.turns:
        config["env"] = {"max_episode_steps": LONGEST}
        reasons.append(f"episodes end after {LONGEST} steps, as the env knows no limit")
    obs = info.observation_space
    images = isinstance(obs, gym.spaces.Box) and obs.dtype == np.uint8 and len(obs.shape) >= 3
    if images:
        config["rollout"] = {"shards": 2, "envs_per_shard": 8, "steps": 64}
        reasons.append("few copies of an env of images")
    if images and algorithm == "dqn":  # which draws large batches, and keeps what it saw
        frame = info.obs_layout.nbytes // max(1, info.frame_stack)
        config["rollout"]["steps"] = 8
        config["replay"] = {"capacity": max(2000, min(50_000, REPLAY_BYTES // frame)), "samples_per_insert": 8}
        reasons.append("a replay that any machine holds")
    if isinstance(info.action_space, gym.spaces.Box) and algorithm == "ppo":
        config["rollout"] = {"shards": 2, "envs_per_shard": 8, "steps": 128}
        config["algorithm"] |= {"epochs": 10, "minibatch_size": 256, "lr": {"start": 1e-3, "end": 0.0}}
        reasons.append("more epochs for continuous actions")
    return config, reasons
