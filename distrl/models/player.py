"""A trained policy for other programs: observations in, actions out, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrl.models.store import env_of, find_model, read_model
from distrl.models.trust import check_modules
from distrl.seeding import stream
from distrl.types import Policy

if TYPE_CHECKING:  # what acts needs no gymnasium
    import gymnasium as gym


class Player:
    """A policy that acts for one observation or for a batch."""

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

    def act(self, obs: Any, greedy: bool = True, action_mask: Any = None) -> Any:
        """The action for one observation as the env gives it, or the actions of a batch [N, ...] of them.

        A batch of Dict observations is a Dict of batches, and so are actions. Where the policy has a network of one's own,
        its module is imported.

        Args:
            action_mask: of the info, where the env gives it there
        Raises:
            ValueError: the observation has another shape, or a mask is missing
            UserError: acting imports a module that neither lies in this project nor is among `modules`
        """
        if not self._checked:
            check_modules(self.path, None, self.policy, self.modules)
            self._checked = True
        flat = self.policy.obs_layout.pack(obs, action_mask)
        batch = flat.reshape(-1, *self.policy.obs_layout.shape)
        if greedy:
            action = self.policy.greedy(batch)
        else:
            action, _ = self.policy.act(batch, self.policy.draw(self._rng, 1, len(batch))[0])
        single = flat.shape == self.policy.obs_layout.shape
        return self.policy.action_layout.unpack(action[0] if single else action)

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
