"""Networks and policies that remember: a GRU between the hidden layers and the head, in NumPy.

What is remembered, [N, H], is handed in and out; who keeps it, and forgets it where an episode ends, is
`distrl.acting.episodes.Acting`. The torch half is `distrl.learning.networks.RecurrentNetwork`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from distrl.acting.distributions import Distribution
from distrl.acting.distributions import from_description as distribution_of
from distrl.acting.network import Network, NetworkSpec, unflatten
from distrl.acting.policies import StochasticPolicy
from distrl.descriptions import Count
from distrl.layouts import Layout
from distrl.types import Array


@dataclass(frozen=True)
class RecurrentSpec(NetworkSpec):
    """A network whose head sees what a GRU remembers of the features so far, the newest among them."""

    memory: Count = 64  # H: numbers remembered of an episode

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The layers `memory.*` lie behind those of `NetworkSpec`."""
        shapes = super().shapes()
        features, gates = shapes["head.weight"][1], 3 * self.memory
        own = {"memory.input.weight": (gates, features), "memory.input.bias": (gates,)}
        own |= {"memory.hidden.weight": (gates, self.memory), "memory.hidden.bias": (gates,)}
        return {**shapes, "head.weight": (self.outputs, self.memory), **own}

    def initial(self, rng: np.random.Generator, head_gain: float) -> Array:
        """As of `NetworkSpec`, with a gain of 1 in the GRU."""
        vector = super().initial(rng, head_gain)
        arrays = unflatten(vector, self.shapes())  # views
        for name in ("memory.input.weight", "memory.hidden.weight"):
            arrays[name] /= np.float32(2**0.5)
        return vector


class RecurrentNetwork(Network):
    """The NumPy forward of a `RecurrentSpec`, a step at a time."""

    spec: RecurrentSpec

    def __call__(self, obs: Array) -> Array:
        """Outputs [N, outputs + free] for the first observations of episodes, of which nothing is remembered yet."""
        return self.step(obs, self.nothing(len(obs)))[0]

    def nothing(self, copies: int) -> Array:
        """What is remembered before an episode, [N, H]: zeros."""
        return np.zeros((copies, self.spec.memory), np.float32)

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Outputs [N, outputs + free] for flat observations [N, ...], and what is remembered after them, [N, H].

        A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) as `torch.nn.GRU` computes it, of features x:

            r, z = sigmoid(W x + U h),    n = tanh(W_n x + r * (U_n h)),    h' = (1 - z) * n + z * h
        """
        given = self._linear("memory.input", self.features(obs)[-1])
        kept = self._linear("memory.hidden", memory)
        size = self.spec.memory
        gates = np.float32(0.5) * (np.tanh(np.float32(0.5) * (given + kept)[:, : 2 * size]) + np.float32(1))
        reset, update = gates[:, :size], gates[:, size:]
        new = np.tanh(given[:, 2 * size :] + reset * kept[:, 2 * size :])
        memory = new + update * (memory - new)
        return self.outputs(memory), memory


class RecurrentPolicy(StochasticPolicy):
    """pi(a|s, h): as a `StochasticPolicy`, by what is remembered of the episode, too.

    `act` and `greedy` act as on the first observation of an episode.
    """

    network: RecurrentNetwork

    def __init__(
        self, spec: RecurrentSpec, distribution: Distribution, obs_layout: Layout, action_layout: Layout
    ) -> None:
        super().__init__(spec, distribution, obs_layout, action_layout)
        self.network = RecurrentNetwork(spec)

    @classmethod
    def of(cls, policy: StochasticPolicy, size: int) -> Self:
        """The policy with a memory of so many numbers."""
        assert isinstance(policy.network.spec, NetworkSpec)
        spec = RecurrentSpec(**vars(policy.network.spec), memory=size)
        return cls(spec, policy.distribution, policy.obs_layout, policy.action_layout)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"type": "recurrent"}

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            RecurrentSpec.from_description(data["network"]),
            distribution_of(data["distribution"]),
            Layout.from_description(data["obs_layout"]),
            Layout.from_description(data["action_layout"]),
        )
