"""Wrappers that give distrl the observations that it can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class DiscreteParts(gym.ObservationWrapper[Any, Any, Any]):
    """A Tuple or Dict of discrete parts (nested as may be) seen as one MultiDiscrete array [D]."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        parts = list(_parts(env.observation_space))
        self.observation_space = gym.spaces.MultiDiscrete(
            np.concatenate([n for n, _ in parts]), start=np.concatenate([start for _, start in parts])
        )

    def observation(self, observation: Any) -> NDArray[np.int64]:
        return np.array(list(_flat(observation, self.env.observation_space)), np.int64)


def _parts(space: gym.Space[Any]) -> Iterator[tuple[Any, Any]]:
    """(number of values, first value) of the parts of a space. Raises TypeError where one is not discrete."""
    if isinstance(space, gym.spaces.Tuple | gym.spaces.Dict):
        for part in space.spaces.values() if isinstance(space, gym.spaces.Dict) else space.spaces:
            yield from _parts(part)
    elif isinstance(space, gym.spaces.Discrete):
        yield np.array([space.n]), np.array([space.start])
    elif isinstance(space, gym.spaces.MultiDiscrete):
        yield space.nvec.ravel(), space.start.ravel()
    elif isinstance(space, gym.spaces.MultiBinary):
        yield np.full(space.shape, 2).ravel(), np.zeros(space.shape, np.int64).ravel()
    else:
        raise TypeError(f"{space} is not discrete")


def _flat(obs: Any, space: gym.Space[Any]) -> Iterator[int]:
    if isinstance(space, gym.spaces.Tuple):
        for part, below in zip(obs, space.spaces, strict=True):
            yield from _flat(part, below)
    elif isinstance(space, gym.spaces.Dict):
        for name, below in space.spaces.items():
            yield from _flat(obs[name], below)
    else:
        yield from np.ravel(obs).tolist()
