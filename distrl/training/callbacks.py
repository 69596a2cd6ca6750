"""What a user's own objects are told of a run, and their wish to end it.

They get copies, and no random number of the run is theirs, so they cannot change what is learnt. When a wish to end counts
is decided by the iteration that it is about, never by when the news came: the same run ends at the same iteration anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distrl.errors import UserError, did_you_mean
from distrl.types import Evaluation

KNOWN = ("on_iteration", "on_evaluation", "on_checkpoint")


class Callbacks:
    """Objects with any of `on_iteration(row)`, `on_evaluation(evaluation)` and `on_checkpoint(path)`.

    One that returns False asks to end the run. One that raises ends it, too: `error` is what it raised, and nobody is told
    anything any more.
    """

    def __init__(self, listeners: Sequence[object] = (), pause_at: int | None = None) -> None:
        """`pause_at`: the iteration before which the run pauses with a checkpoint. Raises `UserError` for what listens to nothing."""
        for listener in listeners:
            _check(listener)
        self.listeners, self.pause_at = listeners, pause_at
        self.stop_at: int | None = None  # the iteration that shall not be any more
        self.error: BaseException | None = None
        self._row = self._version = -1  # the newest that was told; after a lost learner some come again

    def iteration(self, row: Mapping[str, float], lag: int) -> None:
        """Tell of a row of metrics.jsonl. `lag`: iterations that the learner may be behind."""
        number = int(row["iteration"])
        if number > self._row:
            self._row = number
            self._tell("on_iteration", dict(row), number + 2 + lag)  # by then it has come everywhere

    def evaluation(self, evaluation: Evaluation, k: int) -> None:
        """Tell of an evaluation whose result counts from iteration k on."""
        if evaluation.version > self._version:
            self._version = evaluation.version
            self._tell("on_evaluation", copy.deepcopy(evaluation), k + 1)

    def checkpoint(self, path: Path, k: int) -> None:
        """Tell of a checkpoint before iteration k."""
        self._tell("on_checkpoint", path, k)

    def _tell(self, name: str, news: Any, stop_at: int) -> None:
        for listener in self.listeners:
            call: Callable[[Any], object] | None = getattr(listener, name, None)
            if call is None or self.error is not None:
                continue
            try:
                answer = call(copy.copy(news))
            except BaseException as error:  # the run ends by it, but not in the middle of an iteration
                self.error, answer = error, False
            if isinstance(answer, bool | np.bool_) and not answer:
                self.stop_at = stop_at if self.stop_at is None else min(self.stop_at, stop_at)


def _check(listener: object) -> None:
    if isinstance(listener, type):
        raise UserError(f"callbacks has the class {listener.__name__}. Give an object of it: {listener.__name__}(...).")
    named = [name for name in dir(listener) if name.startswith("on_")]
    unknown = [name for name in named if name not in KNOWN]
    if unknown or not named:
        what = f"{unknown[0]}, which nobody calls" if unknown else "no method that is called"
        near = did_you_mean(unknown[0], KNOWN) if unknown else ""
        raise UserError(f"A {type(listener).__name__} in callbacks has {what}: {', '.join(KNOWN)} are.{near}")
