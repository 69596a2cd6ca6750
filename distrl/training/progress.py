"""The counters of a run: what was trained, scored and decided so far, and when that ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECENT = 100  # training episodes in return_mean


@dataclass
class Pending:
    """An evaluation that was asked for, and the iteration at which its result counts."""

    due: int
    version: int
    env_steps: int
    number: int


@dataclass
class Progress:
    """The counters of a run between two iterations; all of it is in a checkpoint."""

    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    recent_returns: list[float] = field(default_factory=list)
    recent_lengths: list[int] = field(default_factory=list)
    recent_infos: dict[str, list[float]] = field(default_factory=dict)  # by the names of `env.report`
    streak: int = 0  # training episodes in a row above `track.streak`
    steps_to_streak: int | None = None
    evaluations: int = 0
    pending: list[Pending] = field(default_factory=list)
    best: dict[str, float] | None = None  # mean, std, env_steps
    steps_to_threshold: int | None = None
    time_to_threshold_s: float | None = None
    train_s: float = 0.0
    restarts: int = 0
    stopped: str | None = None  # why, once it is decided

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last 100 training episodes, or of all where there are fewer."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Progress:
        return cls(**{**data, "pending": [Pending(**p) for p in data["pending"]]})
