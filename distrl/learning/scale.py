"""Scaling of value targets, so that a critic's output stays of order one."""

from __future__ import annotations

import math

import numpy as np

from distrl.types import Array, Arrays


class Scale:
    """Running mean and deviation of the value targets, so that the critic's output stays of order one.

    As in MAPPO (Yu et al. 2022, arXiv:2103.01955, section 5.1): exponential averages with a correction for their start.
    Mean and variance are merged with those of an iteration's targets x as those of two populations are (Chan et al. 1979):

        a        = RATE / (1 - (1 - RATE)^n),    d = mean(x) - mean
        variance = (1 - a) variance + a var(x) + a (1 - a) d^2
        mean     = mean + a d

    E[x^2] - E[x]^2 would be the same number, but for rounding, which leaves little of it where the mean is large.
    """

    RATE = 0.05  # of an iteration's targets in the averages
    FLOOR = 1e-6  # of the deviation, as a share of the mean: some roundings of a float32; less is no deviation

    def __init__(self) -> None:
        self.weight, self.mean, self.variance = 0.0, 0.0, 0.0  # weight: 1 - (1 - RATE)^n

    @property
    def deviation(self) -> float:
        """Above 0, whatever the targets; 1 before the first of them, and where all were 0."""
        return max(math.sqrt(self.variance), self.FLOOR * abs(self.mean)) or 1.0

    def update(self, target: Array) -> None:
        self.weight = (1 - self.RATE) * self.weight + self.RATE
        share, apart = self.RATE / self.weight, float(target.mean(dtype=np.float64)) - self.mean
        variance = float(target.var(dtype=np.float64))
        self.variance = (1 - share) * self.variance + share * variance + share * (1 - share) * apart**2
        self.mean += share * apart

    def apply(self, value: Array) -> Array:
        """float32, of the critic's order."""
        return ((value - self.mean) / self.deviation).astype(np.float32)

    def undo(self, value: Array) -> Array:
        """float64: a float32 would lose the last digits of 5000 +- 1."""
        return value.astype(np.float64) * self.deviation + self.mean

    def state(self) -> Arrays:
        return {"scale": np.array([self.weight, self.mean, self.variance])}

    def load_state(self, state: Arrays) -> None:
        self.weight, self.mean, self.variance = state["scale"].tolist()
