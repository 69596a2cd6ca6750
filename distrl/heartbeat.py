"""What tells a watchdog slow from hung: a worker beats while it works, and tells where it is when it is asked."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from distrl.errors import Left

W = TypeVar("W", bound=type)


class Leave(BaseException):
    """Raised at the border of a minibatch, or between two steps of an evaluation. It is no `Exception`: an algorithm might take it for its own."""


@dataclass
class Heartbeat:
    """Beats whenever a call begins, an env copy is made, reset, stepped or replayed a step further, a minibatch was learnt."""

    beats: int = 0
    copy: int = -1  # the env copy at work; -1: all of them at once
    doing: str = ""  # what it does, if not a step
    call: str = ""  # the worker's method at work; '' where it waits for one
    before: int = 0  # beats when that began
    worker: Any = None  # whose method it is
    leave: bool = False  # nothing that takes long is to be ended any more
    can_leave: bool = False  # what is at work now can be left

    @property
    def of_copy(self) -> str:
        """Which env copy is at work, and what it does."""
        copy = "" if self.copy < 0 else f", env copy {self.copy} of the shard"
        return copy + (f" ({self.doing})" if self.doing else "")

    @property
    def place(self) -> str:
        """Where the worker is; '' where it waits for a call."""
        if not self.call or hasattr(self.worker, "where"):
            return self.call and str(self.worker.where())
        done = self.beats - self.before
        return f"the call of {self.call!r}" + (f" after {done:,} minibatches" if done else "")

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, the worker waits for others, who may take their time."""
        call, self.call = self.call, ""
        try:
            yield
        finally:
            self.call = call

    @contextlib.contextmanager
    def leavable(self) -> Iterator[None]:
        """Within, the work can be left at a beat. Raises `Left`; whoever wants it done begins it anew."""
        self.can_leave = True
        try:
            yield
        except Leave:
            raise Left from None
        finally:
            self.can_leave = False

    def beat(self, copy: int = -1, doing: str = "") -> None:
        self.beats, self.copy, self.doing = self.beats + 1, copy, doing
        if self.leave and self.can_leave:
            raise Leave


HEART = Heartbeat()  # of this process: on Ray a worker is alone in its own


def at_work(worker: W) -> W:
    """A class of workers: whenever a public method of one runs, it is at work."""
    for name, method in list(vars(worker).items()):
        if inspect.isfunction(method) and not name.startswith("_") and name != "where":
            setattr(worker, name, _call(method))
    return worker


def _call(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        outer = HEART.worker, HEART.call, HEART.before
        HEART.beat()
        HEART.worker, HEART.call, HEART.before = args[0], method.__name__, HEART.beats
        try:
            return method(*args, **kwargs)
        finally:
            HEART.worker, HEART.call, HEART.before = outer

    return call


def pulse(worker: object) -> tuple[int, str]:
    """Of the worker in this process: its beats so far, and where it is; '' where it waits for a call."""
    return HEART.beats, HEART.place


def leave(worker: object = None) -> None:
    """Have the workers of this process leave an update or an evaluation, and begin none any more."""
    HEART.leave = True
