"""A shard of envs of several agents: each agent of each env copy is a column, those of the first copy first.

All else is as for other envs that are stepped one by one (`distrl.envs.single`): the seed of an episode and the actions of
all its agents since are the state of an env copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from distrl.envs.multi import Team, describe_team, make_team
from distrl.envs.single import SingleShard
from distrl.heartbeat import HEART
from distrl.layouts import AGENT, MASK, OBSERVATION, Layout, action_layout, checked_mask, inside, split_mask
from distrl.settings import EnvSettings
from distrl.types import Array, Step


class Seat:
    """Where an agent's rows are written, and its actions read, in all env copies."""

    def __init__(self, name: str, rows: Array, layout: Layout, actions: Layout) -> None:
        """`rows`: [N, *layout.shape], a view of the shard's observations"""
        self.name, self.rows, self.layout, self.actions = name, rows, layout, actions
        # The parts of an observation, with paths within what the agent sees.
        parts = [part for part in layout.parts if part.path[0] == OBSERVATION]
        self.views = [(replace(part, path=part.path[1:]), part.of(rows)) for part in parts]
        self.mask = None if layout.mask is None else layout.mask.of(rows)
        self.central = None if layout.central is None else layout.central.of(rows)
        self.nothing = layout.example()
        one_hot = next(part for part in layout.parts if part.path == (AGENT,)).of(self.nothing)
        one_hot[layout.agents.index(name)] = 1

    def see(self, copy: int, value: Any, info: Mapping[str, Any], acts: bool) -> None:
        """Write down what the agent is told. Raises ValueError where it has another shape, or a mask forbids all."""
        told = split_mask(value)
        for part, view in self.views:
            array = inside(told[OBSERVATION], part)
            if array.shape != part.shape:
                raise ValueError(
                    f"the observation of {self.name} has shape {list(array.shape)}, the space says {list(part.shape)}"
                )
            view[copy] = array
        if self.mask is not None:
            assert self.layout.mask is not None
            mask = info.get(MASK) if self.layout.in_info else told[MASK]
            self.mask[copy] = checked_mask(mask, (), self.layout.mask, over=not acts)

    def actions_of(self, column: Array, wide: bool) -> list[Any]:
        """Its actions as the env takes them, of rows [K, ...]; `wide`: these are bytes, and wider than it needs."""
        own = self.actions.narrow(column) if wide else column
        part = self.actions.parts[0]
        if self.actions.plain and part.kind == "discrete" and not part.shape:
            numbers: list[Any] = own.tolist()
            return numbers
        return list(own.astype(self.actions.dtype)) if self.actions.plain else [self.actions.unpack(row) for row in own]


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
        self.episode, self._steps, self.frame_stack = np.zeros(copies, np.int64), np.zeros(copies, np.int64), 0
        self.envs = []
        for copy in range(copies):
            self.heart.beat(copy, "being made")
            self.envs.append(make_team(settings))
        self.layout = layout = layout or describe_team(settings).obs_layout
        self.agents, self._wide = len(layout.agents), bool(layout.members)
        self.obs = np.zeros((copies * self.agents, *layout.shape), layout.dtype)
        self._float = self.obs.dtype.kind == "f"
        self.seats = []
        for place, name in enumerate(layout.agents):
            own, rows = layout.of(name), self.obs[place :: self.agents]
            rows = rows[:, : own.nbytes].view(own.dtype) if self._wide else rows
            rows = rows.reshape(copies, *own.shape)
            self.seats.append(Seat(name, rows, own, action_layout(self.envs[0].spaces[name][1])))
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
        actions = self._by_copy(action.reshape(self.copies, agents, *action.shape[1:]))
        i = 0
        try:
            for i, team in enumerate(self.envs):
                heart.copy = i
                heart.beats += 1
                own = slice(i * agents, (i + 1) * agents)
                team.advance(actions[i])
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
        for seat in self.seats:
            seat.rows[copy] = seat.nothing
        self.envs[copy].begin(self._episode_seed(copy))
        self._see(copy)

    def _see(self, copy: int) -> None:
        """Write down what was told to agents, and whose turn it is. Those who were told nothing keep what they saw last."""
        team, first = self.envs[copy], copy * self.agents
        self.active[first : first + self.agents] = team.acts
        for name, value in team.seen.items():
            place = team.place[name]
            self.seats[place].see(copy, value, team.infos.get(name, {}), bool(team.acts[place]))
        if any(seat.central is not None for seat in self.seats):
            state = team.state()
            for seat in self.seats:
                if seat.central is not None:
                    seat.central[copy] = state

    def _replay(self, copy: int, actions: Array, check_time: Callable[[], None]) -> Any:
        """As of `SingleShard`, by actions [L, A, ...]; the returns are those of each agent, [A]."""
        self._start_episode(copy)
        total, team = np.zeros(self.agents), self.envs[copy]
        for of_all in self._by_copy(actions):
            self._steps[copy] += 1
            team.advance(of_all)
            self._see(copy)
            total += team.reward
            self.heart.beats += 1
            check_time()
            if team.over:  # a faithful journal never reaches an end
                return np.full(self.agents, np.nan)
        return total

    def _by_copy(self, actions: Array) -> list[Any]:
        """What all agents do, of actions [K, A, ...]: K times A actions as the env takes them."""
        columns = (seat.actions_of(actions[:, place], self._wide) for place, seat in enumerate(self.seats))
        return list(zip(*columns, strict=True))
