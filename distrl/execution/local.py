"""Everything in this process, at once and in order: for debuggers, tests and small runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from distrl.errors import WorkerLost
from distrl.execution import SEAT
from distrl.execution.alarm import Hung
from distrl.execution.resources import Node, Seat
from distrl.heartbeat import leave


@dataclass(eq=False)
class Done:
    """A result, or the exception that came instead."""

    value: Any = None
    error: BaseException | None = None


@dataclass(eq=False)
class LocalWorker:
    instance: Any
    name: str
    error: BaseException | None = field(default=None)


class LocalExecution:
    def nodes(self) -> list[Node]:
        return [Node(cpus=1)]

    def ask_for(self, parts: Sequence[dict[str, float]]) -> None:
        pass

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> LocalWorker:
        return LocalWorker(cls(*map(self._value, args)), name)

    def begun(self, worker: LocalWorker) -> bool:
        return True

    def alive(self, worker: LocalWorker) -> bool:
        return True

    def submit(self, worker: LocalWorker, method: str, *args: Any) -> Done:
        try:
            return Done(getattr(worker.instance, method)(*map(self._value, args)))
        except Hung as hung:
            return Done(error=WorkerLost(worker, str(hung)))
        except Exception as error:
            return Done(error=error)

    def submit_pair(self, worker: LocalWorker, method: str, *args: Any) -> tuple[Done, Done]:
        done = self.submit(worker, method, *args)
        if done.error is not None:
            return done, done
        first, second = done.value
        return Done(first), Done(second)

    def wait(self, futures: Sequence[Done], timeout: float) -> list[Done]:
        return list(futures)

    def get(self, future: Done, timeout: float | None = None) -> Any:
        if future.error is not None:
            raise future.error
        return future.value

    def put(self, value: Any) -> Done:
        return Done(value)

    def pulse(self, worker: LocalWorker) -> None:
        return None

    def leave(self, worker: LocalWorker) -> None:
        leave()

    def kill(self, worker: LocalWorker, why: str = "") -> None:
        worker.instance = None

    def close(self) -> None:
        pass

    def _value(self, argument: Any) -> Any:
        return self.get(argument) if isinstance(argument, Done) else argument
