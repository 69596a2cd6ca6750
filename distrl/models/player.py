"""A trained policy for other programs: observations in, actions out, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrl.acting.episodes import Acting
from distrl.acting.team import TeamPolicy
from distrl.errors import UserError, shown
from distrl.layouts import OBSERVATION, Layout, inside, split_mask
from distrl.models.store import env_of, find_model, read_model
from distrl.models.trust import check_modules
from distrl.seeding import stream
from distrl.types import Array, Policy

if TYPE_CHECKING:  # what acts needs no gymnasium
    import gymnasium as gym


class Player:
    """A policy that acts for one observation or for a batch.

    One that remembers (`algorithm.memory`) takes what it is given for the next step of the same episodes, until `reset`.
    """

    def __init__(
        self,
        policy: Policy,
        about: dict[str, Any],
        seed: int = 0,
        path: Path = Path(),
        modules: Sequence[str] = (),
    ) -> None:
        """`path`: of the model; `modules`: see `load_policy`"""
        self.policy, self.about, self.path, self.modules = policy, about, path, modules
        self._rng = stream(seed, "play")
        self._checked = False
        self.reset()

    def reset(self) -> None:
        """New episodes begin. It is needed by a policy that remembers, and changes nothing for any other."""
        self._acting: dict[str | None, Acting] = {}  # by agent, each of whom remembers for itself

    def act(self, obs: Any, greedy: bool = True, action_mask: Any = None, agent: str | None = None) -> Any:
        """The action for one observation as the env gives it, or the actions of a batch [N, ...] of them.

        A batch of Dict observations is a Dict of batches, and so are actions. Where the policy has a network of one's own,
        its module is imported.

        Args:
            action_mask: of the info, where the env gives it there
            agent: whose observation it is, of several agents; may be an `observation` with its `action_mask`
        Raises:
            ValueError: the observation has another shape or a NaN, a mask is missing, or a policy that remembers is shown more
                or fewer episodes than before
            UserError: there is no such agent, or acting imports a module that neither lies in this project nor is among `modules`
        """
        if not self._checked:
            check_modules(self.path, None, self.policy, self.modules)
            self._checked = True
        policy, seen = self._of(agent, obs)
        flat = policy.obs_layout.pack(seen, action_mask)
        _refuse_nan(flat, policy.obs_layout)
        batch = flat.reshape(-1, *policy.obs_layout.shape)
        acting = self._acting.get(agent)
        if acting is None or acting.memory is None:
            acting = self._acting[agent] = Acting(policy, len(batch))
        elif len(batch) != len(acting.memory):
            raise ValueError(
                f"{len(batch)} observations, after {len(acting.memory)} of the step before: this policy remembers its "
                "episodes. Call reset() where new ones begin."
            )
        if greedy:
            action = acting.greedy(batch)
        else:
            action, _ = acting.act(batch, policy.draw(self._rng, 1, len(batch))[0])
        single = flat.shape == policy.obs_layout.shape
        return policy.action_layout.unpack(action[0] if single else action)

    def _of(self, agent: str | None, obs: Any) -> tuple[Policy, Any]:
        """The policy that acts for an agent, and what it is given."""
        agents, policy = self.policy.obs_layout.agents, self.policy
        if agent not in (agents or (None,)):
            raise UserError(
                f"agent is {shown(agent)}; it must be {'one of ' + ', '.join(agents) if agents else 'left out, as this env has one alone'}."
            )
        if agent is None:
            return policy, obs
        policy = policy.of(agent) if isinstance(policy, TeamPolicy) else policy
        layout = policy.obs_layout
        part = next(part for part in layout.parts if part.path[0] == OBSERVATION)
        first = inside(split_mask(obs), part)
        return policy, layout.seen_by(agent, obs, first.shape[: first.ndim - len(part.shape)])

    def make_env(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """One copy of the env that the policy was trained on, within its wrappers; its observations are what `act` takes.

        It imports the modules that the env and its wrappers lie in.

        Raises:
            UserError: it cannot be made here, or is of a module that neither lies in this project nor is among `modules`
        """
        from distrl.envs.make import make_env

        env = env_of(self.path, self.about)
        check_modules(self.path, env, None, self.modules)
        return make_env(env, render_mode)


def _refuse_nan(flat: Array, layout: Layout) -> None:
    """What a policy would answer to NaN is an action like any other, and nobody would see that it means nothing."""
    for part in layout.parts:
        found = part.of(flat)
        if found.dtype.kind == "f" and (missing := np.argwhere(np.isnan(found))).size:
            where = f"{part.name!r} of the observation" if part.path else "the observation"
            raise ValueError(
                f"{where} has {len(missing)} NaN, the first at {missing[0].tolist()}; a policy acts by numbers alone. Look "
                "at where the observation comes from, or put a number there that training had, too."
            )


def load_policy(path: str | Path, seed: int = 0, modules: Sequence[str] = ()) -> Player:
    """The policy of a run (its best model), a checkpoint or a model directory. Imports no module that the model names.

    Args:
        seed: of sampled actions
        modules: what may be imported to make its env and to act, beside this project, distrl and the packages it knows
    Raises:
        UserError: there is no readable model
    """
    model = find_model(path)
    return Player(*read_model(model), seed, model, modules)
