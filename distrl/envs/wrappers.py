"""Wrappers: those that `env.wrappers` puts around env copies, what becomes of an env inside, and those of distrl's own.

Short names are in `distrl.registry.WRAPPERS`. A wrapper makes an env of an env: a class of gymnasium's, or a function.
"""

from __future__ import annotations

import inspect
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import (
    AtariPreprocessing,
    ClipReward,
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformObservation,
    TransformReward,
)

from distrl.errors import UserError
from distrl.layouts import MASK, Layout, action_layout, choices_of, is_text, observation_layout, space_text
from distrl.registry import NORMALISING, normalises, wrapper
from distrl.settings import EnvSettings, WrapperSettings
from distrl.types import Array

# By short name: what an env is made with where its id says otherwise and `env.kwargs` nothing.
MADE_WITH = {"atari": {"frameskip": 1}}
# What leaves observations as they are, and what leaves the sum of an episode's rewards.
INNOCENT = (gym.ActionWrapper, TimeLimit, RecordEpisodeStatistics)
SEES_THE_SAME = (*INNOCENT, gym.RewardWrapper)
EARNS_THE_SAME = (*INNOCENT, gym.ObservationWrapper, FrameStackObservation, AtariPreprocessing)


def atari(env: gym.Env[Any, Any], stack_size: int = 4, **arguments: Any) -> gym.Env[Any, Any]:
    """Atari as DQN saw it (Mnih et al. 2015): each action for 4 frames, the newest two merged, 84x84, gray, 4 in a stack.

    Rewards and lives stay the game's own: `clip_reward` and `terminal_on_life_loss` are for the asking.

    Args:
        arguments: of gymnasium.wrappers.AtariPreprocessing
    """
    if not hasattr(env.unwrapped, "ale"):
        raise TypeError("this is no env of ale-py, such as ALE/Pong-v5")
    return frame_stack(AtariPreprocessing(env, **arguments), stack_size)


