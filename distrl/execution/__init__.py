"""How workers run: the seam between what distrl computes and where.

The trainer knows this interface alone. `local` calls at once in this process, `cluster` makes Ray actors; the tests
add one that loses calls and finishes them out of order. All give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from distrl.execution.resources import Node, Seat

Worker = Any  # a handle: hashable, opaque
Future = Any  # a result to come: hashable, opaque; may be passed as an argument where the result is wanted
SEAT = Seat()


class Execution(Protocol):
    def nodes(self) -> list[Node]:
        """The machines that workers can be started on now, without those that were told that they end soon."""

    def ask_for(self, parts: Sequence[dict[str, float]]) -> None:
        """Have machines come for these (`distrl.execution.resources.lacking`) where they can, in place of what was asked for before."""

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> Worker:
        """Start a worker: an instance of `cls`. Failures show in the first result."""

    def begun(self, worker: Worker) -> bool:
        """Whether its process is there, and has made the instance."""

    def alive(self, worker: Worker) -> bool:
        """Whether its node is there, as `nodes` last saw it; also one that ends soon is."""

    def submit(self, worker: Worker, method: str, *args: Any) -> Future:
        """Call a method; a worker's calls run in order."""

    def submit_pair(self, worker: Worker, method: str, *args: Any) -> tuple[Future, Future]:
        """Call a method that returns two things, each of which travels by itself."""

    def wait(self, futures: Sequence[Future], timeout: float) -> list[Future]:
        """The futures that are done (or failed), at least one unless `timeout` seconds pass."""

    def get(self, future: Future, timeout: float | None = None) -> Any:
        """A result. Raises `WorkerLost`, or what the worker raised, with its traceback; TimeoutError after so many seconds."""

    def put(self, value: Any) -> Future:
        """A value that is sent once and read by many."""

    def pulse(self, worker: Worker) -> Future | None:
        """`distrl.heartbeat.pulse` of a worker, whatever it does; None where nobody could tell, as it works in this process."""

    def leave(self, worker: Worker) -> None:
        """Have a learner leave its update (`distrl.workers.leaving`), whatever else waits for it."""

    def kill(self, worker: Worker, why: str = "") -> None:
        """End a worker at once, whatever it does. `why`: for the `WorkerLost` of what it owes."""

    def close(self) -> None:
        """End all workers and all that this execution started."""
