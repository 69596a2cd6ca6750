"""What acts: policies in NumPy, so that runners, players and servers need no torch.

For the small networks of RL a NumPy forward is several times faster per call than eager torch. One form acts
in a run, always this one; the tests hold it against the torch network that learns (distrl.learning.networks).

A batch of one shape gives the same bits wherever it is computed on the same kind of processor with one BLAS
thread (`single_threaded`), so the whole shard is always acted for at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from distrl.acting.network import Network, NetworkSpec, unflatten
from distrl.errors import UserError
from distrl.registry import POLICIES
from distrl.types import Array, Arrays, Policy


def policy_input(obs: Any, dtype: DTypeLike | None = None) -> Array:
    """What a policy is given for observations, wherever it acts: float64 becomes float32, all else stays what it is.

    Fragments travel so, and a policy must act in evaluations, in play and where it is served by the numbers that it was
    trained on: of a table, float32 and float64 may be two tiles.

    Args:
        dtype: of the env's observation space, where `obs` may come in another one
    """
    array = np.asarray(obs, dtype)
    return array.astype(np.float32) if array.dtype == np.float64 else array


class CategoricalPolicy:
    """pi(a|s) = softmax(network(s))[a] over A discrete actions, numbered from `first_action`."""

    def __init__(self, spec: NetworkSpec, first_action: int = 0) -> None:
        self.network = Network(spec)
        self.first_action = first_action

    def load(self, vector: Array) -> None:
        self.network.load(vector)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """Uniform numbers [T, N], one an action."""
        return rng.random((steps, copies))

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Actions [N] by the inverse of the cumulative distribution, and their log_prob [N]."""
        logits = self.network(obs)
        logits -= logits.max(axis=1, keepdims=True)
        exp = np.exp(logits)
        cumulative = np.cumsum(exp, axis=1)
        total = cumulative[:, -1]
        index = (cumulative[:, :-1] <= (noise * total)[:, None]).sum(axis=1)
        log_prob = logits[np.arange(len(index)), index] - np.log(total)
        return index + self.first_action, {"log_prob": log_prob}

    def greedy(self, obs: Array) -> Array:
        best: Array = self.network(obs).argmax(axis=1) + self.first_action
        return best

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.network.spec.shapes()

    def arrays(self) -> Arrays:
        return unflatten(self.network.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        return {"type": "categorical", "network": asdict(self.network.spec), "first_action": self.first_action}

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        return cls(NetworkSpec.from_description(data["network"]), data["first_action"])


class EpsilonGreedyPolicy:
    """The action of the greatest Q-value; with probability epsilon one of a given distribution.

    epsilon is the last element of the weights, so that it travels with the version that it belongs to. With a
    `ladder` every env copy explores with a rate of its own (Ape-X, Horgan et al. 2018, arXiv:1803.00933):

        epsilon_n = epsilon^(1 + ladder n / (N - 1))
    """

    def __init__(
        self, spec: NetworkSpec, first_action: int = 0, action_probs: tuple[float, ...] = (), ladder: float = 0.0
    ) -> None:
        """`action_probs`: of the A actions when exploring; empty: all alike."""
        self.network = Network(spec)
        self.vector = np.zeros(spec.parameters + 1, np.float32)
        self.first_action, self.action_probs, self.ladder = first_action, action_probs, ladder
        probs = np.array(action_probs or [1 / spec.outputs] * spec.outputs)
        self._borders = np.cumsum(probs)[:-1] / probs.sum()

    def load(self, vector: Array) -> None:
        self.vector = vector
        self.network.load(vector[:-1])

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """Uniform numbers [T, N, 2]: whether to explore, and what to do then."""
        return rng.random((steps, copies, 2))

    def epsilon(self, copies: int) -> Array:
        """[N] float64"""
        rungs = np.arange(copies) / max(1, copies - 1)
        rates: Array = float(self.vector[-1]) ** (1 + self.ladder * rungs)
        return rates

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Actions [N]; beside them Q of the action taken and V = max Q, [N] each, of which first priorities are made."""
        values = self.network(obs)
        best = values.argmax(axis=1)
        other = np.searchsorted(self._borders, noise[:, 1], side="right")
        index = np.where(noise[:, 0] < self.epsilon(len(best)), other, best)
        rows = np.arange(len(index))
        return index + self.first_action, {"q": values[rows, index], "value": values[rows, best]}

    def greedy(self, obs: Array) -> Array:
        best: Array = self.network(obs).argmax(axis=1) + self.first_action
        return best

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.network.spec.shapes() | {"epsilon": (1,)}

    def arrays(self) -> Arrays:
        return unflatten(self.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        return {
            "type": "epsilon_greedy",
            "network": asdict(self.network.spec),
            "first_action": self.first_action,
            "action_probs": self.action_probs,
            "ladder": self.ladder,
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        spec = NetworkSpec.from_description(data["network"])
        return cls(spec, data["first_action"], tuple(data["action_probs"]), data["ladder"])


def from_description(data: Mapping[str, Any]) -> Policy:
    """The policy that `describe` told of, without weights yet. Raises `ValueError` for a type that is not registered."""
    try:
        kind = POLICIES.find(data["type"])
    except UserError as error:
        raise ValueError(str(error).removesuffix(".")) from None  # whoever read the description says from where
    policy: Policy = kind.from_description(data)
    return policy
