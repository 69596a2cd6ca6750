"""Observations of order one: what a policy sees less its mean, over its deviation, as far as it is floating-point numbers.

    x = clip((obs - mean) * scale, -LIMIT, LIMIT)        scale = 1 / sqrt(variance + EPSILON)

As in VecNormalize (Stable-Baselines3). Mean and scale are weights of the policy like any other: they belong to a version,
travel, are saved and are checked with it, and stand still wherever it plays. What makes them is `distrl.learning.normalise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Self

import numpy as np

from distrl.acting.policies import from_description
from distrl.layouts import Layout, Part
from distrl.types import Array, Arrays, Policy

EPSILON, LIMIT = 1e-8, 10.0
STATISTICS = ("obs.mean", "obs.scale")  # the names of the arrays, which lie behind those of the policy within


def numbers(layout: Layout) -> tuple[Part, ...]:
    """The parts that are normalised: floating-point Boxes. Bytes are scaled already, the rest is one-hot or a mask."""
    parts = (*layout.parts, *([] if layout.central is None else [layout.central]))
    return tuple(part for part in parts if part.kind == "box" and np.issubdtype(part.dtype, np.floating))


class NormalisedPolicy:
    """A policy that is shown normalised observations. `distrl.types.Policy`."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.obs_layout, self.action_layout = inner, inner.obs_layout, inner.action_layout
        self.parts = numbers(inner.obs_layout)
        self.size = sum(prod(part.shape) for part in self.parts)  # D: numbers that are normalised
        self.mean, self.scale = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)

    def load(self, vector: Array) -> None:
        weights, self.mean, self.scale = np.split(vector, [len(vector) - 2 * self.size, len(vector) - self.size])
        self.inner.load(weights)

    def join(self, weights: Array, mean: Array, scale: Array) -> Array:
        """The vector [P] of the inner policy's, and of mean and scale [D]."""
        return np.concatenate([weights, mean, scale]).astype(weights.dtype)

    def normalised(self, obs: Array) -> Array:
        """Flat observations [..., *obs_layout.shape], with what is normalised so, in memory of their own."""
        obs = obs.copy()
        for part, mean, scale in self.statistics():
            own = part.of(obs)  # a view
            own[...] = np.clip((own - mean) * scale, -LIMIT, LIMIT)
        return obs

    def statistics(self) -> Iterator[tuple[Part, Array, Array]]:
        """Every part that is normalised, with its mean and scale in its own shape."""
        start = 0
        for part in self.parts:
            own = slice(start, start + prod(part.shape))
            yield part, self.mean[own].reshape(part.shape), self.scale[own].reshape(part.shape)
            start = own.stop

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return self.inner.draw(rng, steps, copies)

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        return self.inner.act(self.normalised(obs), noise)

    def greedy(self, obs: Array) -> Array:
        return self.inner.greedy(self.normalised(obs))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.inner.shapes() | dict.fromkeys(STATISTICS, (self.size,))

    def arrays(self) -> Arrays:
        return self.inner.arrays() | dict(zip(STATISTICS, (self.mean, self.scale), strict=True))

    def describe(self) -> dict[str, Any]:
        return {"type": "normalised", "inner": self.inner.describe()}

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        return cls(from_description(data["inner"]))


def without(policy: Policy) -> Policy:
    """The algorithm's own policy: the one within, where observations are normalised."""
    return policy.inner if isinstance(policy, NormalisedPolicy) else policy
