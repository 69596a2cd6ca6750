"""An execution whose workers are watched for those that hang, and which is replaced when it dies itself.

Whoever waits here watches. A worker that hangs is killed; what it owed is then lost, and recovered as that of any lost
worker. An execution that has died is told of as `ExecutionLost`, and `renew` puts another into its place: a Ray, or this
process where none can be had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distrl.errors import UserError, WorkerLost
from distrl.execution import SEAT, Execution, Future, Worker
from distrl.execution.local import LocalExecution
from distrl.execution.resources import Node, Seat
from distrl.heartbeat import HEART
from distrl.settings import ClusterSettings

SLICE_S = 0.5  # how long is waited at most before somebody looks around
START_S = 900.0  # a cluster may have to find a machine for a process first
SILENT_S = 5.0  # a worker that says nothing for less is only slow, whatever the settings say


@dataclass
class Pulse:
    """What is known of a worker; times are those of the watch."""

    limit: float  # between two beats
    heard: float  # when it said something
    beaten: float  # when it said that it had beaten, or was waiting for work
    node: str = ""  # where it was put
    beats: int | None = None  # at that time; None: it has said nothing yet, for its process is starting
    where: str = ""
    question: Future | None = None
    asked: float = 0.0
    first: Worker | None = None  # of those that it works together with, if that is another one
    name: str = ""  # among these


class Watch:
    """Asks all workers now and then, beside what they do, whether their hearts have beaten, and finds those that hang.

    Its clock counts only the time in which the driver could have heard something: where the driver itself was stopped,
    or did something else, no worker has hung.
    """

    def __init__(self, settings: ClusterSettings, execution: Execution) -> None:
        self.settings, self.execution = settings, execution
        self.silent_s = max(settings.step_timeout_s, SILENT_S)
        self.pulses: dict[Worker, Pulse] = {}
        self.clock, self.last = 0.0, time.monotonic()

    def add(self, worker: Worker, name: str, node: str) -> None:
        self.pulses[worker] = Pulse(self.settings.limit(name), self.clock, self.clock, node)

    def look(self) -> list[tuple[Worker, str]]:
        """Those that hang, or that work together with one that hangs or is lost, and how that is known."""
        now = time.monotonic()
        self.clock, self.last = self.clock + min(now - self.last, 2 * SLICE_S), now
        known = [(worker, pulse, self._ask(worker, pulse)) for worker, pulse in list(self.pulses.items())]
        return [
            (worker, why) if pulse.first is None else (pulse.first, f"{pulse.name} {why}")
            for worker, pulse, why in known
            if why
        ]

    def _ask(self, worker: Worker, pulse: Pulse) -> str:
        """Hear and ask a worker; returns why it has hung, or ''."""
        if pulse.question is not None and self.execution.wait([pulse.question], 0):
            try:
                self._hear(pulse)
            except WorkerLost as lost:
                del self.pulses[worker]
                # Of all others it shows where their results are waited for.
                return "" if pulse.first is None else f"was lost: {lost}"
        if pulse.question is None and self.clock - pulse.asked >= min(1.0, pulse.limit / 8):
            pulse.question, pulse.asked = self.execution.pulse(worker), self.clock
            if pulse.question is None:  # it works in this process, which is not late
                pulse.heard = self.clock
        if pulse.beats is None and pulse.question is not None and self.execution.begun(worker):
            # It is up, though it has not answered yet: from now on silence counts.
            pulse.beats, pulse.heard, pulse.beaten, pulse.where = -1, self.clock, self.clock, "its first call"
        if pulse.beats is None:
            if pulse.question is not None and pulse.node not in {node.id for node in self.execution.nodes()}:
                return "lost: its node was gone before its process was up"  # for a Ray it would be on its way for ever
            late = self.clock - pulse.heard > START_S
            return f"hung: its process is not up after {START_S:g} s" if late else ""
        if self.clock - pulse.heard > self.silent_s:
            return f"hung: its process has not answered for more than {self.silent_s:g} s"
        if self.clock - pulse.beaten > pulse.limit:
            return f"hung for more than {pulse.limit:g} s at {pulse.where}"
        return ""

    def _hear(self, pulse: Pulse) -> None:
        beats, pulse.where = self.execution.get(pulse.question)
        pulse.question, pulse.heard = None, self.clock
        if beats != pulse.beats or not pulse.where:
            pulse.beats, pulse.beaten = beats, self.clock


class WatchedExecution:
    """`distrl.execution.Execution`, around another one."""

    def __init__(
        self,
        execution: Execution,
        settings: ClusterSettings,
        again: Callable[[], Execution] | None = None,
        patience: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            again: starts another execution in the place of one that has died; raises `UserError` where there is none
            patience: called while something is waited for; raises what ends the waiting
        """
        self.settings, self.again, self.patience = settings, again, patience
        self.use(execution)

    def use(self, execution: Execution) -> None:
        """Put an execution into the place of the one there is, with no workers yet."""
        self.inner, self.watch = execution, Watch(settings=self.settings, execution=execution)
        self.beside: dict[Worker, list[Worker]] = {}  # those that work together with the first of them

    def renew(self) -> str:
        """Put another execution into the place of one that has died, with no workers yet; returns what it is."""
        self.inner.close()
        why = "nothing else is known"
        if self.again is not None:
            try:
                self.use(self.again())
                return "another Ray"
            except UserError as error:
                why = str(error)
        self.use(LocalExecution())
        return f"one process, as there is no other Ray ({why})"

    def nodes(self) -> list[Node]:
        return self.inner.nodes()

    def ask_for(self, parts: Sequence[dict[str, float]]) -> None:
        self.inner.ask_for(parts)

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> Worker:
        worker = self.inner.spawn(cls, *args, name=name, seat=seat)
        self.watch.add(worker, name, seat.node)
        return worker

    def spawn_together(self, cls: type, *args: Any, name: str, seats: Sequence[Seat]) -> Worker:
        """Start workers that do together whatever the first of them is asked to do, whose answer counts; all are lost with one.

        They have `listen` and `meet`. In this process one must do.
        """
        seats = seats[:1] if isinstance(self.inner, LocalExecution) else seats
        first, *others = workers = [self.spawn(cls, *args, name=name, seat=seat) for seat in seats]
        if others:
            names = {node.id: node.name for node in self.nodes()}
            apart = len({seat.node for seat in seats}) > 1
            hosts = [names[seat.node] if apart else "127.0.0.1" for seat in seats]
            port = self.submit(first, "listen", hosts[0])
            for number, worker in enumerate(workers):
                self.submit(worker, "meet", number, hosts, port)
            for number, worker in enumerate(others, 2):
                pulse = self.watch.pulses[worker]
                pulse.first, pulse.name = first, f"{name} {number} of {len(workers)}"
        self.beside[first] = others
        return first

    def begun(self, worker: Worker) -> bool:
        return self.inner.begun(worker)

    def alive(self, worker: Worker) -> bool:
        return self.inner.alive(worker)

    def submit(self, worker: Worker, method: str, *args: Any) -> Future:
        for other in self.beside.get(worker, ()):
            self.inner.submit(other, method, *args)
        return self.inner.submit(worker, method, *args)

    def submit_pair(self, worker: Worker, method: str, *args: Any) -> tuple[Future, Future]:
        for other in self.beside.get(worker, ()):
            self.inner.submit(other, method, *args)
        return self.inner.submit_pair(worker, method, *args)

    def wait(self, futures: Sequence[Future], timeout: float) -> list[Future]:
        """Raises what `patience` raises where nothing is done."""
        self._look()
        until = time.monotonic() + timeout
        while not (done := self.inner.wait(futures, max(0.0, min(SLICE_S, until - time.monotonic())))):
            self._look()
            self.patience()
            if time.monotonic() >= until:
                break
        return done

    def get(self, future: Future, timeout: float | None = None) -> Any:
        """As `wait` raises."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self.inner.get(future, SLICE_S)
            except TimeoutError:
                self._look()
                self.patience()
                if until is not None and time.monotonic() >= until:
                    raise

    def put(self, value: Any) -> Future:
        return self.inner.put(value)

    def pulse(self, worker: Worker) -> Future | None:
        return self.inner.pulse(worker)

    def leave(self, worker: Worker) -> None:
        self.inner.leave(worker)

    def kill(self, worker: Worker, why: str = "") -> None:
        """With all that work together with it. One of an execution that was replaced is gone already."""
        for one in (worker, *self.beside.pop(worker, ())):
            if self.watch.pulses.pop(one, None) is not None:
                self.inner.kill(one, why)

    def close(self) -> None:
        self.inner.close()

    def doing(self) -> str:
        """Where a worker is that is at work, the learner before all others, as far as it is known; '' where none is."""
        known = (pulse.where for pulse in list(self.watch.pulses.values()) if pulse.where)
        return next(known, HEART.place)

    def _look(self) -> None:
        if time.monotonic() - self.watch.last < SLICE_S / 2:
            return
        for worker, why in self.watch.look():
            self.kill(worker, why)
