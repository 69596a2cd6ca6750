"""Event files for TensorBoard in RUN/tensorboard: the names and steps that MLflow gets.

metrics.jsonl is the truth. So a run that goes on writes its events anew from there: none is missing, none is there twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from distrl.tracking.metrics import Row, points, read_metrics
from distrl.types import Evaluation

DIRECTORY = "tensorboard"  # in a run directory


class TensorBoard:
    def __init__(self, run_dir: Path) -> None:
        from tensorboardX import SummaryWriter

        shutil.rmtree(run_dir / DIRECTORY, ignore_errors=True)
        self._writer = SummaryWriter(str(run_dir / DIRECTORY), write_to_disk=True)
        for row in read_metrics(run_dir / "metrics.jsonl"):
            self.append(row)

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """A row of metrics.jsonl."""
        for name, value, step in points(row):
            self._writer.add_scalar(name, value, step, walltime=float(row["time"]))

    def final(self, evaluation: Evaluation, unix: float) -> None:
        """The evaluation of the best model."""
        row: Row = {**evaluation.metrics("final"), "env_steps": evaluation.env_steps, "time": unix}
        self.append(row)

    def close(self) -> None:
        self._writer.close()
