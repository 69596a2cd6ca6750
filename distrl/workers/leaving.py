"""Leaving an update at the border of a minibatch: the learner is then what it was before it, and owes it.

Whoever ends a run need not wait for an update of a minute. It is made again when the run goes on, from the same state and
of the same fragments or batches, and so to the same bits.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from distrl.errors import Left
from distrl.heartbeat import HEART, Leave
from distrl.types import Arrays

L = TypeVar("L", bound=type)
LONG_S = 0.5  # a learner whose updates take less is waited for: it need not keep what it was


def can_be_left(learner: L) -> L:
    """A class of learners: its `update` and `learn` raise `Left` where they are not to be ended, and its `state` is that before."""
    leave = functools.partial(_left, vars(learner)["state"])
    changes: dict[str, Callable[..., Any]] = {
        "update": leave,
        "learn": leave,
        "priorities": _owed,
        "state": _before,
    }
    for name, change in changes.items():
        setattr(learner, name, functools.wraps(vars(learner)[name])(change(vars(learner)[name])))
    return learner


def _left(state_of: Callable[..., Arrays], update: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *inputs: Any) -> Any:
        self.owes = True
        if HEART.leave:
            raise Left
        long = getattr(self, "lasted", math.inf) > LONG_S
        state = {name: np.copy(array) for name, array in state_of(self).items()} if long else None
        start, HEART.can_leave = time.perf_counter(), state is not None
        try:
            made = update(self, *inputs)
            self.owes = False
            return made
        except Leave:
            self.before = state
            raise Left from None
        finally:
            self.lasted, HEART.can_leave = time.perf_counter() - start, False

    return call


def _owed(priorities: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, number: int) -> Any:
        if self.owes:  # of a batch that it did not learn from
            raise Left
        return priorities(self, number)

    return call


def _before(state: Callable[..., Arrays]) -> Callable[..., Arrays]:
    def call(self: Any) -> Arrays:
        before: Arrays | None = getattr(self, "before", None)
        return state(self) if before is None else before

    return call
