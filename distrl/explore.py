"""A look at an environment before training on it: spaces, limits, speed, which algorithms fit, what is wrong with it.

Floor 6: asks every algorithm whether it fits, which imports torch; not before `explore` is called.
The checks are those of Stable-Baselines3's `check_env`, and what distrl itself needs: an episode that its seed
and its actions rebuild exactly.
"""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from distrl.config import ALGORITHMS, EnvSettings, algorithm_module
from distrl.envs import EnvInfo, describe_env, make_env, table
from distrl.envs.shard import NativeShard, make_shard
from distrl.errors import EnvError, UserError
from distrl.seeding import derive
from distrl.types import Array

if TYPE_CHECKING:
    from rich.console import Console

SHARD_COPIES = 16  # copies of the shard whose speed is measured: the default of rollout.envs_per_shard
EPISODES = 5  # random episodes whose mean return is told
CHECK_STEPS = 100  # steps for which two copies must agree
MIN_STEPS = 30  # of random play and of the checks, however slow the env is
LARGE = 100.0  # observations and rewards beyond it are called badly scaled
SPREAD = 1e4  # and observations where one component is so many times another


@dataclass(frozen=True)
class Exploration:
    """What `explore` found."""

    info: EnvInfo
    native: bool  # has a vector form of its own that distrl uses
    table: bool  # is run from its transition table
    returns: tuple[float, ...]  # of episodes played with random actions
    lengths: tuple[int, ...]  # steps of the same
    reward_range: tuple[float, float]  # smallest and largest reward seen
    info_keys: tuple[str, ...]  # of the info of reset and step
    single_steps_per_s: float  # env steps/s of one copy, random actions
    shard_steps_per_s: float | None  # env steps/s of a shard of 16 copies; None: it cannot be made
    algorithms: dict[str, str | None]  # None: fits; otherwise why not
    warnings: tuple[str, ...]


def explore(settings: EnvSettings, seed: int, seconds: float = 1.0) -> Exploration:
    """Play the environment with random actions, time it and check it.

    Args:
        seconds: wall-clock for each of the measurements; the whole takes some five times as long.

    Raises:
        UserError: the environment cannot be made.
        EnvError: it raised while it was played.
    """
    info = describe_env(settings)
    played = _play(settings, seed, info, seconds)
    warnings = [*_space_warnings(info), *_play_warnings(info, played)]
    difference = _first_difference(settings, seed, info, seconds)
    if difference is not None:
        warnings.append(
            f"not deterministic: two copies with the same seed and actions part at {difference}. Runs cannot be "
            "repeated, and episodes under way are lost with their process. Draw all randomness from self.np_random."
        )
    shard_steps_per_s = None
    if _stackable(info.observation_space) and _stackable(info.action_space):
        try:
            shard_steps_per_s = _shard_speed(settings, seed, info, seconds)
            if difference is None and not _rebuilds(settings, seed, info, seconds):
                warnings.append(
                    "reset(seed=...) does not set back everything: an episode replayed from its seed and actions comes "
                    "out differently, so it is lost with its process. Set all of the env's state in reset()."
                )
        except EnvError as error:
            reason = error.cause.strip().splitlines()[-1]
            warnings.append(f"copies of it cannot be stepped together: {reason}. No algorithm can train on it.")
    return Exploration(
        info=info,
        native=NativeShard.fits(settings, SHARD_COPIES),
        table=table.fits(settings),
        returns=tuple(played.returns),
        lengths=tuple(played.lengths),
        reward_range=(played.reward_low, played.reward_high),
        info_keys=tuple(sorted(map(str, played.info_keys))),
        single_steps_per_s=_single_speed(settings, seed, info, seconds),
        shard_steps_per_s=shard_steps_per_s,
        algorithms={name: _misfit(name, info) for name in ALGORITHMS},
        warnings=tuple(warnings),
    )


@dataclass
class _Played:
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

    def see(self, obs: Any, space: gym.Space[Any]) -> None:
        if self.outside is None and not space.contains(obs):
            self.outside = _why_outside(obs, space)
        if isinstance(space, gym.spaces.Box) and np.shape(obs) == space.shape:
            self.low = np.array(obs) if self.low is None else np.minimum(self.low, obs)
            self.high = np.array(obs) if self.high is None else np.maximum(self.high, obs)
            self.finite &= bool(np.isfinite(obs).all())