def flatten(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Observations [size]: all numbers of them in one array, whole numbers one-hot. Texts of a Dict are left out."""
    read = _without_texts(env.observation_space)
    if read is env.observation_space:
        return FlattenObservation(env)
    return TransformObservation(env, lambda obs: gym.spaces.flatten(read, obs), gym.spaces.flatten_space(read))


def _without_texts(space: gym.Space[Any]) -> gym.Space[Any]:
    """A Dict without its texts, at any depth: what it makes of an observation pays no attention to other keys."""
    if not isinstance(space, gym.spaces.Dict):
        return space
    left = {name: _without_texts(below) for name, below in space.spaces.items() if not is_text(below)}
    return space if left == space.spaces else gym.spaces.Dict(left)


def frame_stack(env: gym.Env[Any, Any], stack_size: int = 4) -> gym.Env[Any, Any]:
    """Observations [stack_size, ...]: the newest so many, newest last; at first the first one so many times."""
    return FrameStackObservation(env, stack_size)


def clip_reward(
    env: gym.Env[Any, Any], min_reward: float | None = None, max_reward: float | None = None
) -> gym.Env[Any, Any]:
    """Rewards within bounds; without bounds their sign."""
    if min_reward is None and max_reward is None:
        return TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return ClipReward(env, min_reward, max_reward)


def select(env: gym.Env[Any, Any], indices: Sequence[int]) -> gym.Env[Any, Any]:
    """Observations [len(indices), ...]: these entries alone of arrays, counted from 0 along their first axis."""
    space = env.observation_space
    if not isinstance(space, gym.spaces.Box) or not space.shape:
        raise TypeError(f"observations are {space_text(space)}, and a Box with an axis is due")
    if not indices or not all(type(i) is int and 0 <= i < space.shape[0] for i in indices):
        raise ValueError(f"indices are {indices}, and whole numbers from 0 to {space.shape[0] - 1} are due")
    kept = list(indices)
    seen = gym.spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type)
    return TransformObservation(env, lambda obs: obs[kept], seen)


def wrap(env: gym.Env[Any, Any], settings: EnvSettings) -> gym.Env[Any, Any]:
    """The env within what `env.wrappers` names. Raises `UserError`, and closes the env, where one does not fit."""
    if not settings.wrappers:
        return env
    wrapped = env
    try:
        for around in settings.wrappers:
            wrapped = _put_around(wrapped, around, settings.id)
    except UserError:
        env.close()
        raise
    wrapped.metadata = {**wrapped.metadata, "frame_stack": _frame_stack(wrapped)}
    return wrapped


def _arguments(make: Callable[..., Any]) -> list[str]:
    """The kwargs that a wrapper takes, as far as its signature tells: none where that takes any."""
    try:
        parameters = list(inspect.signature(make).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]


def _put_around(env: gym.Env[Any, Any], around: WrapperSettings, env_id: str) -> gym.Env[Any, Any]:
    make = wrapper(around.name)
    what = f"The wrapper {around.name!r}" + (f" with kwargs {around.kwargs}" if around.kwargs else "")
    try:
        wrapped = make(env, **around.kwargs)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if frame.filename == __file__ else f" ({frame.filename}, line {frame.lineno})"
        reason = f"{type(error).__name__}: {error}".removesuffix(".")
        if isinstance(error, NotImplementedError) and not str(error):
            reason = f"it can do nothing with observations that are {space_text(env.observation_space)}"
        if isinstance(error, TypeError) and (known := _arguments(make)) and not set(around.kwargs) <= set(known):
            reason += f"; it takes {', '.join(known)}"
        raise UserError(f"{what} cannot be put around {env_id!r}: {reason}{where}. Change env.wrappers.") from None
    if not isinstance(wrapped, gym.Env):
        raise UserError(
            f"{what} is no wrapper: around {env_id!r} it gives a {type(wrapped).__name__}, where a gymnasium.Env is due."
        )
    for layer in itertools.takewhile(lambda layer: layer is not env, layers(wrapped)):
        for kind, key in zip((NormalizeObservation, NormalizeReward), NORMALISING.values(), strict=True):
            if isinstance(layer, kind):
                raise normalises(around.name, key)
    return wrapped


def layers(env: gym.Env[Any, Any]) -> Iterator[gym.Wrapper[Any, Any, Any, Any]]:
    """The wrappers around an env, the outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def _frame_stack(env: gym.Env[Any, Any]) -> int:
    """C where observations are stacks as distrl.fragments says, and no wrapper makes something else of them; else 0."""
    for layer in layers(env):
        if isinstance(layer, FrameStackObservation):
            arrays = isinstance(layer.env.observation_space, gym.spaces.Box)
            return layer.stack_size if arrays and layer.stack_size > 1 and layer.padding_type == "reset" else 0
        if not isinstance(layer, SEES_THE_SAME):
            return 0
    return int(env.unwrapped.metadata.get("frame_stack", 0))


def keeps_return(env: gym.Env[Any, Any]) -> bool:
    """Whether all wrappers are known to leave the returns of episodes as the env itself has them."""
    return all(isinstance(layer, EARNS_THE_SAME) for layer in layers(env))


def longest_episode(env: gym.Env[Any, Any]) -> int | None:
    """The most steps that an episode takes outside all wrappers; None: no limit is known."""
    made = {} if env.unwrapped.spec is None else env.unwrapped.spec.kwargs
    limit, skip = made.get("max_num_frames_per_episode") or math.inf, made.get("frameskip", 1)  # of Atari
    limit /= skip if isinstance(skip, int) else skip[0]  # or a range to draw from
    for layer in reversed(list(layers(env))):
        if isinstance(layer, TimeLimit):
            limit = min(limit, layer._max_episode_steps)
        elif isinstance(layer, AtariPreprocessing):
            limit /= layer.frame_skip
    if any(cls.__module__.startswith("minigrid.") for cls in type(env.unwrapped).__mro__):  # it ends episodes by itself
        limit = min(limit, env.unwrapped.max_steps)  # type: ignore[attr-defined]
    return None if limit == math.inf else math.ceil(limit)


class ForgetAction(gym.Wrapper[Any, Any, Any, Any]):
    """MinAtar, whose sticky first action would be the last one of the episode before: what no seed brings back."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return self.env.reset(seed=seed, options=options)


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
