"""A look at an environment before training on it: spaces, limits, speed, which algorithms fit, what is wrong with it.

Asks every algorithm whether it fits, which imports torch; not before `explore` is called.
The checks are those of Stable-Baselines3's `check_env`, and what distrl itself needs: an episode that its seed
and its actions rebuild exactly.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrl.envs import table
from distrl.envs.journal import Journal, Underway
from distrl.envs.make import describe_env, make_env
from distrl.envs.multi import apart
from distrl.envs.native import NativeShard
from distrl.envs.shard import IN_ARRAYS, make_shard
from distrl.errors import EnvError, UserError, users_traceback
from distrl.registry import ALGORITHMS, algorithm_module
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.tools.env_checks import Played, api_warnings, play_warnings, space_warnings
from distrl.tools.random_actions import RandomActions
from distrl.types import Array, EnvInfo, Snapshot

SHARD_COPIES = 16  # copies of the shard whose speed is measured: the default of rollout.envs_per_shard
EPISODES = 5  # random episodes whose mean return is told
CHECK_STEPS = 100  # steps for which two copies must agree
MIN_STEPS = 30  # of random play and of the checks, however slow the env is


@dataclass(frozen=True)
class Exploration:
    """What `explore` found."""

    info: EnvInfo
    native: bool  # has a vector form of its own that distrl uses
    table: bool  # is run from its transition table
    arrays: bool  # of several agents, and written anew here in arrays
    returns: tuple[float, ...]  # of episodes played with random actions
    agents: dict[str, tuple[float, ...]]  # of several agents: the returns of each, whose sums `returns` are
    lengths: tuple[int, ...]  # steps of the same
    reward_range: tuple[float, float]  # smallest and largest reward seen, of any agent
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
    info = apart(describe_env(settings))
    travels = _travels(info)
    played = _play(settings, seed, info, seconds)
    warnings = [*space_warnings(info), *play_warnings(info, played), *api_warnings(settings, info)]
    difference = _first_difference(settings, seed, info, seconds)
    if difference is not None:
        warnings.append(
            f"not deterministic: two copies with the same seed and actions part at {difference}. Runs cannot be "
            "repeated, and episodes under way are lost with their process. Draw all randomness from self.np_random."
        )
    shard_steps_per_s = None
    if travels:
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
        arrays=travels and any(shard.fits(settings, info.obs_layout) for shard in IN_ARRAYS),
        returns=tuple(played.returns),
        agents={name: tuple(returns) for name, returns in played.agents.items()},
        lengths=tuple(played.lengths),
        reward_range=(played.reward_low, played.reward_high),
        info_keys=tuple(sorted(map(str, played.info_keys))),
        single_steps_per_s=_single_speed(settings, seed, info, seconds),
        shard_steps_per_s=shard_steps_per_s,
        algorithms={name: _misfit(name, info) for name in ALGORITHMS.names()},
        warnings=tuple(warnings),
    )


def _play(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> Played:
    played = Played()
    actions = RandomActions(info, seed)
    deadline = time.perf_counter() + seconds

    def enough() -> bool:
        return played.steps >= MIN_STEPS and time.perf_counter() > deadline

    env = make_env(settings)
    try:
        for episode in range(EPISODES):
            return_, length, ended = 0.0, 0, False
            start = derive(seed, "explore", episode)
            obs, extra = _guarded(settings, start, 0, env.reset, seed=start)
            more, by_agent = extra, dict.fromkeys(info.agents, 0.0)
            played.look(obs, info)
            while not ended:
                action = actions.single(obs, more)
                obs, reward, terminated, truncated, more = _guarded(settings, start, length, env.step, action)
                played.look(obs, info)
                played.steps += 1
                played.truncated |= bool(truncated)
                rewards = more["rewards"].values() if info.agents else (reward,)
                played.reward_low = min(played.reward_low, *rewards)
                played.reward_high = max(played.reward_high, *rewards)
                played.finite &= bool(np.isfinite(reward))
                played.info_keys |= extra.keys() | more.keys()
                return_, length, ended = return_ + float(reward), length + 1, terminated or truncated
                for name in by_agent:
                    by_agent[name] += more["rewards"][name]
                if enough():
                    break
            if ended:
                played.returns.append(return_)
                played.lengths.append(length)
                for name, total in by_agent.items():
                    played.agents.setdefault(name, []).append(total)
            if enough():
                break
    finally:
        env.close()
    return played


def _first_difference(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> str | None:
    """Where two fresh copies with one seed and the same actions first differ; None: nowhere."""
    deadline = time.perf_counter() + seconds
    start = derive(seed, "explore", 0)
    envs = [make_env(settings) for _ in range(2)]
    try:
        (obs, extra), (other, _) = (_guarded(settings, start, 0, env.reset, seed=start) for env in envs)
        if not _equal(obs, other):
            return "the first observation"
        actions = RandomActions(info, seed)
        for step in range(CHECK_STEPS):
            action = actions.single(obs, extra)
            one, two = (_guarded(settings, start, step, env.step, copy.deepcopy(action)) for env in envs)
            obs, extra = one[0], one[4]
            for name, a, b in zip(("observation", "reward", "end", "end"), one[:4], two[:4], strict=True):
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
    copies, taken = 2, list[Array]()
    journal, underway = Journal(None), Underway(copies, len(info.agents))
    deadline = time.perf_counter() + seconds
    one, two = (make_shard(settings, seed, 0, copies, info.obs_layout) for _ in range(2))
    try:
        actions = RandomActions(info, seed, copies)
        while len(taken) < MIN_STEPS or (len(taken) < CHECK_STEPS and time.perf_counter() < deadline):
            taken.append(actions.batch(one.obs))
            underway.count(one.step(taken[-1]))
            two.step(actions.batch(two.obs))  # other actions: what the past leaves behind must not show
        for _ in range(7):  # nor how long it was
            two.step(actions.batch(two.obs))
        after = Snapshot(1, underway.returns, underway.lengths, one.arrays())
        by_copy = (len(taken), *underway.returns.shape, *taken[0].shape[1:])
        journal.add(after, np.stack(taken).reshape(by_copy) if one.replays else None)
        snapshot = journal.before(1)
        assert snapshot is not None
        if not two.restore(snapshot).all():
            return False
        for _ in taken:
            action = actions.batch(one.obs)
            a, b = one.step(action), two.step(action)
            if not (_equal(a.obs, b.obs) and _equal(a.reward, b.reward)):
                return False
        return True
    finally:
        one.close()
        two.close()


def _single_speed(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> float:
    env = make_env(settings)
    actions = RandomActions(info, seed)
    episodes = itertools.count()
    seen: Any = None  # observation and info

    def reset() -> None:
        nonlocal seen
        seen = env.reset(seed=derive(seed, "explore", next(episodes)))

    def step() -> None:
        nonlocal seen
        obs, _, terminated, truncated, extra = env.step(actions.single(*seen))
        seen = obs, extra
        if terminated or truncated:
            reset()

    try:
        reset()
        return _rate(step, seconds)
    finally:
        env.close()


def _shard_speed(settings: EnvSettings, seed: int, info: EnvInfo, seconds: float) -> float:
    shard = make_shard(settings, seed, 0, SHARD_COPIES, info.obs_layout)
    actions = RandomActions(info, seed, SHARD_COPIES)
    try:
        return SHARD_COPIES * _rate(lambda: shard.step(actions.batch(shard.obs)), seconds)
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
    try:
        module = algorithm_module(name)
        for of_group in {names: info.of(names[0]) for names in info.groups.values()}.values() or [info]:
            module.make_policy(module.Settings(name=name), of_group)
    except UserError as error:
        return str(error)
    return None


def _travels(info: EnvInfo) -> bool:
    """Whether observations and actions are such that anything here could learn."""
    try:
        return info.obs_layout is not None and info.action_layout is not None
    except UserError:
        return False


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
    except Exception as error:
        raise EnvError(settings.id, 0, 0, episode_seed, step, users_traceback(error)) from None
