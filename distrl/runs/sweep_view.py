"""A sweep at a moment, for people: who leads, and how far each run is that is under way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distrl.reports.sweeps import SweepFiles, told_overrides, told_score
from distrl.runs.sweep import Sweep
from distrl.runs.sweep_book import Book, Job, Test
from distrl.runs.sweep_check import trial_count
from distrl.tracking.board import Going, View

LEADERS = 5


class Views:
    """Reads no more than what is new since it was last asked."""

    def __init__(self, sweep: Sweep, book: Book) -> None:
        self.book = book
        self.sweep = {"metric": sweep.metric, "search": dict(sweep.search)}
        self.kind, self.seconds, self.trials = sweep.scheduler, sweep.budget.seconds, trial_count(sweep)
        self.length = sweep.base_config().stop.env_steps or 0
        self.tails: dict[Path, Tail] = {}

    def of(self, busy: Iterable[Job]) -> View:
        """`busy`: what is under way."""
        files = SweepFiles(self.book.directory, self.sweep, self.book.trials(going=True), {})
        leaders = [
            (str(t.number), told_score(t), str(len(t.scores)), t.status, told_overrides(t.overrides))
            for t in files.trials[:LEADERS]
        ]
        self.tails = {run_dir: self.tails.get(run_dir) or Tail(run_dir) for run_dir in map(self.book.run_dir, busy)}
        going = [Going(_name(job), self.length, self.tails[self.book.run_dir(job)].read()) for job in busy]
        columns = "trial", files.metric, "seeds", "status", "overrides"
        return View(self._headline(files), columns, leaders, going)

    def _headline(self, files: SweepFiles) -> str:
        finished = sum(trial.status == "finished" for trial in files.trials)
        failed = sum(trial.status == "failed" for trial in files.trials)
        parts = [f"{len(self.book.overrides)} of {self.trials} trials begun", f"{finished} finished"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{len(self.book.tested)} on test seeds"] if self.book.tested else []
        if files.trials and files.trials[0].score is not None:
            parts.append(f"best {told_score(files.trials[0])} of trial {files.trials[0].number}")
        limit = "" if self.seconds is None else f" of {_clock(self.seconds)}"
        return f"{self.book.directory.name} ({self.kind}): {', '.join(parts)}; searched {_clock(self.book.search_s)}{limit}"


def _name(job: Job) -> str:
    return f"test seed {job.seed}, {job.whose}" if isinstance(job, Test) else f"trial {job.trial} seed {job.seed}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


class Tail:
    """The newest values in a metrics.jsonl that grows."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.at, self.row = 0, dict[str, Any]()

    def read(self) -> dict[str, Any]:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            if file.seek(0, 2) < self.at:  # its end was replaced
                self.at = 0
            file.seek(self.at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.at += len(line)
                with suppress(ValueError):  # of what is being replaced
                    self.row |= json.loads(line)
        return self.row
