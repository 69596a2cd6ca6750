"""What lies outside of this program: how long to wait for servers and clusters, and what other processes of ours get to know."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

OUTSIDE_S = 10.0
# What glibc's memory is to be in, where the system gives huge pages to who asks: learning and stepping are 5 to 9 % faster.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

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


def child_environment() -> dict[str, str]:
    """For another process of ours, that imports from where this one does, and is none of Ray's.

    When the run's own Ray ends, it ends all that bears its marks.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DISTRL_RAY_"))}
    return inherited | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "OMP_NUM_THREADS": "1"}
