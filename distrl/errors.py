"""What can go wrong, sorted by whose fault it is. Imports nothing of distrl.

`UserError`   the user can mend it: one message, no traceback, exit code 2
`EnvError`    the environment raised: carries the shard, env copy, seed, step and the original traceback
`Diverged`    the arithmetic left the finite numbers: the last good checkpoint stays
Everything else is a bug of distrl and keeps its traceback.
"""

from __future__ import annotations

import difflib
import itertools
import os
import traceback
from collections.abc import Iterable

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class UserError(Exception):
    """A mistake that the user can mend; the message names the value, the rule and the remedy."""


class Diverged(Exception):
    """A loss or a weight became NaN or infinite."""


class EnvError(Exception):
    """An environment raised while it was made, reset, stepped or rebuilt.

    The message holds the original traceback, so that it survives any process border.
    """

    def __init__(self, env_id: str, shard: int, env_copy: int, seed: int, step: int, cause: str) -> None:
        super().__init__(env_id, shard, env_copy, seed, step, cause)  # all in args, so that it pickles
        self.env_id, self.shard, self.env_copy = env_id, shard, env_copy
        self.seed, self.step, self.cause = seed, step, cause

    def __str__(self) -> str:
        return (
            f"{self.env_id} raised in shard {self.shard}, env copy {self.env_copy}, "
            f"episode seed {self.seed}, step {self.step} of the episode\n{self.cause}"
        )


def users_traceback(error: BaseException) -> str:
    """The traceback of an error in a user's code, without what of distrl led there, nor the attempt before."""
    inner = error
    while inner.__context__ is not None and not isinstance(inner.__context__, EnvError):
        inner = inner.__context__
    inner.__context__ = None
    told = traceback.TracebackException.from_exception(error)
    ours = itertools.takewhile(lambda frame: frame.filename.startswith(_PACKAGE), told.stack)
    frames = list(told.stack)[len(list(ours)) :]
    if not frames:
        return "".join(told.format_exception_only())
    told.stack = traceback.StackSummary.from_list(frames)
    return "".join(told.format())


class WorkerLost(Exception):
    """A worker process died, or something that it held is gone. `worker` is None where it is not known which."""

    def __init__(self, worker: object | None, reason: str) -> None:
        super().__init__(reason)
        self.worker = worker


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word nearest to `word`, or '' where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
