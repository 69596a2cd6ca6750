"""A shard of envs of several agents: each agent of each env copy is a column, those of the first copy first.

All else is as for other envs that are stepped one by one (`distrl.envs.single`): the seed of an episode and the actions of
all its agents since are the state of an env copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from distrl.envs.multi import Team, describe_team, make_team
from distrl.envs.single import SingleShard
from distrl.heartbeat import HEART
from distrl.layouts import AGENT, MASK, OBSERVATION, Layout, checked_mask, inside, split_mask
from distrl.settings import EnvSettings
from distrl.types import Array, Step


class TeamShard(SingleShard):
    """N env copies of A agents: N A columns."""

    envs: list[Team]  # type: ignore[assignment]
    active: Array

    def __init__(
        self,
        settings: EnvSettings,
        seed: int,
        shard: int,
        copies: int,
        layout: Layout | None = None,
    ) -> None:
        self.settings, self.seed, self.shard, self.copies = settings, seed, shard, copies
        self.heart = HEART
        info = describe_team(settings)
        self.layout, self.actions = layout or info.obs_layout, info.action_layout
        self.episode, self._steps, self.frame_stack = np.zeros(copies, np.int64), np.zeros(copies, np.int64), 0
        self.envs = []
        for copy in range(copies):
            self.heart.beat(copy, "being made")
            self.envs.append(make_team(settings))
        self.agents = len(self.layout.agents)
        self.discrete = self.actions.plain and self.actions.parts[0].kind == "discrete" and not self.actions.shape
        self.action_dtype = np.dtype(self.actions.dtype)
        self._nothing = self.layout.example()
        self.obs = np.stack([self._nothing] * (copies * self.agents))
        self._float = self.obs.dtype.kind == "f"
        # Where the parts of an observation are written to, as views; their paths are those within what an agent sees.
        parts = [part for part in self.layout.parts if part.path[0] == OBSERVATION]
        self._views = [(replace(part, path=part.path[1:]), part.of(self.obs)) for part in parts]
        own = next(part for part in self.layout.parts if part.path == (AGENT,))
        self._one_hot, self._which = own.of(self.obs), np.tile(np.eye(self.agents), (copies, 1))
        self._mask = None if self.layout.mask is None else self.layout.mask.of(self.obs)
        self._central = None if self.layout.central is None else self.layout.central.of(self.obs)
        self.active = np.zeros(copies * self.agents, bool)
        for copy in range(copies):
            self.heart.beat(copy, "its first reset")
            self._guard(copy, self._start_episode, copy)
        self._refuse_nan()

    def step(self, action: Array) -> Step:
        columns, agents, heart = len(self.obs), self.agents, self.heart
        reward = np.empty(columns, np.float64)
        terminated, truncated = np.zeros(columns, bool), np.zeros(columns, bool)
        final_obs: list[Array] = []
        self._steps += 1
        actions = self._for_env(action)
        i = 0
        try:
            for i, team in enumerate(self.envs):
                heart.copy = i
                heart.beats += 1
                own = slice(i * agents, (i + 1) * agents)
                team.advance(actions[own])
                self._see(i)
                reward[own], terminated[own], truncated[own] = team.reward, team.terminated, team.truncated
                ended = team.terminated | team.truncated
                if ended.any():
                    final_obs.extend(self.obs[own][ended])
                if team.over:
                    self.episode[i] += 1
                    self._start_episode(i)
        except Exception as error:
            raise self._error(i, error) from None
        self._refuse_nan()
        return Step(self.obs, reward, terminated, truncated, final_obs)

    def _start_episode(self, copy: int) -> None:
        self._steps[copy] = 0
        own = slice(copy * self.agents, (copy + 1) * self.agents)
        self.obs[own] = self._nothing
        self._one_hot[own] = self._which[own]
        self.envs[copy].begin(self._episode_seed(copy))
        self._see(copy)

    def _see(self, copy: int) -> None:
        """Write down what was told to agents, and whose turn it is. Those who were told nothing keep what they saw last."""
        team, first = self.envs[copy], copy * self.agents
        self.active[first : first + self.agents] = team.acts
        if self._central is not None:
            self._central[first : first + self.agents] = team.state()
        for name, value in team.seen.items():
            place = team.place[name]
            row = first + place
            told = split_mask(value)
            for part, view in self._views:
                array = inside(told[OBSERVATION], part)
                if array.shape != part.shape:
                    raise ValueError(
                        f"the observation of {name} has shape {list(array.shape)}, the space says {list(part.shape)}"
                    )
                view[row] = array
            if self._mask is not None:
                assert self.layout.mask is not None
                mask = team.infos[name].get(MASK) if self.layout.in_info else told[MASK]
                self._mask[row] = checked_mask(mask, (), self.layout.mask, over=not team.acts[place])

    def _replay(self, copy: int, actions: Array, check_time: Callable[[], None]) -> Any:
        """As of `SingleShard`, by actions [L, A, ...]; the returns are those of each agent, [A]."""
        self._start_episode(copy)
        total, team = np.zeros(self.agents), self.envs[copy]
        for of_all in actions:
            self._steps[copy] += 1
            team.advance(self._for_env(of_all))
            self._see(copy)
            total += team.reward
            self.heart.beats += 1
            check_time()
            if team.over:  # a faithful journal never reaches an end
                return np.full(self.agents, np.nan)
        return total

    def _for_env(self, actions: Array) -> Any:
        if self.actions.plain:
            return super()._for_env(actions)
        return [self.actions.unpack(action) for action in actions]
