"""What ends or disturbs a run, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from distrl.execution import Future
from distrl.execution.watched import WatchedExecution
from distrl.settings import Config
from distrl.training.callbacks import Callbacks

# At a fragment or an evaluation whose env raises each time: these are pure functions, so the second time is proof.
ENV_ATTEMPTS = 2


class Observer(Protocol):
    """Who wants to know how the run goes."""

    def record(self, row: dict[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


class Interrupted(Exception):
    """The run was asked to end; the message says by what."""


class Impatient(Interrupted):
    """And `stop.grace_s` have passed since: nothing is waited for any more."""


class TimeUp(Exception):
    """`stop.seconds` have passed, or will have by the end of another update."""


class Recovery:
    """Waits for workers with an ear for what ends the run, and counts the workers that were lost."""

    def __init__(
        self,
        config: Config,
        execution: WatchedExecution,
        observer: Observer,
        interrupted: Callable[[], str | None],
        callbacks: Callbacks | None = None,
    ) -> None:
        """`interrupted`: asked often; a reason ends the run at the next iteration, with a checkpoint."""
        self.callbacks = callbacks or Callbacks()
        self.config, self.execution, self.observer, self.interrupted = config, execution, observer, interrupted
        self.began = time.perf_counter()
        self.decided = False  # that the run ends: its time does not matter any more
        self.learn_s = 0.0  # of the newest update that is known: what follows a decision to end
        self.asked: float | None = None  # when the run was first seen to be asked to end
        self.restarts = 0
        self.blocked = 0.0  # seconds spent waiting for workers

    def wait(self, futures: list[Future], timeout: float) -> list[Future]:
        """Those that are done, at least one unless `timeout` seconds pass."""
        start = time.perf_counter()
        done = self.execution.wait(futures, timeout)
        self.blocked += time.perf_counter() - start
        return done

    def get(self, future: Future) -> Any:
        """A result, waiting for it."""
        while not self.wait([future], 0.5):
            pass
        return self.execution.get(future)

    def patience(self) -> None:
        """Raises `Impatient` where the run was asked to end too long ago to go on waiting."""
        if (reason := self.interrupted()) is None:
            return
        now = time.perf_counter()
        self.asked = now if self.asked is None else self.asked
        if now - self.asked > self.config.stop.grace_s:
            raise Impatient(reason)

    def check(self) -> None:
        """Raise `Interrupted` or `TimeUp` where it is so."""
        seconds = self.config.stop.seconds
        if (reason := self.interrupted()) is not None:
            raise Interrupted(reason)
        if seconds is not None and not self.decided and time.perf_counter() - self.began + self.learn_s >= seconds:
            raise TimeUp

    def record(self, row: dict[str, float]) -> None:
        """Tell everybody of a row."""
        self.observer.record(row)
        self.callbacks.iteration(row, self.config.schedule.lag)

    def count_restart(self, message: str) -> None:
        """Tell of a worker that is replaced. Raises RuntimeError where too many were."""
        self.restarts += 1
        if self.restarts > self.config.cluster.restarts:
            raise RuntimeError(
                f"cluster.restarts allows {self.config.cluster.restarts} restarts, and they are used up. The last cause: {message}"
            )
        self.observer.warn(message)
