"""Signals that ask a process to end: Ctrl-C, what schedulers and spot machines send, a terminal that is closed.

Imports next to nothing: the command line listens before it imports what takes a while.
"""

from __future__ import annotations

import gc
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RAY_STARTS = "ray"  # the thread that starts one, and lives until it is left
Handler = Callable[[int, Any], object]

_interrupted = False


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Give these signals to `handler` until the block ends. Only the main thread can: in another one nothing changes.

    Raises:
        KeyboardInterrupt: `interrupt` was called before
    """
    if _interrupted:
        raise KeyboardInterrupt
    put_back = keep()
    if _in_main_thread():
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, handler)
    try:
        yield
    finally:
        put_back()


@contextmanager
def ignored() -> Iterator[None]:
    """These signals come to nothing until the block ends, which must be soon."""
    put_back = keep()
    if _in_main_thread():
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        put_back()


@contextmanager
def held() -> Iterator[None]:
    """The first of these signals that comes is dealt with when the block ends, a second one at once.

    For code of others that runs for a short while: where a signal raises in a destructor, Python drops what it raised.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            put_back()
            signal.raise_signal(number)

    put_back = keep()
    if _in_main_thread():
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, note)
    try:
        yield
    finally:
        put_back()
        if len(came) == 1:
            signal.raise_signal(came[0])


def keep() -> Callable[[], None]:
    """What puts the handlers of now back in their places, whoever has replaced them since."""
    handlers = {number: signal.getsignal(number) for number in ENDING} if _in_main_thread() else {}

    def put_back() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    return put_back


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def exit_with(code: str | int | None) -> NoReturn:
    """End this process; at once where a thread still starts a Ray, whose C++ half does not survive Python's own end.

    At its end Python looks for cycles among all objects, several times: a second and more behind torch, Ray or MLflow. What
    lives here then is left out of that.
    """
    if isinstance(code, int) and any(thread.name == RAY_STARTS for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()
    sys.exit(code)


def leave(number: int, frame: Any) -> NoReturn:
    """A handler for where there is nothing yet to clean up."""
    os._exit(130)


def interrupt(number: int, frame: Any) -> NoReturn:
    """A handler that ends everything as Ctrl-C does.

    Python drops an exception that is raised in a destructor, and while it imports there are many; so it is remembered.
    """
    global _interrupted
    _interrupted = True
    _leave_closed_terminal(number)
    raise KeyboardInterrupt


class Request:
    """A handler that notes the wish to end, for a loop to read; a second Ctrl-C leaves at once.

    Schedulers and closed terminals may send more than one signal of theirs, which all mean the same.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._late: list[tuple[float, Callable[[], object]]] = []

    def at_last(self, seconds: float | None, call: Callable[[], object] = lambda: None) -> None:
        """What is called too, in another thread, where so many seconds after the wish nobody has said None here."""
        self._late = [] if seconds is None else [*self._late, (seconds, call)]

    def _lose_patience(self, number: int) -> None:
        if self._late:
            self._late[number][1]()

    def __call__(self, number: int, frame: Any) -> None:
        _leave_closed_terminal(number)
        if self.reason is None:
            self.reason = "interrupted"
            tell("\nEnding the run with a checkpoint; Ctrl-C once more to leave at once.\n")
            for which, (seconds, _) in enumerate(self._late):
                timer = threading.Timer(seconds, self._lose_patience, (which,))
                timer.daemon = True
                timer.start()
        elif number == signal.SIGINT:
            os._exit(130)


def tell(message: str) -> None:
    """On stderr, past Python's buffers: the signal may have come while one of them was being written."""
    with suppress(OSError):
        os.write(2, message.encode())


def _leave_closed_terminal(number: int) -> None:
    """After SIGHUP whoever writes to the terminal gets an error; what is still said goes nowhere instead."""
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for output in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
