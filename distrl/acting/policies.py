"""What acts: policies in NumPy, so that runners, players and servers need no torch.

For the small networks of RL a NumPy forward is several times faster per call than eager torch. One form acts
in a run, always this one; the tests hold it against the torch network that learns (distrl.learning.networks).

A batch of one shape gives the same bits wherever it is computed on the same kind of processor with one BLAS
thread (`single_threaded`), so the whole shard is always acted for at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from distrl.acting.distributions import BELOW_ONE, FORBIDDEN, Categorical, Distribution, choose, describe
from distrl.acting.distributions import from_description as distribution_of
from distrl.acting.kinds import AnySpec, make_network, spec_from_description
from distrl.acting.network import unflatten
from distrl.descriptions import STRICT, from_json
from distrl.errors import UserError
from distrl.layouts import Layout, discrete_layout
from distrl.registry import POLICIES
from distrl.types import Array, Arrays, Policy


class StochasticPolicy:
    """pi(a|s): a network gives the numbers of a distribution of actions for what it sees, and that is drawn from."""

    def __init__(self, spec: AnySpec, distribution: Distribution, obs_layout: Layout, action_layout: Layout) -> None:
        self.network, self.distribution = make_network(spec), distribution
        self.obs_layout, self.action_layout = obs_layout, action_layout

    def initial(self, rng: np.random.Generator) -> Array:
        """First weights [P]: the head's gain is so small that the policy is nearly `distribution.initial` in every state."""
        spec, row = self.network.spec, self.distribution.initial()
        vector = spec.initial(rng, head_gain=0.01)
        arrays = unflatten(vector, spec.shapes())  # views
        arrays["head.bias"][:] = row[: spec.outputs]
        if spec.free:
            arrays["free"][:] = row[spec.outputs :]
        return vector

    def load(self, vector: Array) -> None:
        self.network.load(vector)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return self.distribution.draw(rng, steps, copies)

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Actions [N, ...], their log_prob [N], and what was drawn where the env gets something else."""
        return self.sampled(self.network(obs), obs, noise)

    def greedy(self, obs: Array) -> Array:
        return self.best(self.network(obs), obs)

    def sampled(self, outputs: Array, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """What `act` gives, by what the network gave out for these observations."""
        raw, log_prob = self.distribution.sample(outputs, noise, self.obs_layout.mask_of(obs))
        action = self.action_layout.join(self.distribution.env_actions(raw))
        return action, {"log_prob": log_prob} if action is raw else {"log_prob": log_prob, "raw_action": raw}

    def best(self, outputs: Array, obs: Array) -> Array:
        """What `greedy` gives, likewise."""
        raw = self.distribution.mode(outputs, self.obs_layout.mask_of(obs))
        return self.action_layout.join(self.distribution.env_actions(raw))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.network.spec.shapes()

    def arrays(self) -> Arrays:
        return unflatten(self.network.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        return {
            "type": "stochastic",
            "network": asdict(self.network.spec),
            "distribution": describe(self.distribution),
            "obs_layout": self.obs_layout.describe(),
            "action_layout": self.action_layout.describe(),
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError where a value is none that it can have."""
        spec, distribution = spec_from_description(data["network"]), distribution_of(data["distribution"])
        if (spec.outputs, spec.free) != (distribution.outputs, distribution.free):
            raise ValueError(
                f"a network of {spec.outputs} + {spec.free} outputs for a distribution of "
                f"{distribution.outputs} + {distribution.free}"
            )
        return cls(
            spec,
            distribution,
            Layout.from_description(data["obs_layout"]),
            Layout.from_description(data["action_layout"]),
        )


@dataclass(frozen=True)
class Exploring:
    """How an `EpsilonGreedyPolicy` explores, as its description says."""

    __pydantic_config__ = STRICT
    first_action: int
    action_probs: tuple[float, ...]
    ladder: float


class EpsilonGreedyPolicy:
    """The action of the greatest Q-value; with probability epsilon one of a given distribution.

    epsilon is the last element of the weights, so that it travels with the version that it belongs to. With a
    `ladder` every env copy explores with a rate of its own (Ape-X, Horgan et al. 2018, arXiv:1803.00933):

        epsilon_n = epsilon^(1 + ladder n / (N - 1))
    """

    def __init__(
        self,
        spec: AnySpec,
        obs_layout: Layout,
        first_action: int = 0,
        action_probs: tuple[float, ...] = (),
        ladder: float = 0.0,
    ) -> None:
        """`action_probs`: of the A actions when exploring; empty: all alike."""
        self.network, self.obs_layout, self.action_layout = (
            make_network(spec),
            obs_layout,
            discrete_layout(spec.outputs, first_action),
        )
        self.vector = np.zeros(spec.parameters + 1, np.float32)
        self.first_action, self.action_probs, self.ladder = first_action, action_probs, ladder
        self._probs = np.array(action_probs or [1 / spec.outputs] * spec.outputs)
        self._borders = np.cumsum(self._probs)[:-1] / self._probs.sum()

    @property
    def distribution(self) -> Categorical:
        """Of which the greedy action is the mode: Q-values are its logits."""
        return Categorical(self.network.spec.outputs, self.first_action)

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
        values, mask = self._values(obs)
        best = values.argmax(axis=1)
        if mask is None:
            other = np.searchsorted(self._borders, noise[:, 1], side="right")
        else:
            weights = np.where(mask, self._probs, 0.0)
            weights = np.where(weights.any(axis=1, keepdims=True), weights, mask)
            other, _ = choose(weights, np.minimum(noise[:, 1], BELOW_ONE))
        index = np.where(noise[:, 0] < self.epsilon(len(best)), other, best)
        rows = np.arange(len(index))
        return index + self.first_action, {"q": values[rows, index], "value": values[rows, best]}

    def greedy(self, obs: Array) -> Array:
        best: Array = self._values(obs)[0].argmax(axis=1) + self.first_action
        return best

    def _values(self, obs: Array) -> tuple[Array, Array | None]:
        """Q [N, A], with those of forbidden actions out of the way, and which are allowed."""
        values, mask = self.network(obs), self.obs_layout.mask_of(obs)
        return values if mask is None else np.where(mask, values, np.float32(FORBIDDEN)), mask

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.network.spec.shapes() | {"epsilon": (1,)}

    def arrays(self) -> Arrays:
        return unflatten(self.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        return {
            "type": "epsilon_greedy",
            "network": asdict(self.network.spec),
            "obs_layout": self.obs_layout.describe(),
            "first_action": self.first_action,
            "action_probs": self.action_probs,
            "ladder": self.ladder,
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError where a value is none that it can have."""
        told = from_json(Exploring, {n: x for n, x in data.items() if n not in ("type", "network", "obs_layout")})
        spec = spec_from_description(data["network"])
        if told.action_probs and len(told.action_probs) != spec.outputs:
            raise ValueError(f"action_probs are {len(told.action_probs)}, of {spec.outputs} actions")
        layout = Layout.from_description(data["obs_layout"])
        return cls(spec, layout, told.first_action, told.action_probs, told.ladder)


def from_description(data: Mapping[str, Any]) -> Policy:
    """The policy that `describe` told of, without weights yet. Raises `ValueError` for a type that is not registered."""
    try:
        kind = POLICIES.find(data["type"])
    except UserError as error:
        raise ValueError(str(error).removesuffix(".")) from None  # whoever read the description says from where
    policy: Policy = kind.from_description(data)
    return policy
