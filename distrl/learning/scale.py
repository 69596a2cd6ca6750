"""Scaling of value targets, so that a critic's output stays of order one."""

from __future__ import annotations

import math

import numpy as np

from distrl.types import Array, Arrays


class Scale:
    """Running mean and deviation of the value targets, so that the critic's output stays of order one.

    As in MAPPO (Yu et al. 2022, arXiv:2103.01955, section 5.1): exponential averages with a correction for their start.
    """

    RATE = 0.05  # of an iteration's targets in the averages

    def __init__(self) -> None:
        self.weight, self.first, self.second = 0.0, 0.0, 0.0  # 1 - (1 - RATE)^n, and averages of x and x^2

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        if self.weight == 0:
            return 0.0, 1.0
        mean = self.first / self.weight
        return mean, math.sqrt(max(self.second / self.weight - mean**2, 1e-4))

    def update(self, target: Array) -> None:
        for name, value in (("weight", 1.0), ("first", target.mean()), ("second", np.square(target).mean())):
            setattr(self, name, (1 - self.RATE) * getattr(self, name) + self.RATE * float(value))

    def apply(self, value: Array) -> Array:
        mean, deviation = self.moments
        return ((value - mean) / deviation).astype(np.float32)

    def undo(self, value: Array) -> Array:
        mean, deviation = self.moments
        return (value * deviation + mean).astype(np.float32)

    def state(self) -> Arrays:
        return {"value_scale": np.array([self.weight, self.first, self.second])}

    def load_state(self, state: Arrays) -> None:
        self.weight, self.first, self.second = state["value_scale"].tolist()
