"""What people see of a run while it goes on: live progress and messages on stderr."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from distrl.execution.gauges import Gauges
from distrl.tracking.metrics import MetricsLog
from distrl.tracking.mlflow import ENDS, MlflowTracker
from distrl.tracking.tensorboard import TensorBoard
from distrl.types import Evaluation

if TYPE_CHECKING:
    from rich.progress import Progress


SCORES = {"train/return_mean": "return", "evaluation/return_mean": "evaluation"}


class Copy(Protocol):
    """Who copies a run to a store."""

    def poll(self) -> str | None: ...

    def finish(self, timeout: float) -> str | None: ...


class RunObserver:
    """Sends rows to metrics.jsonl, TensorBoard, Ray's gauges and the console; and what the processes beside the run say to the console."""

    def __init__(
        self,
        log: MetricsLog,
        console: Console,
        tracker: MlflowTracker | None,
        board: TensorBoard | None = None,
        copy: Copy | None = None,
        gauges: Gauges | None = None,
    ) -> None:
        self.log, self.console, self.tracker, self.board, self.copy = log, console, tracker, board, copy
        self.gauges = gauges
        self.warned: set[str] = set()

    def record(self, row: dict[str, float]) -> None:
        if self.board is not None and row["iteration"] > self.log.last_iteration:
            self.board.append(row)
        self.log.append(row)
        self.console.update(row)
        if self.gauges is not None:
            self.gauges.publish(row)
        for beside in (self.tracker, self.copy):
            if beside is not None and (message := beside.poll()):
                self.console.warn(message)

    def note(self, message: str) -> None:
        self.console.note(message)

    def warn(self, message: str) -> None:
        """Once, however often it is said."""
        if message not in self.warned:
            self.warned.add(message)
            self.console.warn(message)

    def close(self) -> None:
        """No more rows come; messages may."""
        self.log.close()
        self.console.close()

    def finish(self, status: str, evaluation: Evaluation | None = None) -> None:
        """Wait until MLflow has all of the run, and knows how it ended, and until the copy of it is whole.

        Args:
            evaluation: of the best model
        """
        if self.board is not None:
            if evaluation is not None:
                self.board.final(evaluation, time.time())
            self.board.close()
        if self.tracker is not None and (
            behind := self.tracker.finish(ENDS[status], timeout=10 if status == "interrupted" else 60)
        ):
            self.warn(behind)
        if self.copy is not None and (behind := self.copy.finish(60 if status == "interrupted" else 300)):
            self.warn(behind)


class Console:
    """Progress and messages on stderr, so that stdout stays clean for results."""

    def __init__(self, total_env_steps: int | None, quiet: bool = False) -> None:
        self._total, self._quiet = total_env_steps, quiet
        self._tty = sys.stderr.isatty()
        self._shown = -math.inf
        self._row: Mapping[str, float | int | str] = {}
        self._seen: dict[str, float] = {}  # the newest value of what is not in every row
        self._best: dict[str, float] = {}
        self._lock, self._over = threading.RLock(), threading.Event()
        self._bar: Progress | None = None  # made by the first row: errors before it find the terminal as it was

    def update(self, row: Mapping[str, float | int | str]) -> None:
        """Show a row of metrics, unless the last one was shown just now."""
        self._row = row
        for key in SCORES:
            if (value := number_of(row, key)) is not None:
                self._seen[key], self._best[key] = value, max(value, self._best.get(key, value))
        if not self._quiet and time.monotonic() - self._shown >= (0.2 if self._tty else 10):
            self._show()

    def follow(self, doing: Callable[[], str]) -> None:
        """Tell between rows, too, where they are long in coming, what is being done, if anything."""

        def tell() -> None:
            while not self._over.wait(1.0):
                if time.monotonic() - self._shown >= (1.0 if self._tty else 10) and (what := doing()):
                    with self._lock:
                        if not self._over.is_set():
                            self._show(what)

        if not self._quiet:
            threading.Thread(target=tell, name="console", daemon=True).start()

    def note(self, message: str) -> None:
        if not self._quiet:
            self._print(message)

    def warn(self, message: str) -> None:
        """Shown even when quiet."""
        self._print(f"warning: {message}", "yellow")

    def close(self) -> None:
        """Show the last row and leave the terminal as it was."""
        self._over.set()
        with self._lock:
            if self._row and not self._quiet:
                self._show()
            self._row = {}
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _show(self, doing: str = "") -> None:
        with self._lock:
            self._shown = time.monotonic()
            self._draw("  ".join(filter(None, [self._summary(), doing])))

    def _draw(self, text: str) -> None:
        done, total = int(self._row.get("env_steps", 0)), self._total
        if not self._tty:
            self._print(f"{done:,}{'' if total is None else f'/{total:,}'} env steps  {text}")
            return
        if self._bar is None:
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("env steps  {task.description}", markup=False))
            # No refresh thread: the driver's core is for training.
            terminal = Terminal(stderr=True, markup=False, emoji=False, highlight=False)
            self._bar = Progress(*columns, console=terminal, auto_refresh=False, redirect_stdout=False)
            self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, description=text, refresh=True)

    def _summary(self) -> str:
        speed, restarts = number_of(self._row, "time/env_steps_per_s"), number_of(self._row, "restarts")
        parts = [] if speed is None else [f"{speed:,.0f}/s"]
        if self._total is not None and speed:
            parts.append(left(self._total - int(self._row["env_steps"]), speed))
        parts += [
            f"{name} {self._seen[key]:.4g} (best {self._best[key]:.4g})"
            for key, name in SCORES.items()
            if key in self._seen
        ]
        if restarts:
            parts.append(f"{restarts:.0f} restart{'s' if restarts > 1 else ''}")
        return "  ".join(parts)

    def _print(self, message: str, style: str | None = None) -> None:
        with self._lock:
            self._write(message, style)

    def _write(self, message: str, style: str | None) -> None:
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:  # above the bar
            self._bar.console.print(message, style=style, soft_wrap=True)


def number_of(row: Mapping[str, float | int | str], key: str) -> float | None:
    """What a row says, where it is a number."""
    value = float(row.get(key, math.nan))
    return value if math.isfinite(value) else None


def left(env_steps: int, speed: float) -> str:
    """How long so many env steps take."""
    seconds = int(max(0, env_steps) / speed)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
