"""What is handed to a trial's process: a job as plain JSON, with all that a run needs to be the same wherever it runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.runs.sweep import Sweep
from distrl.runs.sweep_book import Job, Test
from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_population import Move
from distrl.runs.sweep_spaces import Overrides
from distrl.training.checkpoint import adopt_checkpoint

STOP = ".stop"  # in a sweep's directory: its trials end with a checkpoint where it is there
TAKEN_OVER = "population"  # in a sweep's directory: checkpoints on their way to those who take them over


@dataclass(frozen=True)
class Jobs:
    """Describes the jobs of a sweep."""

    sweep: Sweep
    sweep_dir: Path
    metric: Metric
    rung_metric: Metric
    shares: Sequence[float]  # of a run's length, of the rungs

    def phase(self, overrides: Overrides, seed: int, run_dir: Path, rung: int) -> dict[str, Any]:
        """A run with these values, up to a rung or the end."""
        config = self.sweep.config(overrides, seed)
        data = config.model_dump(mode="json") | {"run_dir": str(run_dir)}
        data["track"] |= {"mlflow": False, "video": False}  # the sweep's own follower tells of all runs
        if self.sweep.trial.runners:
            data["cluster"]["runners"] = self.sweep.trial.runners
        return {"config": data, "pause_at": self.pause_at(overrides, rung)}

    def pause_at(self, overrides: Overrides, rung: int) -> int | None:
        """The iteration of a rung; None: it is the end."""
        iterations = self.sweep.config(overrides).iterations
        assert iterations is not None
        return math.ceil(iterations * self.shares[rung]) if rung < len(self.shares) else None

    def describe(
        self, job: Job, run_dir: Path, phases: Sequence[Mapping[str, Any]], begin_from: Path | None = None
    ) -> dict[str, Any]:
        return {
            "job": key(job),
            "run_dir": str(run_dir),
            "phases": list(phases),
            "begin_from": None if begin_from is None else str(begin_from),
            "runners": self.sweep.trial.runners,
            "metric": self.metric.name,
            "rung_metric": self.rung_metric.name,
            "stop_file": str(self.sweep_dir / STOP),
        }

    def take_over(self, generation: int, moves: Mapping[int, Move], run_dirs: Mapping[int, Path], seed: int) -> None:
        """Put the states aside that members take over at a generation, before the donors go on from them."""
        above = self.sweep_dir / TAKEN_OVER
        for member, move in moves.items():
            path = self.taken_over(generation, member)
            if not path.exists():
                config = self.sweep.config(move.overrides, seed).to_yaml()
                adopt_checkpoint(run_dirs[move.donor] / "checkpoints" / path.name, path, config)
        shutil.rmtree(above / f"{generation - 1:02}", ignore_errors=True)

    def taken_over(self, generation: int, member: int) -> Path:
        at = self.pause_at({}, generation - 1)
        return self.sweep_dir / TAKEN_OVER / f"{generation:02}" / f"{member:04}" / f"{at:08d}"


def key(job: Job) -> str:
    """Tells jobs apart."""
    return f"{job.whose} {job.seed}" if isinstance(job, Test) else f"{job.trial} {job.seed} {job.rung}"
