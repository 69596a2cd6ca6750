"""A process that goes with a run and follows its directory, so that training waits for nobody: for MLflow, for a store.

It is told of the run's end over its stdin, which also closes when the driver was killed. Whether it has fallen behind
it says in RUN/NAME.state; what it prints is in RUN/NAME.log, whose lock the one at work holds.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from distrl.errors import UserError
from distrl.outside import child_environment
from distrl.tracking.where import read_json, write_json

ORPHAN_S = 60.0  # how long it goes on after a driver that died without a word
LONGEST_REST_S = 600.0  # from one start of the process to the next; 1 s at first, and twice as long each time


class Companion:
    """The driver's side."""

    def __init__(self, run_dir: str | Path, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        """`command`: behind `python -P -m`; `environment`: beside the driver's."""
        self.run_dir, self.name = Path(run_dir).absolute(), name
        self._command, self._settings = command, environment
        self._behind, self._starts, self._polled = False, 0, -math.inf
        self._spawn()

    @property
    def reason(self) -> str:
        """Why it has fallen behind; '' where it has not."""
        return str(read_json(self.run_dir / f"{self.name}.state").get("behind") or "")

    def news(self) -> tuple[str, str] | None:
        """'ended' with its exit code, 'behind' with the reason, or 'caught up'; once. Cheap enough for every iteration."""
        if time.monotonic() - self._polled < 1:
            return None
        self._polled = time.monotonic()
        if (code := self._child.poll()) is not None:
            if self._polled - self._started < min(LONGEST_REST_S, 2.0 ** (self._starts - 1)):
                return None
            self._spawn()
            return "ended", str(code)
        reason = self.reason
        if bool(reason) == self._behind:
            return None
        self._behind = bool(reason)
        return ("behind", reason) if reason else ("caught up", "")

    def end(self, status: str, timeout: float) -> int:
        """Tell it that the run has ended, and wait until it has done all. Returns its exit code, 0 where it could."""
        if self._child.poll() is not None:
            self._spawn()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"end {status} {timeout}\n".encode())
            self._child.stdin.close()
            return self._child.wait(timeout + 5)  # it gives up by itself at `timeout`
        except BrokenPipeError:
            return self._child.wait()
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def abandon(self) -> None:
        """The driver ends by an error: it does what it can, as after a kill. Nothing happens after `end`."""
        with suppress(OSError):
            if self._child.stdin is not None:
                self._child.stdin.close()

    def _spawn(self) -> None:
        self._starts, self._started = self._starts + 1, time.monotonic()
        (self.run_dir / f"{self.name}.state").unlink(missing_ok=True)
        with (self.run_dir / f"{self.name}.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", *self._command],
                env={**child_environment(), **self._settings},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver, which then says how the run ended
            )


class Driver(threading.Thread):
    """The process's side: listens to the driver; when that has ended, ends this process in time, whatever it is doing."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.status: str | None = None  # how the driver said that it ended; None: it said nothing, since it was killed
        self._limit, self._log = ORPHAN_S, log

    def run(self) -> None:
        said = b""
        while not said.endswith(b"\n") and (chunk := os.read(0, 4096)):
            said += chunk
        if said.endswith(b"\n"):
            _, self.status, limit = said.decode().split()
            self._limit = float(limit)
        self.ended.set()
        time.sleep(self._limit)
        self._log.warning("gave up: not everything was sent within %g s", self._limit)
        os._exit(3)


def tell_behind(run_dir: Path, name: str, reason: str) -> None:
    """Let the driver know; '': it has caught up."""
    path = run_dir / f"{name}.state"
    if not reason:
        path.unlink(missing_ok=True)
        return
    with suppress(UserError):  # the disk is full
        write_json(path, {"behind": reason})