def _play(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> _Played:
    played = _Played()
    actions = _actions(info, seed, 256)
    deadline = time.perf_counter() + seconds

    def enough() -> bool:
        return played.steps >= MIN_STEPS and time.perf_counter() > deadline

    env = make_env(settings)
    try:
        for episode in range(EPISODES):
            return_, length, ended = 0.0, 0, False
            start = derive(seed, "explore", episode)
            obs, extra = _guarded(settings, start, 0, env.reset, seed=start)
            played.see(obs, info.observation_space)
            while not ended:
                obs, reward, terminated, truncated, more = _guarded(settings, start, length, env.step, next(actions))
                played.see(obs, info.observation_space)
                played.steps += 1
                played.truncated |= bool(truncated)
                played.reward_low, played.reward_high = min(played.reward_low, reward), max(played.reward_high, reward)
                played.finite &= bool(np.isfinite(reward))
                played.info_keys |= extra.keys() | more.keys()
                return_, length, ended = return_ + float(reward), length + 1, terminated or truncated
                if enough():
                    break
            if ended:
                played.returns.append(return_)
                played.lengths.append(length)
            if enough():
                break
    finally:
        env.close()
    return played


def _space_warnings(info: EnvInfo) -> Iterator[str]:
    obs, action = info.observation_space, info.action_space
    if isinstance(obs, gym.spaces.Dict | gym.spaces.Tuple):
        yield (
            f"observations are a {type(obs).__name__}, which has no single array. Wrap the env in "
            "gymnasium.wrappers.FlattenObservation."
        )
    if isinstance(obs, gym.spaces.Box):
        if obs.dtype == np.float64:
            yield "observations are float64; networks compute in float32. Have the env give float32: half the memory."
        if len(obs.shape) == 3:
            if obs.dtype != np.uint8:
                yield f"images are {obs.dtype}. Have the env give uint8 in 0..255: a quarter of the memory or less."
            if obs.shape[-1] in (1, 3, 4) and obs.shape[0] not in (1, 3, 4):
                yield f"images are {list(obs.shape)}, channels last. Convolutions take [C, H, W]: wrap the env."
    if isinstance(action, gym.spaces.Discrete) and action.start != 0:
        yield f"actions are numbered from {action.start}, not from 0. distrl adds the offset; most libraries do not."
    if isinstance(action, gym.spaces.Box) and not (np.all(action.low == -1) and np.all(action.high == 1)):
        yield (
            f"actions lie in [{action.low.min():g}, {action.high.max():g}], not in [-1, 1], where Gaussian policies "
            "start. Wrap the env in gymnasium.wrappers.RescaleAction."
        )


def _play_warnings(info: EnvInfo, played: _Played) -> Iterator[str]:
    obs = info.observation_space
    if info.max_episode_steps is None and not played.truncated:
        yield "no time limit: an episode may never end. Set env.max_episode_steps."
    if not played.returns:
        yield f"no episode ended within {played.steps:,} random steps."
    if played.outside is not None:
        yield f"an observation is not in the observation space: {played.outside}."
    if not played.finite:
        yield "an observation or a reward is NaN or infinite."
    elif max(abs(played.reward_low), abs(played.reward_high)) > LARGE:
        yield (
            f"rewards from {played.reward_low:g} to {played.reward_high:g} make value losses explode. "
            "Scale them with gymnasium.wrappers.TransformReward, to about 1 a step."
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
    if "action_mask" in played.info_keys and info.action_mask is None:
        yield (
            "info holds an action_mask, which is not used: policies also try the actions that it forbids. Tables would keep to "
            "one if observations were Discrete and the environment had a method action_mask(observation)."
        )


def _why_outside(obs: Any, space: gym.Space[Any]) -> str:
    """In what way an observation is not in its space."""
    if not isinstance(space, gym.spaces.Box):
        return f"{obs!r:.80} is not in {_short(space)}"
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


def _first_difference(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> str | None:
    """Where two fresh copies with one seed and the same actions first differ; None: nowhere."""
    deadline = time.perf_counter() + seconds
    start = derive(seed, "explore", 0)
    envs = [make_env(settings) for _ in range(2)]
    try:
        one, two = (_guarded(settings, start, 0, env.reset, seed=start)[0] for env in envs)
        if not _equal(one, two):
            return "the first observation"
        for step, action in enumerate(itertools.islice(_actions(info, seed, CHECK_STEPS), CHECK_STEPS)):
            one, two = (_guarded(settings, start, step, env.step, action)[:4] for env in envs)
            for name, a, b in zip(("observation", "reward", "end", "end"), one, two, strict=True):
                if not _equal(a, b):
                    return f"the {name} of step {step + 1}"
            if one[2] or one[3] or (step >= MIN_STEPS and time.perf_counter() > deadline):
                break
    finally:
        for env in envs:
            env.close()
    return None


def _rebuilds(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> bool:
    """Whether a used shard takes up the snapshot of another exactly, and then goes on like it."""
    copies = 2
    deadline = time.perf_counter() + seconds
    one, two = (make_shard(settings, seed, 0, copies) for _ in range(2))
    try:
        actions = _action_batches(info, seed, copies)
        used = 0
        while used < MIN_STEPS or (used < CHECK_STEPS and time.perf_counter() < deadline):
            one.step(next(actions))
            two.step(next(actions))  # other actions: what the past leaves behind must not show
            used += 1
        if not two.restore(one.snapshot()).all():
            return False
        for action in itertools.islice(actions, used):
            a, b = one.step(action), two.step(action)
            if not (_equal(a.obs, b.obs) and _equal(a.reward, b.reward)):
                return False
        return True
    finally:
        one.close()
        two.close()


def _single_speed(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> float:
    env = make_env(settings)
    actions = _actions(info, seed, 1024)
    episodes = itertools.count()

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset(seed=derive(seed, "explore", next(episodes)))

    try:
        env.reset(seed=derive(seed, "explore", next(episodes)))
        return _rate(step, seconds)
    finally:
        env.close()


def _shard_speed(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> float:
    shard = make_shard(settings, seed, 0, SHARD_COPIES)
    actions = _action_batches(info, seed, SHARD_COPIES)
    try:
        return SHARD_COPIES * _rate(lambda: shard.step(next(actions)), seconds)
    finally:
        shard.close()


def _rate(call: Callable[[], object], seconds: float) -> float:
    """Calls per second, after one to warm up."""
    call()
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or calls == 0:
        call()
        calls += 1
    return calls / passed


def _misfit(name: str, info: EnvInfo) -> str | None:
    """Why an algorithm does not fit an env, or None."""
    module = algorithm_module(name)
    try:
        module.make_policy(module.Settings(name=name), info)
    except UserError as error:
        return str(error)
    return None


def _stackable(space: gym.Space[Any]) -> bool:
    """Whether samples are arrays of one shape, or numbers."""
    return space.shape is not None and space.dtype is not None


def _actions(info: EnvInfo, seed: int, count: int) -> Iterator[Any]:
    """Random actions without end: `count` of them, over and over, so that drawing them costs nothing."""
    info.action_space.seed(derive(seed, "explore actions"))
    return itertools.cycle([info.action_space.sample() for _ in range(count)])


def _action_batches(info: EnvInfo, seed: int, copies: int) -> Iterator[Array]:
    """The same as batches [N, ...]."""
    single = _actions(info, seed, 64 * copies)
    return itertools.cycle([np.array(list(itertools.islice(single, copies))) for _ in range(64)])


def _equal(a: Any, b: Any) -> bool:
    """Equality of observations of any space; NaN equals NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    a, b = np.asarray(a), np.asarray(b)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _guarded(
    settings: EnvSettings, episode_seed: int, step: int, call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception:
        raise EnvError(settings.id, 0, 0, episode_seed, step, traceback.format_exc()) from None


def _short(space: gym.Space[Any]) -> str:
    """A space on one line."""
    text = " ".join(str(space).split())
    if len(text) > 100 and isinstance(space, gym.spaces.Box):
        text = f"Box({space.low.min():g}, {space.high.max():g}, {space.shape}, {space.dtype})"
    return text


def render_exploration(exploration: Exploration, console: Console | None = None) -> None:
    """Print it as a table, and the warnings below."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    e, info = exploration, exploration.info
    console = console or Console()
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title=Text(info.id, style="bold"), title_justify="left"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: object, style: str = "") -> None:
        table.add_row(name, Text(str(value), style))  # Text: brackets of spaces are no markup

    row("observations", _short(info.observation_space))
    row("actions", _short(info.action_space))
    row("time limit", "none" if info.max_episode_steps is None else f"{info.max_episode_steps:,} steps")
    row("reward threshold", "none" if info.reward_threshold is None else f"{info.reward_threshold:g}")
    row("render modes", ", ".join(info.render_modes) or "none")
    form = "its transition table" if e.table else "its own (native)" if e.native else "copies stepped one by one"
    row("vector form", form)
    row("info keys", ", ".join(e.info_keys) or "none")
    low, high = e.reward_range
    row("rewards", f"{low:.3g} to {high:.3g} a step" if low < high else f"always {low:.3g}")
    if e.returns:
        count = f"mean of {len(e.returns)} episodes" if len(e.returns) > 1 else "one episode"
        played = f"return {np.mean(e.returns):.4g}, length {np.mean(e.lengths):,.0f} steps ({count})"
    else:
        played = "no episode ended"
    row("random play", played)
    row("speed, one copy", f"{e.single_steps_per_s:,.0f} env steps/s")
    if e.shard_steps_per_s is not None:
        row(f"speed, shard of {SHARD_COPIES}", f"{e.shard_steps_per_s:,.0f} env steps/s in one process")
    for name, misfit in e.algorithms.items():
        row(name, "fits" if misfit is None else f"does not fit: {misfit}", "green" if misfit is None else "yellow")
    console.print(table)
    for warning in e.warnings:
        console.print(Text.assemble(("warning ", "bold yellow"), warning))
    if not e.warnings:
        console.print(Text("no warnings", "green"))
