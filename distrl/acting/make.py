"""What acts in a run: the algorithm's own policy, within what normalises for it, or one for each group of agents."""

from __future__ import annotations

import numpy as np

from distrl.acting.normalise import NormalisedPolicy, numbers, without
from distrl.acting.team import Member, TeamPolicy
from distrl.errors import UserError
from distrl.layouts import space_text
from distrl.registry import algorithm_module
from distrl.seeding import derive
from distrl.settings import Config
from distrl.types import Array, EnvInfo, Policy


def make_policy(config: Config, info: EnvInfo) -> Policy:
    """What acts in a run, without weights yet. Raises `UserError` for spaces that the config's algorithm cannot take."""
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


def _team(config: Config, info: EnvInfo) -> Policy:
    memory = getattr(config.algorithm, "memory", None)
    if config.replay is not None or memory is not None:
        what = f"algorithm.memory={memory.kind}" if memory is not None else f"algorithm.name={config.algorithm.name}"
        raise UserError(
            f"policies make groups of the agents of {info.id}, each with a policy of its own, which {what} has not. Set "
            "policies=shared, or take ppo or a2c without algorithm.memory."
        )
    names = info.groups.items()
    members = (Member(name, agents, make_policy(config, info.of(agents[0]))) for name, agents in names)
    return TeamPolicy(tuple(members), tuple(info.agents))


def of_member(config: Config, number: int) -> Config:
    """What a member of a team is made by: it draws numbers of its own."""
    return config.model_copy(update={"seed": derive(config.seed, "member", number)})


def initial_weights(config: Config, policy: Policy) -> Array:
    """The weights of version 0, [P], of what `make_policy` made."""
    if isinstance(policy, TeamPolicy):
        parts = [initial_weights(of_member(config, number), m.policy) for number, m in enumerate(policy.members)]
        return np.concatenate(parts)
    module = algorithm_module(config.algorithm.name)
    weights = module.initial_weights(config.algorithm, without(policy), config.seed)
    if isinstance(policy, NormalisedPolicy):
        return policy.join(weights, np.zeros(policy.size), np.ones(policy.size))
    return weights
