"""What is to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.settings import Config
from distrl.types import Array, Origin, Policy


@dataclass(frozen=True)
class Job:
    config: Config
    policy: Policy  # without weights
    initial_weights: Array  # of version 0, [P]
    about: dict[str, Any]  # of the env and the algorithm, for model directories
    threshold: float | None  # the env's reward threshold
    run_dir: Path
    start: Path | None  # the checkpoint to go on from; None: the beginning
    judged: Policy | None = None  # what plays in evaluations; None: the policy
    origin: Origin | None = None  # what it begins with, which `initial_weights` then are; None: fresh weights
