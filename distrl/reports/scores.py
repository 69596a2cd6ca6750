"""One score for several seeds, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distrl.seeding import stream
from distrl.types import Array

ENOUGH = 5  # seeds for an interquartile mean
RESAMPLED = 10_000  # times, of the seeds with replacement
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Score:
    """A score over seeds with its bootstrap interval; of one seed there is none."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    kind: str  # what `value` is of the seeds

    def __format__(self, spec: str) -> str:
        """'VALUE [LOW, HIGH]', every number in the format `spec`."""
        if self.low is None or self.high is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def over_seeds(values: Sequence[float]) -> Score:
    """The interquartile mean of a score for each seed (the mean, where there are fewer than five), with a 95 % percentile
    bootstrap interval over the seeds: Agarwal et al. 2021, arXiv:2108.13264. Always the same for the same values.
    """
    array = np.asarray(values, np.float64)
    kind, middle = (
        ("interquartile mean", interquartile_mean) if len(array) >= ENOUGH else ("mean", lambda x: x.mean(axis=-1))
    )
    if len(array) < 2:
        return Score(float(array[0]), None, None, 1, "one seed")
    drawn = array[stream(0, "bootstrap").integers(len(array), size=(RESAMPLED, len(array)))]
    low, high = np.quantile(middle(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Score(float(middle(array)), float(low), float(high), len(array), kind)


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half of values [..., n]: a quarter of them, rounded down, is left out at each end."""
    cut = values.shape[-1] // 4
    middle: Array = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle
