"""Networks and policies that remember: a GRU or an LSTM between the hidden layers and the head, in NumPy.

What is remembered, [N, M], is handed in and out; who keeps it, and forgets it where an episode ends, is
`distrl.acting.episodes.Acting`. The torch half is `distrl.learning.networks.RecurrentNetwork`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from distrl.acting.distributions import Distribution
from distrl.acting.distributions import from_description as distribution_of
from distrl.acting.network import Network, NetworkSpec, unflatten
from distrl.acting.policies import StochasticPolicy
from distrl.descriptions import Count
from distrl.layouts import Layout
from distrl.types import Array


def sigmoid(x: Array) -> Array:
    y: Array = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return y


def gru(given: Array, kept: Array, memory: Array) -> Array:
    """The next memory of a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) as `torch.nn.GRU` computes it:

        r, z = sigmoid(W x + U h),    n = tanh(W_n x + r * (U_n h)),    h' = (1 - z) * n + z * h

    Args:
        given: [N, 3 H], W x of the features x, biases among them
        kept: [N, 3 H], U h likewise
        memory: [N, H], h
    """
    size = memory.shape[1]
    reset, update = np.split(sigmoid((given + kept)[:, : 2 * size]), 2, axis=1)
    new = np.tanh(given[:, 2 * size :] + reset * kept[:, 2 * size :])
    after: Array = new + update * (memory - new)
    return after


def lstm(given: Array, kept: Array, memory: Array) -> Array:
    """The next memory of a long short-term memory (Hochreiter and Schmidhuber 1997) as `torch.nn.LSTM` computes it:

        i, f, o = sigmoid(W x + U h),    g = tanh(W_g x + U_g h),    c' = f * c + i * g,    h' = o * tanh(c')

    Args:
        given, kept: [N, 4 H], W x and U h, biases among them, in the order i, f, g, o
        memory: [N, 2 H], h and behind it c
    """
    put, forget, new, show = np.split(given + kept, 4, axis=1)
    cell = sigmoid(forget) * memory[:, new.shape[1] :] + sigmoid(put) * np.tanh(new)
    return np.concatenate([sigmoid(show) * np.tanh(cell), cell], axis=1)


@dataclass(frozen=True)
class RecurrentSpec(NetworkSpec):
    """A network whose head sees what a GRU or an LSTM shows of the features so far, the newest among them."""

    memory: Count = 64  # H: numbers that the head sees of an episode
    cell: Literal["gru", "lstm"] = "gru"

    @property
    def remembered(self) -> int:
        """M: numbers remembered of an episode. The head sees the first H of them."""
        return self.memory * (2 if self.cell == "lstm" else 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The layers `memory.*` lie behind those of `NetworkSpec`."""
        shapes = super().shapes()
        features, gates = shapes["head.weight"][1], (4 if self.cell == "lstm" else 3) * self.memory
        own = {"memory.input.weight": (gates, features), "memory.input.bias": (gates,)}
        own |= {"memory.hidden.weight": (gates, self.memory), "memory.hidden.bias": (gates,)}
        return {**shapes, "head.weight": (self.outputs, self.memory), **own}

    def initial(self, rng: np.random.Generator, head_gain: float) -> Array:
        """As of `NetworkSpec`, with a gain of 1 in the memory; an LSTM forgets little (Jozefowicz et al. 2015, section 2.2)."""
        vector = super().initial(rng, head_gain)
        arrays = unflatten(vector, self.shapes())  # views
        for name in ("memory.input.weight", "memory.hidden.weight"):
            arrays[name] /= np.float32(2**0.5)
        if self.cell == "lstm":
            arrays["memory.input.bias"][self.memory : 2 * self.memory] = 1
        return vector


class RecurrentNetwork(Network):
    """The NumPy forward of a `RecurrentSpec`, a step at a time."""

    spec: RecurrentSpec

    def __call__(self, obs: Array) -> Array:
        """Outputs [N, outputs + free] for the first observations of episodes, of which nothing is remembered yet."""
        return self.step(obs, self.nothing(len(obs)))[0]

    def nothing(self, copies: int) -> Array:
        """What is remembered before an episode, [N, M]: zeros."""
        return np.zeros((copies, self.spec.remembered), np.float32)

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Outputs [N, outputs + free] for flat observations [N, ...], and what is remembered after them, [N, M]."""
        given = self._linear("memory.input", self.features(obs)[-1])
        kept = self._linear("memory.hidden", memory[:, : self.spec.memory])
        memory = (lstm if self.spec.cell == "lstm" else gru)(given, kept, memory)
        return self.outputs(memory[:, : self.spec.memory]), memory


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
    def of(cls, policy: StochasticPolicy, size: int, cell: Literal["gru", "lstm"]) -> Self:
        """The policy with a memory that shows so many numbers."""
        assert isinstance(policy.network.spec, NetworkSpec)
        spec = RecurrentSpec(**vars(policy.network.spec), memory=size, cell=cell)
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
