"""A shard of ordinary environments, stepped one by one.

Every episode starts with `reset(seed=...)`, the seed being a function of run seed, env copy and episode number; so that
seed and the actions since (the journal) are the whole state of a deterministic environment, and rebuilding is replaying.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs.make import close_env, make_env
from distrl.envs.wrappers import flat
from distrl.errors import EnvError, UserError, shown, users_traceback
from distrl.fragments import check_first_stacks
from distrl.heartbeat import HEART
from distrl.layouts import BadMask, Layout
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot
from distrl.types import Step as Step


class SingleShard:
    replays = True
    active: Array | None = None

    def __init__(
        self,
        settings: EnvSettings,
        seed: int,
        shard: int,
        copies: int,
        layout: Layout | None = None,
    ) -> None:
        """`layout`: of observations; None: that of the env's spaces."""
        self.settings, self.seed, self.shard, self.copies = settings, seed, shard, copies
        self.heart = HEART
        self.episode = np.zeros(copies, np.int64)
        self._steps = np.zeros(copies, np.int64)  # of the episode under way, with the one that is being taken
        self.envs: list[gym.Env[Any, Any]] = []
        for copy in range(copies):
            self.heart.beat(copy, "being made")
            self.envs.append(flat(make_env(settings), layout))
        self.frame_stack = int(self.envs[0].metadata.get("frame_stack", 0))
        space = self.envs[0].observation_space
        self.discrete = isinstance(self.envs[0].action_space, gym.spaces.Discrete)
        self.action_dtype = self.envs[0].action_space.dtype
        self._shape = tuple(space.shape or ())
        self.obs = np.zeros((copies, *self._shape), space.dtype)
        self._float = self.obs.dtype.kind == "f"
        for copy in range(copies):
            self.heart.beat(copy, "its first reset")
            self._guard(copy, self._start_episode, copy)
        self._refuse_nan()
        if self.frame_stack:
            check_first_stacks(settings.id, self.obs, self.frame_stack)

    def step(self, action: Array) -> Step:
        n, heart = self.copies, self.heart
        reward = np.empty(n, np.float64)
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        final_obs: list[Array] = []
        infos: list[dict[str, float]] = []
        self._steps += 1
        actions = self._for_env(action)
        i = 0
        try:
            for i, env in enumerate(self.envs):
                heart.copy = i
                heart.beats += 1
                obs, earned, term, trunc, info = env.step(actions[i])
                if earned is None:  # which NumPy would take for a NaN
                    raise TypeError("the reward is None, where a number is due")
                reward[i] = earned
                if getattr(obs, "shape", None) != self._shape:
                    obs = self._fitting(obs)
                if term or trunc:
                    terminated[i], truncated[i] = term, trunc and not term
                    final_obs.append(np.array(obs, self.obs.dtype))
                    infos.append(self._reported(info))
                    self.episode[i] += 1
                    self._start_episode(i)
                else:
                    self.obs[i] = obs
        except Exception as error:
            raise self._error(i, error) from None
        self._refuse_nan()
        return Step(self.obs, reward, terminated, truncated, final_obs, infos)

    def arrays(self) -> Arrays:
        return {"episode": self.episode.copy(), "obs_digest": self._digests()}

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        self.episode = snapshot.env["episode"].copy()
        self._steps[:] = 0
        started, total = time.perf_counter(), int(snapshot.lengths.sum())

        def check_time() -> None:
            if time.perf_counter() - started > timeout_s:
                raise self._too_long(timeout_s, total)

        returns = np.zeros(snapshot.returns.shape)
        for copy, actions in enumerate(np.split(snapshot.env["action"], np.cumsum(snapshot.lengths)[:-1])):
            self.heart.beat(copy, f"replaying its {len(actions):,} steps")
            returns[copy] = self._guard(copy, self._replay, copy, actions, check_time)
        same_returns = returns.view(np.int64) == snapshot.returns.view(np.int64)  # in every bit, also of a NaN
        exact: Array = same_returns.reshape(self.copies, -1).all(axis=1) & (
            self._digests() == snapshot.env["obs_digest"]
        )
        for copy in np.flatnonzero(~exact).tolist():
            self.episode[copy] += 1
            self.heart.beat(copy, "a fresh episode")
            self._guard(copy, self._start_episode, copy)
        return exact

    def close(self) -> None:
        for env in self.envs:
            close_env(env, self.settings.id)

    def _reported(self, info: dict[str, Any]) -> dict[str, float]:
        for name in self.settings.report:
            if name not in info:
                raise KeyError(
                    f"env.report names {name!r}; the infos of {self.settings.id} hold {', '.join(map(repr, info))}"
                )
        return {name: float(info[name]) for name in self.settings.report}

    def _start_episode(self, copy: int) -> None:
        self._steps[copy] = 0
        obs, _ = self.envs[copy].reset(seed=self._episode_seed(copy))
        self.obs[copy] = self._fitting(obs)

    def _fitting(self, obs: Any) -> Array:
        """An observation that has the space's shape; NumPy would spread another one over it. Raises ValueError."""
        array = np.asarray(obs)
        if array.shape != self._shape:
            raise ValueError(f"the observation has shape {list(array.shape)}, the space says {list(self._shape)}")
        return array

    def _refuse_nan(self) -> None:
        """Raise `EnvError` where an observation holds what is no number, which a table takes for a state."""
        if self._float and (wrong := np.isnan(self.obs)).any():
            copy = int(np.flatnonzero(wrong.reshape(self.copies, -1).any(axis=1))[0])
            raise self._error(copy, ValueError(f"the observation holds NaN: {shown(self.obs[copy])}"))

    def _replay(self, copy: int, actions: Array, check_time: Callable[[], None]) -> Any:
        """Bring an env copy to where its episode was by the actions since it began; returns its return so far."""
        self._start_episode(copy)
        total = 0.0
        for action in self._for_env(actions):
            self._steps[copy] += 1
            obs, reward, terminated, truncated, _ = self.envs[copy].step(action)
            self.obs[copy] = obs
            total += float(reward)
            self.heart.beats += 1
            check_time()
            if terminated or truncated:  # a faithful journal never reaches an end
                return math.nan
        return total

    def _for_env(self, actions: Array) -> Any:
        """Actions as the env takes them, whichever type they came or were kept in, for it to do with as it likes."""
        return actions.tolist() if self.discrete else actions.astype(self.action_dtype)

    def _episode_seed(self, copy: int) -> int:
        return derive(self.seed, "episode", self.shard * self.copies + copy, int(self.episode[copy]))

    def _digests(self) -> Array:
        return np.array(
            [zlib.crc32(np.ascontiguousarray(obs).tobytes()) for obs in self.obs.reshape(self.copies, -1)], np.uint32
        )

    def _guard(self, copy: int, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except UserError:
            raise
        except Exception as error:
            raise self._error(copy, error) from None

    def _too_long(self, timeout_s: float, total: int) -> UserError:
        done = int(self._steps.sum())
        needed = timeout_s * total / done
        return UserError(
            f"Rebuilding shard {self.shard} of {self.settings.id} takes longer than cluster.rebuild_timeout_s={timeout_s:g}: "
            f"{done:,} of the {total:,} steps of its episodes under way were replayed. Some {needed:,.0f} s would do: go on "
            f"with 'distrl train --resume RUN cluster.rebuild_timeout_s={math.ceil(1.5 * needed)}', which changes no weights. "
            "In a new run, shorter episodes (env.max_episode_steps) and fewer env copies in a shard "
            "(rollout.envs_per_shard) are rebuilt sooner."
        )

    def _error(self, copy: int, error: Exception) -> EnvError | UserError:
        number, seed, step = self.shard * self.copies + copy, self._episode_seed(copy), int(self._steps[copy])
        if isinstance(error, BadMask):
            return UserError(
                f"{self.settings.id}, env copy {number}, step {step} of the episode of seed {seed}: {error}. "
                "A mask has a number for every choice, and is 0 where that is forbidden; of each choice something must be left."
            )
        return EnvError(self.settings.id, self.shard, number, seed, step, users_traceback(error))
