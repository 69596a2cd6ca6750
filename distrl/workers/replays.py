"""Replays where agents are in groups with policies of their own: each group learns from what its own agents did."""

from __future__ import annotations

from collections.abc import Sequence

from distrl.acting.make import of_member
from distrl.acting.team import TeamPolicy
from distrl.heartbeat import at_work
from distrl.settings import Config, ReplaySettings
from distrl.types import Arrays, Batch, Fragment, Policy, Priorities
from distrl.workers.replay import Replay


@at_work
class ReplayOfGroups:
    """As `Replay`, which it has one of for each group, in their order, as if the agents of the group were the only ones."""

    def __init__(self, config: Config, number: int, state: Arrays | None, policy: TeamPolicy) -> None:
        self.policy = policy
        self.parts = []
        for group, member in enumerate(policy.members):
            mark = f"{group}."
            own = {name.removeprefix(mark): a for name, a in (state or {}).items() if name.startswith(mark)}
            agents = len(member.agents)
            settings = of_group(config, group, agents, len(policy.agents))
            self.parts.append(Replay(settings, number, own or None, agents_apart(settings, member.policy)))

    def add(self, *fragments: Fragment) -> int:
        """Store each group's part of fragments. Returns the steps inserted ever."""
        own = [[self.policy.fragment_of(group, f) for f in fragments] for group in range(len(self.parts))]
        return sum(part.add(*given) for part, given in zip(self.parts, own, strict=True))

    def sample(self, iteration: int, env_steps: int, by_row: bool = False, *after: int) -> list[Batch]:
        return [part.sample(iteration, env_steps, by_row, *after) for part in self.parts]

    def update_priorities(self, told: Sequence[Priorities]) -> int:
        return sum(part.update_priorities(of_group) for part, of_group in zip(self.parts, told, strict=True))

    def state(self) -> Arrays:
        return {f"{group}.{name}": a for group, part in enumerate(self.parts) for name, a in part.state().items()}


def of_group(config: Config, group: int, agents: int, of: int) -> Config:
    """What the replay of a group of so many agents, `of` all, is made by: its share of the steps, from which it begins, too."""
    replay, learning, rollout = config.replay, config.algorithm.replayed, config.rollout
    assert replay is not None and learning is not None
    least = learning.n_step * rollout.shards * rollout.envs_per_shard * agents + 1
    share = {"capacity": replay.capacity * agents // of, "start": max(least, replay.start * agents // of)}
    scaled: ReplaySettings = replay.model_copy(update=share)
    return of_member(config, group).model_copy(update={"replay": scaled})


def agents_apart(config: Config, policy: Policy) -> int:
    """How many agents of an env copy have steps of their own in a replay."""
    learning = config.algorithm.replayed
    return 1 if learning is not None and learning.joint else policy.obs_layout.rows
