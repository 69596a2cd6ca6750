"""An execution for tests that finishes calls out of order, and loses workers, calls and replies. Runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distrl.errors import WorkerLost
from distrl.execution import SEAT
from distrl.execution.resources import Node, Seat
from distrl.heartbeat import HEART


class Call:
    """A call that was submitted, or the result or error that came of it."""

    def __init__(self, worker: FaultyWorker | None, method: str = "", args: tuple[Any, ...] = ()) -> None:
        self.worker, self.method, self.args = worker, method, args
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None


class Part(Call):
    """One of the two things that a call returns."""

    def __init__(self, whole: Call, index: int) -> None:
        super().__init__(whole.worker)
        self.whole, self.index = whole, index


class FaultyWorker:
    def __init__(self, cls: type, args: tuple[Any, ...], name: str) -> None:
        self.make = lambda: cls(*args)
        self.instance: Any = None
        self.name = name
        self.queue: list[Call] = []
        self.dead = False


class FaultyExecution:
    def __init__(self, seed: int, losses: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.losses = losses  # still to come
        self.calm = 0  # calls until the next may come: the same call is not lost for ever
        self.lost: list[str] = []  # names of the workers that were lost
        self.workers: list[FaultyWorker] = []

    def nodes(self) -> list[Node]:
        return [Node(cpus=1)]

    def ask_for(self, parts: Sequence[dict[str, float]]) -> None:
        pass

    def begun(self, worker: FaultyWorker) -> bool:
        return True

    def alive(self, worker: FaultyWorker) -> bool:
        return True

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> FaultyWorker:
        self.workers.append(FaultyWorker(cls, args, name))
        return self.workers[-1]

    def submit(self, worker: FaultyWorker, method: str, *args: Any) -> Call:
        call = Call(worker, method, args)
        if worker.dead:
            self._fail(call)
        else:
            worker.queue.append(call)
        return call

    def submit_pair(self, worker: FaultyWorker, method: str, *args: Any) -> tuple[Part, Part]:
        call = self.submit(worker, method, *args)
        return Part(call, 0), Part(call, 1)

    def wait(self, futures: Sequence[Call], timeout: float) -> list[Call]:
        while not any(self._whole(f).done for f in futures):
            self._advance(self.rng.choice(np.array([w for w in self.workers if w.queue], dtype=object)))
        done = [f for f in futures if self._whole(f).done]
        return [done[i] for i in self.rng.permutation(len(done))]

    def get(self, future: Call, timeout: float | None = None) -> Any:
        call = self._whole(future)
        while not call.done:
            assert call.worker is not None
            self._advance(call.worker)
        if call.error is not None:
            raise call.error
        return call.value[future.index] if isinstance(future, Part) else call.value

    def put(self, value: Any) -> Call:
        call = Call(None)
        call.done, call.value = True, value
        return call

    def pulse(self, worker: FaultyWorker) -> None:
        return None

    def leave(self, worker: FaultyWorker) -> None:
        HEART.leave = True

    def kill(self, worker: FaultyWorker, why: str = "") -> None:
        worker.dead, worker.instance = True, None
        for call in worker.queue:
            self._fail(call)
        worker.queue.clear()
        if worker in self.workers:
            self.workers.remove(worker)

    def close(self) -> None:
        self.workers.clear()

    def _advance(self, worker: FaultyWorker) -> None:
        """Run a worker's next call, or lose the worker before it, or after it together with its reply."""
        fate = self.rng.random()
        self.calm -= 1
        danger = self.losses > 0 and self.calm <= 0
        if danger and fate < 0.05:
            return self._lose(worker)
        call = worker.queue[0]
        try:
            args = [self.get(a) if isinstance(a, Call) else a for a in call.args]
            if worker.dead:  # lost while its arguments were being made
                return None
            worker.queue.pop(0)
            if worker.instance is None:
                worker.instance = worker.make()
            call.value = getattr(worker.instance, call.method)(*args)
        except Exception as error:
            if call in worker.queue:
                worker.queue.remove(call)
            call.error = error
        if danger and fate > 0.95:
            self._fail(call)
            return self._lose(worker)
        call.done = True
        return None

    def _lose(self, worker: FaultyWorker) -> None:
        self.losses -= 1
        self.calm = 3
        self.lost.append(worker.name)
        self.kill(worker)

    def _fail(self, call: Call) -> None:
        call.done, call.error = (
            True,
            WorkerLost(call.worker, f"the {call.worker.name} is gone" if call.worker else "gone"),
        )

    @staticmethod
    def _whole(future: Call) -> Call:
        return future.whole if isinstance(future, Part) else future
