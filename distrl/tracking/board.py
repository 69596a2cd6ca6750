"""What people see of a sweep while it goes on: a leader board, and beneath it a line for each run under way.

On a terminal both are drawn in place, and messages go above them; elsewhere (a file, the logs of a Ray job) a plain line tells
of the runs under way now and then. Knows only what it is handed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distrl.tracking.console import Console, left, number_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

EVERY_S, EVERY_PLAIN_S = 0.5, 30.0
MOST = 8  # runs under way that have a line
BAR = 16  # columns


@dataclass(frozen=True)
class Going:
    """A run under way: its name, env steps of how many, and the newest value of each metric."""

    name: str
    total: int
    row: Mapping[str, float | int | str]

    @property
    def done(self) -> int:
        return int(self.row.get("env_steps", 0))

    @property
    def parts(self) -> tuple[str, ...]:
        """Speed, return, evaluation and what is left, each empty where it is not known."""
        speed = number_of(self.row, "time/env_steps_per_s")
        told = [(name, number_of(self.row, key)) for name, key in SHOWN.items()]
        return (
            f"{speed:,.0f}/s" if speed else "",
            *("" if value is None else f"{name} {value:.4g}" for name, value in told),
            left(self.total - self.done, speed) if speed else "",
        )


SHOWN = {"return": "train/return_mean", "evaluation": "evaluation/return_mean"}


@dataclass(frozen=True)
class View:
    """A sweep at a moment."""

    headline: str
    columns: Sequence[str]
    leaders: Sequence[Sequence[str]]
    going: Sequence[Going]


class Board(Console):
    def __init__(self, quiet: bool = False) -> None:
        super().__init__(None, quiet)
        self._live: Live | None = None
        self._looked = time.monotonic()  # a first plain line is not due at once

    def due(self) -> bool:
        """Whether it would show a view now."""
        return not self._quiet and time.monotonic() - self._looked >= (EVERY_S if self._tty else EVERY_PLAIN_S)

    def show(self, view: View) -> None:
        self._looked = time.monotonic()
        if not self._tty:
            told = [
                f"{run.name} {run.done:,}/{run.total:,} {' '.join(filter(None, run.parts))}".rstrip()
                for run in view.going
            ]
            more = f"; and {len(told) - MOST} more" if len(told) > MOST else ""
            self._print(f"{view.headline}; under way: {'; '.join(told[:MOST]) or 'nothing'}{more}")
            return
        with self._lock:
            if self._live is None:
                from rich.console import Console as Terminal
                from rich.live import Live

                terminal = Terminal(stderr=True, markup=False, emoji=False, highlight=False)
                self._live = Live(console=terminal, auto_refresh=False, transient=True, redirect_stdout=False)
                self._live.start()
            self._live.update(_drawn(view), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        with self._lock:
            if self._live is not None:
                self._live.stop()
            self._live = None

    def _write(self, message: str, style: str | None) -> None:
        if self._live is None:
            super()._write(message, style)
        else:  # above the board
            self._live.console.print(message, style=style, soft_wrap=True)


def _drawn(view: View) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    board, runs = Table(box=None, pad_edge=False), Table.grid(padding=(0, 2))
    for column in view.columns:
        board.add_column(Text(column), no_wrap=True, overflow="ellipsis")
    for row in view.leaders:
        board.add_row(*map(Text, row))
    for run in view.going[:MOST]:
        bar = ProgressBar(total=run.total, completed=run.done, width=BAR)
        runs.add_row(run.name, bar, f"{run.done:,}/{run.total:,}", *run.parts)
    parts = [Text(view.headline, "bold"), board if view.leaders else None, runs if view.going else None]
    more = Text(f"and {len(view.going) - MOST} more") if len(view.going) > MOST else None
    return Group(*(part for part in (*parts, more) if part is not None))
