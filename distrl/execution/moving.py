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
    """A Ray as `Elsewhere`, with processes that have imported what their workers need."""

    def __init__(
        self, config: Config, object_store_bytes: int, replay_bytes: int, torch: bool, joined: Any = None
    ) -> None:
        """
        Args:
            torch: the learner needs it
            joined: a RayExecution on a cluster; None: a Ray of the run's own is to be started
        """
        self.config, self.object_store_bytes, self.replay_bytes = config, object_store_bytes, replay_bytes
        self.learner = ("distrl.workers.learners", *(["torch"] if torch else []))
        self.execution, self.up = joined, joined is not None
        self.warming: list[Any] | None = None

    def begin(self) -> None:
        from distrl.execution.cluster import RayExecution  # once it is wanted: Ray takes a second to import

        if self.execution is None:
            self.execution = RayExecution("local", self.object_store_bytes, wait=False)

    def ready(self) -> bool:
        self.up = self.up or self.execution.up()
        if self.up and self.warming is None:
            resources = self.resources = share_out(self.config, self.execution.nodes(), self.replay_bytes)
            learners = [(self.learner, seat) for seat in resources.learners]
            runners = [(("distrl.workers.runner",), seat) for seat in resources.runners]
            self.warming = self.execution.warm([*learners, *runners])
        return self.warming is not None and len(self.execution.wait(self.warming, timeout=0)) == len(self.warming)

    def take(self) -> tuple[Execution, Resources]:
        return self.execution, self.resources

    def close(self) -> None:
        if self.execution is not None:
            self.execution.close()


class MovingExecution(LocalExecution):
    """This process, which a run is to leave."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self.elsewhere = elsewhere

    def close(self) -> None:
        self.elsewhere.close()
