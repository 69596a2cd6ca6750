"""What gets a worker of this process out of a call in which it hangs; on Ray its process is killed instead."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distrl.heartbeat import HEART
from distrl.settings import ClusterSettings

SIGNAL = signal.SIGVTALRM  # which nobody else is likely to use
LOOK_S = 0.5


class Hung(BaseException):
    """Raised within a worker's call. It is no `Exception`: the env, or what is around it, would take it for its own."""


@contextmanager
def alarm(settings: ClusterSettings) -> Iterator[None]:
    """Raise `Hung` in a worker that works in the main thread, and whose heart has not beaten for too long.

    It is raised between two bytecodes of Python: a loop in C is not left. In other threads than the main one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, seen, limit = threading.Event(), 0, 0.0

    def ring(number: int, frame: Any) -> None:
        if HEART.call and HEART.beats == seen:  # else it has gone on meanwhile
            raise Hung(f"hung for more than {limit:g} s at {HEART.place}")

    def look() -> None:
        nonlocal seen, limit
        silent = 0.0  # only time in which this process could work counts
        while not over.wait(LOOK_S):
            silent = silent + LOOK_S if HEART.call and HEART.beats == seen else 0.0
            seen = HEART.beats
            limit = settings.limit(type(HEART.worker).__name__)
            if silent > limit:
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    before = signal.signal(SIGNAL, ring)
    watch = threading.Thread(target=look, name="alarm", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        signal.signal(SIGNAL, before)
