"""A run that begins in this process while Ray starts beside it, and goes on there: its bits do not tell where it ran."""

from __future__ import annotations

from typing import Any, Protocol

from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.execution.resources import Resources, share_out
from distrl.settings import Config


class Elsewhere(Protocol):
    """Where a run can go on that began in this process."""

    def begin(self) -> None:
        """Start it, beside the run."""

    def ready(self) -> bool:
        """Whether workers that are spawned there begin at once. Raises `UserError` where it cannot be had."""

    def take(self) -> tuple[Execution, Resources]:
        """It, once it is ready, and what each worker gets there."""

    def close(self) -> None:
        """End it, where it was begun."""


class RayBeside:
    """A Ray of the run's own as `Elsewhere`, with processes that have imported what their workers need."""

    def __init__(self, config: Config, object_store_bytes: int, learner_modules: tuple[str, ...]) -> None:
        self.config, self.object_store_bytes, self.learner_modules = config, object_store_bytes, learner_modules
        self.execution: Any = None  # a RayExecution, whose module is imported once it is wanted
        self.warming: list[Any] | None = None

    def begin(self) -> None:
        from distrl.execution.cluster import RayExecution

        self.execution = RayExecution("local", self.object_store_bytes, wait=False)

    def ready(self) -> bool:
        if self.warming is None:
            if not self.execution.up():
                return False
            self.resources = share_out(self.config, self.execution.cpus)
            runners = [("distrl.workers.runner",)] * self.resources.runners
            self.warming = self.execution.warm([("distrl.workers.learner", *self.learner_modules), *runners])
        return len(self.execution.wait(self.warming, timeout=0)) == len(self.warming)

    def take(self) -> tuple[Execution, Resources]:
        return self.execution, self.resources

    def close(self) -> None:
        if self.execution is not None:
            self.execution.close()


class MovingExecution:
    """`distrl.execution.Execution` in this process, and after `move` elsewhere. Nothing must be under way then."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self.elsewhere = elsewhere
        self.now: Execution = LocalExecution()

    def move(self) -> Resources:
        """Leave this process; returns what each worker gets from now on."""
        self.now, resources = self.elsewhere.take()
        return resources

    def close(self) -> None:
        self.now.close()
        self.elsewhere.close()

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.now, verb)
