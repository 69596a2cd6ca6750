"""Wrappers that let envs of any space be stepped with flat arrays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from distrl.layouts import MASK, Layout, action_layout, choices_of, observation_layout
from distrl.types import Array


def flat(env: gym.Env[Any, Any], layout: Layout | None = None) -> gym.Env[Any, Any]:
    """The env with observations and actions that are one array each: itself where they are so already.

    Args:
        layout: of observations; None: that of its spaces
    """
    actions = action_layout(env.action_space)
    layout = layout or observation_layout(env.observation_space, choices_of(actions))
    return env if layout.plain and actions.plain else Flat(env, layout, actions)


class Flat(gym.Wrapper[Array, Any, Any, Any]):
    """Observations and actions as their layouts have them."""

    def __init__(self, env: gym.Env[Any, Any], layout: Layout, actions: Layout) -> None:
        super().__init__(env)
        self.layout, self.actions = layout, actions
        self.observation_space = env.observation_space if layout.plain else _box(layout)
        self.action_space = env.action_space if actions.plain else _box(actions)
        if not layout.plain:  # stacks of frames are then no longer seen as such
            self.metadata = {**env.metadata, "frame_stack": 0}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self.layout.pack(obs, info.get(MASK)), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        own = action if self.actions.plain else self.actions.unpack(action)
        obs, reward, terminated, truncated, info = self.env.step(own)
        return self.layout.pack(obs, info.get(MASK), terminated or truncated), reward, terminated, truncated, info


def _box(layout: Layout) -> gym.spaces.Box:
    limits = np.iinfo(layout.dtype) if np.dtype(layout.dtype).kind in "iu" else np.finfo(layout.dtype)
    return gym.spaces.Box(limits.min, limits.max, layout.shape, np.dtype(layout.dtype).type)
