"""How long to wait for what lies outside of this program: servers and clusters, which may hang or say nothing for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

OUTSIDE_S = 10.0

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, or raises. It goes on in a thread that nobody waits for when the time is over.

    Raises:
        TimeoutError: `seconds` were not enough
    """
    result: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if error:
        raise error[0]
    if not result:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return result[0]
