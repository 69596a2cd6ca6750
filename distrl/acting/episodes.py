"""Acting through whole episodes: what a policy remembers of them is kept here, so that policies stay pure functions."""

from __future__ import annotations

import numpy as np

from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.recurrent import RecurrentPolicy
from distrl.types import Array, Arrays, Policy


class Acting:
    """A policy that acts in N env copies at once, and what it remembers of their episodes under way."""

    def __init__(self, policy: Policy, copies: int) -> None:
        """New episodes: nothing is remembered yet."""
        inner = without(policy)
        self.policy, self.recurrent = policy, inner if isinstance(inner, RecurrentPolicy) else None
        self.memory: Array | None = None  # [N, M] of a recurrent policy
        if self.recurrent is not None:
            self.memory = self.recurrent.network.nothing(copies)

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """As `Policy.act`."""
        if self.recurrent is None:
            return self.policy.act(obs, noise)
        return self.recurrent.sampled(self._outputs(obs), obs, noise)

    def greedy(self, obs: Array) -> Array:
        """As `Policy.greedy`."""
        return self.policy.greedy(obs) if self.recurrent is None else self.recurrent.best(self._outputs(obs), obs)

    def forget(self, ended: Array) -> None:
        """The episodes of these env copies, [N] bool, are over."""
        if self.memory is not None:
            self.memory = np.where(ended[:, None], np.float32(0), self.memory)

    def arrays(self) -> Arrays:
        """What is remembered, [1, N, M], for the `extras` of a fragment that begins here; nothing where nothing can be."""
        return {} if self.memory is None else {"memory": self.memory[None]}

    def _outputs(self, obs: Array) -> Array:
        """Of the network, which then remembers the observations, too."""
        assert self.recurrent is not None and self.memory is not None
        seen = self.policy.normalised(obs) if isinstance(self.policy, NormalisedPolicy) else obs
        outputs, self.memory = self.recurrent.network.step(seen, self.memory)
        return outputs
