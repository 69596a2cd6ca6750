"""A shard: a fixed group of env copies that are stepped together, and can be rebuilt anywhere.

Episodes start again by themselves, in the same step: `obs` then already shows the new episode, and the true last
observation of the old one is in `final_obs`. No step is ever a reset.

`SingleShard` steps ordinary environments one by one. Every episode starts with `reset(seed=...)`, the seed being a
function of run seed, env copy and episode number; so that seed and the actions since (the journal) are the whole
state of a deterministic environment, and rebuilding is replaying.

`NativeShard` steps an environment's own vector form, whose state lies in arrays; they are the snapshot.
`distrl.envs.table.TableShard` does the same for environments whose transition table is known.
"""

from __future__ import annotations

import traceback
import zlib
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from distrl.config import EnvSettings
from distrl.envs import Step as Step
from distrl.envs import find_spec, make_env, table
from distrl.errors import EnvError, UserError
from distrl.seeding import derive
from distrl.types import Array, Arrays


class Shard(Protocol):
    """N env copies; `obs` is what the policy acts on next."""

    obs: Array
    frame_stack: int  # > 0: observations are stacks of so many frames; see distrl.frames
    current: int  # the env copy being stepped, for a watchdog to read; -1: all of them at once

    def step(self, action: Array) -> Step: ...

    def snapshot(self) -> Arrays: ...

    def restore(self, arrays: Arrays) -> Array:
        """Take up a `snapshot()`. Returns [N] bool: rebuilt exactly; elsewhere a fresh episode was started."""

    def close(self) -> None: ...


def make_shard(settings: EnvSettings, seed: int, shard: int, copies: int) -> Shard:
    """Shard number `shard`: as a table MDP or in its native vector form where there is one and `env.vectorize` allows it."""
    if settings.vectorize == "table" or (settings.vectorize == "auto" and not settings.report and table.fits(settings)):
        return table.TableShard(settings, seed, shard, copies)
    native = NativeShard.fits(settings, copies)
    if settings.vectorize == "native" and not native:
        raise UserError(
            f"env.vectorize is 'native', but {settings.id} has no vector form that can be used. Set it to 'auto'."
        )
    if native and settings.vectorize != "single":
        return NativeShard(settings, seed, shard, copies)
    return SingleShard(settings, seed, shard, copies)


