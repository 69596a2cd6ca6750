"""What ends or disturbs a run, and who is told."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Who wants to know how the run goes."""

    def record(self, row: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


class Interrupted(Exception):
    """The run was asked to end; the message says by what."""


class TimeUp(Exception):
    """`stop.seconds` have passed."""
