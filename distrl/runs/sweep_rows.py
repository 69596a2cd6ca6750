"""What MLflow shows of a sweep beside its runs: a row for each piece that ended, of the whole and of its trial.

The rows are made from the book's events, so that a sweep that was killed between an event and its row has it later, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrl.files import write_text
from distrl.json_format import json_text
from distrl.runs.sweep_book import Book, Event, Job
from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_spaces import Overrides
from distrl.tracking.metrics import MetricsLog

Row = dict[str, float]


class SweepRows:
    """metrics.jsonl of a sweep and of its trials."""

    def __init__(self, book: Book, metric: Metric) -> None:
        self.book, self.metric = book, metric
        self.logs: dict[Path, MetricsLog] = {}

    def begin(self, directory: Path, overrides: Overrides) -> None:
        """The directory of a trial, with what it tries."""
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "trial.json", json_text({"overrides": overrides}))

    def write(self) -> None:
        """All rows that are not there yet."""
        for directory, row in self._rows():
            if directory not in self.logs:
                self.logs[directory] = MetricsLog(directory / "metrics.jsonl")
            self.logs[directory].append(row)

    def _rows(self) -> Iterator[tuple[Path, Row]]:
        counts: dict[Path, int] = {}
        steps: dict[Path, float] = {}  # of each run so far
        best: float | None = None

        def row(directory: Path, event: dict[str, Any], **metrics: float | None) -> tuple[Path, Row]:
            number = counts[directory] = counts.get(directory, -1) + 1
            spent = sum(count for run_dir, count in steps.items() if run_dir.is_relative_to(directory))
            known = {f"sweep/{name}": value for name, value in metrics.items() if value is not None}
            return directory, {"iteration": float(number), "env_steps": spent, "time": event["time"], **known}

        done: list[tuple[Job, Event]] = [*self.book.ended.items(), *self.book.tested.items()]
        for job, event in done:
            result, run_dir = event["result"], self.book.run_dir(job)
            steps[run_dir], score = float(result["env_steps"]), result["score"]
            if job in self.book.ended:
                if result["status"] == "finished" and score is not None:
                    best = score if best is None else min(best, score, key=self.metric.key)
                yield row(self.book.directory, event, score=score, best_score=best, trial=float(event["trial"]))
            yield row(run_dir.parent, event, score=score, seed=float(job.seed), return_mean=result["return_mean"])

    def close(self) -> None:
        for log in self.logs.values():
            log.close()
