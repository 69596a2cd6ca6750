"""What tells a watchdog slow from hung."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Heartbeat:
    """Beats whenever one env copy is made, reset, stepped, or brought a step further while it is rebuilt."""

    beats: int = 0
    copy: int = -1  # the env copy at work; -1: all of them at once
    doing: str = ""  # what it does, if not a step

    def beat(self, copy: int, doing: str = "") -> None:
        self.beats, self.copy, self.doing = self.beats + 1, copy, doing
