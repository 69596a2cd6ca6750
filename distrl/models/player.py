"""A trained policy for other programs: observations in, actions out, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distrl.acting.policies import policy_input
from distrl.models.store import find_model, read_model
from distrl.seeding import stream
from distrl.types import Policy


class Player:
    """A policy that acts for one observation or for a batch."""

    def __init__(self, policy: Policy, about: dict[str, Any], seed: int = 0) -> None:
        self.policy, self.about = policy, about
        self.obs_shape, self.obs_dtype = tuple(about["observation"]["shape"]), about["observation"]["dtype"]
        self._rng = stream(seed, "play")

    def act(self, obs: Any, greedy: bool = True) -> Any:
        """The action for one observation `obs_shape`, or the actions [N] for a batch [N, *obs_shape].

        Raises:
            ValueError: the observation has another shape
        """
        batch = policy_input(obs, self.obs_dtype)
        single = batch.shape == self.obs_shape
        if single:
            batch = batch[None]
        if batch.shape[1:] != self.obs_shape:
            raise ValueError(
                f"an observation of shape {batch.shape}; this policy takes {self.obs_shape}, or a batch of them"
            )
        if greedy:
            action = self.policy.greedy(batch)
        else:
            action, _ = self.policy.act(batch, self.policy.draw(self._rng, 1, len(batch))[0])
        if not single:
            return action
        return action[0].item() if action.ndim == 1 else action[0]


def load_policy(path: str | Path, seed: int = 0) -> Player:
    """The policy of a run (its best model), a checkpoint or a model directory; `seed` is of sampled actions.

    Raises:
        UserError: there is no readable model
    """
    return Player(*read_model(find_model(path)), seed)
