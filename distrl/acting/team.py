"""Several policies as one: each acts for a group of the agents of every env copy.

What is seen and done lies in rows of bytes, an agent's own at their beginning (`distrl.layouts.joint_layout`), so that whoever
rolls, keeps and sends them needs not know whose they are. The weights are those of the members, one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np

from distrl.acting.normalise import without
from distrl.acting.policies import from_description
from distrl.layouts import joint_layout, narrowed, widened
from distrl.types import Array, Arrays, Fragment, Policy

BYTES = "raw_action"  # of what a policy says beside the action: it may have another shape for each group


@dataclass(frozen=True)
class Member:
    """A group of agents, and the policy that they share."""

    name: str
    agents: tuple[str, ...]
    policy: Policy


class TeamPolicy:
    """`distrl.types.Policy`; rows [N, ...] are those of all agents of some env copies, copy by copy."""

    def __init__(self, members: tuple[Member, ...], agents: tuple[str, ...]) -> None:
        """`agents`: of all members, in the order of the env"""
        self.members, self.agents = members, agents
        of = {name: member for member in members for name in member.agents}
        self.obs_layout = joint_layout({name: of[name].policy.obs_layout for name in agents})
        self.action_layout = joint_layout({name: of[name].policy.action_layout for name in agents})
        self.sizes = [sum(map(prod, member.policy.shapes().values())) for member in members]
        self._columns: dict[int, list[Array]] = {}

    def of(self, agent: str) -> Policy:
        return next(member.policy for member in self.members if agent in member.agents)

    def columns(self, rows: int) -> list[Array]:
        """Which of the rows of whole env copies are each member's."""
        if rows not in self._columns:
            places = [[self.agents.index(name) for name in member.agents] for member in self.members]
            numbers = np.arange(rows).reshape(-1, len(self.agents))
            self._columns[rows] = [numbers[:, own].ravel() for own in places]
        return self._columns[rows]

    def load(self, vector: Array) -> None:
        for member, own in zip(self.members, self.split(vector), strict=True):
            member.policy.load(own)

    def split(self, vector: Array) -> list[Array]:
        """The members' weights."""
        return np.split(vector, np.cumsum(self.sizes)[:-1])

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Any:
        """A row a step, which holds what each member draws; `copies` are rows."""
        columns = self.columns(copies)
        drawn = [m.policy.draw(rng, steps, len(own)) for m, own in zip(self.members, columns, strict=True)]
        return list(zip(*drawn, strict=True))

    def act(self, obs: Array, noise: Any) -> tuple[Array, Arrays]:
        """Actions [N, W] as bytes; beside them what all members say, `raw_action` as bytes, too."""
        told = [
            member.policy.act(member.policy.obs_layout.narrow(obs[own]), drawn)
            for member, own, drawn in zip(self.members, self.columns(len(obs)), noise, strict=True)
        ]
        extras = [extra | ({} if BYTES in extra else {BYTES: action}) for action, extra in told]
        width = max(prod(extra[BYTES].shape[1:]) * extra[BYTES].itemsize for extra in extras)
        wide = [extra | {BYTES: widened(extra[BYTES], width)} for extra in extras]
        joined = {key: self._join([extra[key] for extra in wide], len(obs)) for key in wide[0]}
        return self._actions([action for action, _ in told], len(obs)), joined

    def greedy(self, obs: Array) -> Array:
        parts = zip(self.members, self.columns(len(obs)), strict=True)
        return self._actions([m.policy.greedy(m.policy.obs_layout.narrow(obs[own])) for m, own in parts], len(obs))

    def _actions(self, actions: list[Array], rows: int) -> Array:
        return self._join([widened(action, self.action_layout.nbytes) for action in actions], rows)

    def _join(self, parts: list[Array], rows: int) -> Array:
        whole = np.zeros((rows, *parts[0].shape[1:]), parts[0].dtype)
        for own, part in zip(self.columns(rows), parts, strict=True):
            whole[own] = part
        return whole

    def fragment_of(self, number: int, fragment: Fragment) -> Fragment:
        """What a member learns from of a fragment of all: as if its agents were the only ones."""
        member, own = self.members[number], self.columns(fragment.reward.shape[1])[number]
        policy = member.policy
        _, column = np.nonzero(fragment.ended)
        extras = {key: array[:, own] for key, array in fragment.extras.items()}
        action = policy.action_layout.narrow(fragment.action[:, own])
        extras[BYTES] = narrowed(extras[BYTES], *without(policy).distribution.raw)  # type: ignore[attr-defined]
        return replace(
            fragment,
            obs=policy.obs_layout.narrow(fragment.obs[:, own]),
            action=action,
            **{name: getattr(fragment, name)[:, own] for name in ("reward", "terminated", "truncated")},
            final_obs=policy.obs_layout.narrow(fragment.final_obs[np.isin(column, own)]),
            extras=extras,
            agents=len(member.agents),
            active=None if fragment.active is None else fragment.active[:, own],
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{m.name}/{name}": shape for m in self.members for name, shape in m.policy.shapes().items()}

    def arrays(self) -> Arrays:
        return {f"{m.name}/{name}": array for m in self.members for name, array in m.policy.arrays().items()}

    def describe(self) -> dict[str, Any]:
        members = [{"name": m.name, "agents": list(m.agents), "policy": m.policy.describe()} for m in self.members]
        return {"type": "team", "agents": list(self.agents), "members": members}

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError where the members are not of these agents, each once."""
        members = tuple(
            Member(str(m["name"]), tuple(map(str, m["agents"])), from_description(m["policy"])) for m in data["members"]
        )
        agents = tuple(map(str, data["agents"]))
        if not members or sorted(name for m in members for name in m.agents) != sorted(agents):
            raise ValueError(f"the members of a team are not of its agents {', '.join(agents)}, each once")
        for member in members:
            if member.policy.obs_layout.agents != member.agents:
                raise ValueError(f"the policy of {member.name} is of other agents than {', '.join(member.agents)}")
        return cls(members, agents)
