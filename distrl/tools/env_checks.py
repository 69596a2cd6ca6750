"""What is wrong with an environment: its spaces, and what random play shows."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs.multi import make_team
from distrl.layouts import MASK, choices_of, space_text
from distrl.settings import EnvSettings
from distrl.types import Array, EnvInfo

LARGE = 100.0  # observations and rewards beyond it are called badly scaled


API_CYCLES = 30  # steps for which PettingZoo's test of an env is run
SPREAD = 1e4  # and observations where one component is so many times another


@dataclass
class Played:
    """What a few random episodes showed."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    steps: int = 0
    truncated: bool = False  # an episode was cut off
    reward_low: float = np.inf
    reward_high: float = -np.inf
    finite: bool = True  # all observations and rewards
    low: Array | None = None  # smallest and largest of each component of a numeric observation
    high: Array | None = None
    outside: str | None = None  # the first observation that is not in the space, and why
    info_keys: set[str] = field(default_factory=set)
    agents: dict[str, list[float]] = field(default_factory=dict)  # returns of each of several

    def look(self, obs: Any, info: EnvInfo) -> None:
        """See an observation, or those of several agents."""
        if not info.agents:
            self.see(obs, info.observation_space)
            return
        for name, seen in obs.items():
            space = info.agents[name][0]
            if self.outside is None and not space.contains(seen):
                self.outside = f"{_why_outside(seen, space)} (of {name})"

    def see(self, obs: Any, space: gym.Space[Any]) -> None:
        if self.outside is None and not space.contains(obs):
            self.outside = _why_outside(obs, space)
        if isinstance(space, gym.spaces.Box) and np.shape(obs) == space.shape:
            self.low = np.array(obs) if self.low is None else np.minimum(self.low, obs)
            self.high = np.array(obs) if self.high is None else np.maximum(self.high, obs)
            self.finite &= bool(np.isfinite(obs).all())


def space_warnings(info: EnvInfo) -> Iterator[str]:
    obs, action = info.observation_space, info.action_space
    if isinstance(obs, gym.spaces.Box):
        if obs.dtype == np.float64:
            yield "observations are float64; networks compute in float32. Have the env give float32: half the memory."
        if len(obs.shape) == 3 and obs.dtype.itemsize > 1:
            yield f"images are {obs.dtype}. Have the env give uint8 in 0..255: a quarter of the memory or less."
    if isinstance(action, gym.spaces.Discrete) and action.start != 0:
        yield f"actions are numbered from {action.start}, not from 0. distrl adds the offset; most libraries do not."


def play_warnings(info: EnvInfo, played: Played) -> Iterator[str]:
    obs = info.observation_space
    if info.max_episode_steps is None and not played.truncated and not info.turns:
        yield "no time limit: an episode may never end. Set env.max_episode_steps."
    if not played.returns:
        yield f"no episode ended within {played.steps:,} random steps."
    if played.outside is not None:
        yield f"an observation is not in the observation space: {played.outside}."
    if not played.finite:
        yield "an observation or a reward is NaN or infinite."
    elif max(abs(played.reward_low), abs(played.reward_high)) > LARGE:
        remedy = "Scale them with gymnasium.wrappers.TransformReward, to about 1 a step."
        yield (
            f"rewards from {played.reward_low:g} to {played.reward_high:g} make value losses explode. "
            f"{'Set normalize.reward=true (ppo, a2c).' if info.agents else remedy}"
        )
    if isinstance(obs, gym.spaces.Box) and obs.dtype != np.uint8 and played.finite and played.low is not None:
        assert played.high is not None
        magnitude = np.maximum(np.abs(played.low), np.abs(played.high)).astype(np.float64).ravel()
        moving = magnitude[magnitude > 0]
        if len(moving) and (moving.max() > LARGE or moving.max() > SPREAD * moving.min()):
            largest, smallest = int(magnitude.argmax()), int(np.where(magnitude > 0, magnitude, np.inf).argmin())
            bounds = "" if obs.is_bounded("both") else ", and the space has no bounds"
            yield (
                f"observations are badly scaled: component {largest} reaches {magnitude[largest]:.3g}, component "
                f"{smallest} {magnitude[smallest]:.3g}{bounds}. Networks learn best from values of about 1: scale them "
                "with gymnasium.wrappers.TransformObservation."
            )
    if MASK in played.info_keys and not choices_of(info.action_layout):
        yield f"info holds an {MASK}, which is not used: actions are {space_text(info.action_space)}, and have no choices."
    elif MASK in played.info_keys and info.action_mask is None and not info.mask_in_info:
        yield (
            f"info holds an {MASK} after a step, but not after a reset, so it is not used: policies also try the actions that "
            "it forbids. Give one with every info, that of reset(), too."
        )


def api_warnings(settings: EnvSettings, info: EnvInfo) -> Iterator[str]:
    """What PettingZoo's own test of an env of several agents finds, in the words that it has for that."""
    if not info.agents:
        return
    from pettingzoo import test

    game = make_team(settings).game
    said = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as found, contextlib.redirect_stdout(said):
            warnings.simplefilter("always")
            if info.turns:
                test.api_test(game, num_cycles=API_CYCLES)
            else:
                test.parallel_api_test(game, num_cycles=API_CYCLES)
    except Exception as error:
        yield f"PettingZoo's API test fails: {type(error).__name__}: {error}".rstrip(": ")
    finally:
        game.close()
    for text in dict.fromkeys(str(warning.message) for warning in found if warning.category is UserWarning):
        yield f"PettingZoo's API test: {text}"


def _why_outside(obs: Any, space: gym.Space[Any]) -> str:
    """In what way an observation is not in its space."""
    if not isinstance(space, gym.spaces.Box):
        return f"{obs!r:.80} is not in {space_text(space)}"
    array = np.asarray(obs)
    if array.shape != space.shape:
        return f"its shape is {list(array.shape)}, the space says {list(space.shape)}"
    if not np.can_cast(array.dtype, space.dtype):
        return f"its dtype is {array.dtype}, the space says {space.dtype}"
    off = np.argwhere(~((array >= space.low) & (array <= space.high)))
    if len(off) == 0:
        return f"it is a {type(obs).__name__}, not an array"
    at = tuple(off[0].tolist())
    return f"component {list(at)} is {array[at]}, outside [{space.low[at]:g}, {space.high[at]:g}]"
