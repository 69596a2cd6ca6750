"""What acts in a run: the algorithm's own policy, within what normalises for it, or one for each group of agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from distrl.acting.normalise import NormalisedPolicy, numbers, without
from distrl.acting.opponents import OpposedPolicy, RandomPolicy, ScriptedPolicy
from distrl.acting.recurrent import RecurrentPolicy
from distrl.acting.spaces import action_distribution
from distrl.acting.team import Member, TeamPolicy
from distrl.errors import UserError, did_you_mean
from distrl.layouts import space_text
from distrl.registry import algorithm_module
from distrl.seeding import derive
from distrl.settings import Config, OpponentSettings
from distrl.types import Array, EnvInfo, Policy


def make_policy(config: Config, info: EnvInfo, runs: Mapping[str, Policy] | None = None) -> Policy:
    """What acts in a run, without weights yet. Raises `UserError` for spaces that the config's algorithm cannot take.

    Args:
        runs: policies of other runs that are opponents, by the names that `opponents` gives them
    """
    if config.opponents is not None and config.algorithm.discount is not None:
        own = make_policy(config.model_copy(update={"opponents": None}), info)
        return opposed(config.opponents, own, info, runs or {})
    if info.groups:
        return _team(config, info)
    policy: Policy = algorithm_module(config.algorithm.name).make_policy(config.algorithm, info)
    if not config.normalize.obs:
        return policy
    if not numbers(policy.obs_layout):
        raise UserError(
            f"normalize.obs is true, but observations of {info.id} are {space_text(info.observation_space)}: there are no floating-point "
            "numbers to normalise. Set normalize.obs=false."
        )
    return NormalisedPolicy(policy)


def judged_policy(config: Config, policy: Policy, info: EnvInfo, runs: Mapping[str, Policy]) -> Policy:
    """What plays in evaluations, of a run with this policy: of one that learns from what it does alone, with opponents as well."""
    if config.opponents is None or isinstance(policy, OpposedPolicy):
        return policy
    return opposed(config.opponents, policy, info, runs)


def opposed(opponents: OpponentSettings, own: Policy, info: EnvInfo, runs: Mapping[str, Policy]) -> OpposedPolicy:
    """A policy and those it plays against. Raises `UserError` where one of them cannot play this game.

    Args:
        runs: policies of other runs, by their short names
    """
    if len(info.agents) < 2:
        raise UserError(f"opponents are of several agents, and {info.id} has one alone. Leave them out.")
    layouts = own.obs_layout, own.action_layout
    fixed: dict[str, Any] = {}
    for label in map(opponents.label, opponents.others):
        if label == "random":
            fixed[label] = _random(own, info)
        elif label not in runs:
            fixed[label] = ScriptedPolicy(label, *layouts)
            fixed[label].function  # noqa: B018  it is there
        elif isinstance(without(runs[label]), RecurrentPolicy):
            raise UserError(
                f"The opponent {label!r} remembers (algorithm.memory), which none can here. Take another run."
            )
        elif (runs[label].obs_layout, runs[label].action_layout) != layouts:
            raise UserError(
                f"The opponent {label!r} plays another game than {info.id}: it sees or does other things. Take a run of this game whose "
                "policies and algorithm.critic are as here."
            )
        else:
            fixed[label] = runs[label]
    games = {opponents.label(name): share for name, share in opponents.games.items()}
    evaluation = [opponents.label(name) for name in opponents.evaluation]
    return OpposedPolicy(own, fixed, opponents.slots, games, evaluation, _seats(opponents, own, info))


def _seats(opponents: OpponentSettings, own: Policy, info: EnvInfo) -> dict[str, tuple[str, ...]]:
    """Where the trained policy may sit: agents, or, where these are in groups, groups."""
    there = {m.name: m.agents for m in own.members} if isinstance(own, TeamPolicy) else {n: (n,) for n in info.agents}
    wanted = list(there) if opponents.seats is None else opponents.seats
    if missing := [name for name in wanted if name not in there]:
        near = did_you_mean(missing[0], there)
        raise UserError(f"opponents.seats has {missing[0]!r}; it must be some of {', '.join(there)}.{near}")
    return {name: there[name] for name in wanted}


def _random(own: Policy, info: EnvInfo) -> Policy:
    """Random play, in the place of a policy."""
    if not isinstance(own, TeamPolicy):
        return cast(Policy, RandomPolicy(action_distribution(info), own.obs_layout, own.action_layout))
    return TeamPolicy(
        tuple(Member(m.name, m.agents, _random(m.policy, info.of(m.agents[0]))) for m in own.members), own.agents
    )


def _team(config: Config, info: EnvInfo) -> Policy:
    memory = getattr(config.algorithm, "memory", None)
    if memory is not None:
        raise UserError(
            f"policies make groups of the agents of {info.id}, each with a policy of its own, which algorithm.memory={memory.kind} has "
            "not. Set policies=shared, or algorithm.memory=null."
        )
    names = info.groups.items()
    members = (Member(name, agents, make_policy(config, info.of(agents[0]))) for name, agents in names)
    return TeamPolicy(tuple(members), tuple(info.agents))


def of_member(config: Config, number: int) -> Config:
    """What a member of a team is made by: it draws numbers of its own."""
    return config.model_copy(update={"seed": derive(config.seed, "member", number)})


def initial_weights(config: Config, policy: Policy) -> Array:
    """The weights of version 0, [P], of what `make_policy` made."""
    if isinstance(policy, OpposedPolicy):
        return policy.begun(initial_weights(config, policy.own))
    if isinstance(policy, TeamPolicy):
        parts = [initial_weights(of_member(config, number), m.policy) for number, m in enumerate(policy.members)]
        return np.concatenate(parts)
    module = algorithm_module(config.algorithm.name)
    weights = module.initial_weights(config.algorithm, without(policy), config.seed)
    if isinstance(policy, NormalisedPolicy):
        return policy.join(weights, np.zeros(policy.size), np.ones(policy.size))
    return weights
