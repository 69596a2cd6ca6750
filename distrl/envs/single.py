"""A shard of ordinary environments, stepped one by one.

Every episode starts with `reset(seed=...)`, the seed being a function of run seed, env copy and episode number; so that
seed and the actions since (the journal) are the whole state of a deterministic environment, and rebuilding is replaying.
"""

from __future__ import annotations

import traceback
import zlib
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs.make import make_env
from distrl.errors import EnvError
from distrl.fragments import check_first_stacks
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays
from distrl.types import Step as Step


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
        if self.frame_stack:
            check_first_stacks(settings.id, self.obs, self.frame_stack)
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