class SingleShard:
    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int) -> None:
        self.settings, self.seed, self.shard, self.copies = settings, seed, shard, copies
        self.current = 0
        self.episode = np.zeros(copies, np.int64)
        self._journal: list[Array] = []  # of each copy: actions of its episode up to the last snapshot
        self._log: list[Array] = []  # the action batches since then
        self._replayed: int | None = None  # the step of a journal that is being replayed
        self._since = np.zeros(copies, np.int64)  # of each copy: where in the log its episode goes on
        self.envs = [make_env(settings) for _ in range(copies)]
        self.frame_stack = int(self.envs[0].metadata.get("frame_stack", 0))
        space = self.envs[0].observation_space
        self.discrete = isinstance(self.envs[0].action_space, gym.spaces.Discrete)
        self.action_dtype = self.envs[0].action_space.dtype
        self.action_shape = self.envs[0].action_space.shape or ()
        self.obs = np.zeros((copies, *(space.shape or ())), space.dtype)
        for copy in range(copies):
            self._guard(copy, self._start_episode, copy)
        self._journal = [self._no_actions() for _ in range(copies)]

    def step(self, action: Array) -> Step:
        n = self.copies
        reward = np.empty(n, np.float64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        final_obs: list[Array] = []
        infos: list[dict[str, float]] = []
        self._log.append(action)
        actions = action.tolist() if self.discrete else action
        i = 0
        try:
            for i, env in enumerate(self.envs):
                self.current = i
                obs, reward[i], term, trunc, info = env.step(actions[i])
                if term or trunc:
                    terminated[i], truncated[i] = term, trunc and not term
                    final_obs.append(np.array(obs, self.obs.dtype))
                    infos.append(self._reported(info))
                    self.episode[i] += 1
                    self._since[i] = len(self._log)
                    self._journal[i] = self._journal[i][:0]
                    self._start_episode(i)
                else:
                    self.obs[i] = obs
        except Exception:
            raise self._error(i) from None
        return Step(self.obs, reward, terminated, truncated, final_obs, infos)

    def snapshot(self) -> Arrays:
        log = np.stack(self._log) if self._log else self._no_actions()[:, None]
        self._journal = [
            np.concatenate([old, log[start:, i]]) if len(log) > start else old
            for i, (old, start) in enumerate(zip(self._journal, self._since.tolist(), strict=True))
        ]
        self._log.clear()
        self._since[:] = 0
        return {
            "episode": self.episode.copy(),
            "length": np.array([len(journal) for journal in self._journal]),
            "action": np.concatenate(self._journal),
            "obs_digest": self._digests(),
        }

    def restore(self, arrays: Arrays) -> Array:
        self.episode = arrays["episode"].copy()
        self._log.clear()
        self._since[:] = 0
        stops = np.cumsum(arrays["length"])
        self._journal = [a.astype(self.action_dtype) for a in np.split(arrays["action"], stops[:-1])]
        for copy in range(self.copies):
            self._guard(copy, self._replay, copy)
            self._replayed = None
        exact: Array = self._digests() == arrays["obs_digest"]
        for copy in np.flatnonzero(~exact).tolist():
            self.episode[copy] += 1
            self._journal[copy] = self._no_actions()
            self._guard(copy, self._start_episode, copy)
        return exact

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _reported(self, info: dict[str, Any]) -> dict[str, float]:
        for name in self.settings.report:
            if name not in info:
                raise KeyError(
                    f"env.report names {name!r}; the infos of {self.settings.id} hold {', '.join(map(repr, info))}"
                )
        return {name: float(info[name]) for name in self.settings.report}

    def _start_episode(self, copy: int) -> None:
        obs, _ = self.envs[copy].reset(seed=self._episode_seed(copy))
        self.obs[copy] = obs

    def _replay(self, copy: int) -> None:
        self._start_episode(copy)
        actions = self._journal[copy].tolist() if self.discrete else self._journal[copy]
        for self._replayed, action in enumerate(actions, start=1):
            obs, _, terminated, truncated, _ = self.envs[copy].step(action)
            self.obs[copy] = obs
            if terminated or truncated:  # a faithful journal never reaches an end
                break

    def _episode_seed(self, copy: int) -> int:
        return derive(self.seed, "episode", self.shard * self.copies + copy, int(self.episode[copy]))

    def _digests(self) -> Array:
        return np.array([zlib.crc32(np.ascontiguousarray(obs).tobytes()) for obs in self.obs], np.uint32)

    def _no_actions(self) -> Array:
        return np.zeros((0, *self.action_shape), self.action_dtype)

    def _guard(self, copy: int, call: Any, *args: Any) -> None:
        self.current = copy
        try:
            call(*args)
        except Exception:
            raise self._error(copy) from None

    def _error(self, copy: int) -> EnvError:
        if not self._journal:
            step = 0
        elif self._replayed is not None:
            step = self._replayed
        else:
            step = len(self._journal[copy]) + len(self._log) - int(self._since[copy])
        return EnvError(
            self.settings.id,
            self.shard,
            self.shard * self.copies + copy,
            self._episode_seed(copy),
            step,
            traceback.format_exc(),
        )


class NativeShard:
    """An environment's own vector form, made to reset in the same step.

    Such environments reset in the step after an end. Here the ended columns of the state arrays are overwritten
    at once with those of a second instance, freshly reset with a seed of its own; so no step is a dummy.
    """

    @staticmethod
    def fits(settings: EnvSettings, copies: int) -> bool:
        """Whether there is a vector form, and it keeps its whole state in arrays whose last axis is the env copy."""
        spec = find_spec(settings.id)
        if settings.report:  # vector forms tell nothing in their infos
            return False
        if spec.vector_entry_point is None or spec.kwargs.keys() - {"sutton_barto_reward"}:
            return False
        env = _make_native(settings, copies)
        if env.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.NEXT_STEP:
            return False
        env.reset(seed=0)
        arrays = [value for value in vars(env.unwrapped).values() if isinstance(value, np.ndarray)]
        return bool(arrays) and all(array.shape[-1:] == (copies,) for array in arrays)

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int) -> None:
        self.settings, self.seed, self.shard, self.copies = settings, seed, shard, copies
        self.current, self.frame_stack = -1, 0
        self.env, self.donor = _make_native(settings, copies), _make_native(settings, copies)
        self.resets = 1  # how often the donor was asked: the number of the next seed
        self.obs = self._reset(self.env, 0)
        self.names = [name for name, value in vars(self.env.unwrapped).items() if isinstance(value, np.ndarray)]

    def step(self, action: Array) -> Step:
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
            self.obs = obs
            truncated &= ~terminated
            ended = terminated | truncated
            final_obs = obs[ended]
            if len(final_obs):
                fresh = self._reset(self.donor, self.resets)
                self.resets += 1
                source, target = vars(self.donor.unwrapped), vars(self.env.unwrapped)
                for name in self.names:
                    target[name][..., ended] = source[name][..., ended]
                obs[ended] = fresh[ended]
        except Exception:
            seed = derive(self.seed, "native episode", self.shard, self.resets)
            raise EnvError(
                self.settings.id, self.shard, self.shard * self.copies, seed, -1, traceback.format_exc()
            ) from None
        return Step(obs, reward.astype(np.float64), terminated, truncated, final_obs)

    def snapshot(self) -> Arrays:
        arrays = {f"state.{name}": getattr(self.env.unwrapped, name).copy() for name in self.names}
        return arrays | {"obs": self.obs.copy(), "resets": np.array(self.resets)}

    def restore(self, arrays: Arrays) -> Array:
        for name in self.names:
            setattr(self.env.unwrapped, name, arrays[f"state.{name}"].copy())
        self.obs = arrays["obs"].copy()
        self.resets = int(arrays["resets"])
        return np.ones(self.copies, bool)

    def close(self) -> None:
        self.env.close()
        self.donor.close()

    def _reset(self, env: gym.vector.VectorEnv[Any, Any, Any], number: int) -> Array:
        obs: Array = env.reset(seed=derive(self.seed, "native episode", self.shard, number))[0]
        return obs


def _make_native(settings: EnvSettings, copies: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    kwargs = dict(settings.kwargs)
    spec = find_spec(settings.id)
    limit = settings.max_episode_steps or spec.max_episode_steps
    if limit is not None:
        kwargs.setdefault("max_episode_steps", limit)
    return gym.make_vec(spec, copies, vectorization_mode="vector_entry_point", **kwargs)
