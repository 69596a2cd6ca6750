"""What can go wrong, sorted by whose fault it is. Imports nothing of distrl.

`UserError`   the user can mend it: one message, no traceback, exit code 2
`EnvError`    the environment raised: carries the shard, env copy, seed, step and the original traceback
`Diverged`    the arithmetic left the finite numbers: the last good checkpoint stays
Everything else is a bug of distrl and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 500  # characters of what is shown of a value or an error
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORTING = ("<frozen", os.path.dirname(importlib.__file__))  # frames that lead to a module's own


class UserError(Exception):
    """A mistake that the user can mend; the message names the value, the rule and the remedy."""


class Diverged(Exception):
    """A loss or a weight became NaN or infinite."""


class Left(Exception):
    """An update or an evaluation was left, for the run is to end; it is made when the run goes on."""

    def __str__(self) -> str:
        return "interrupted"


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


@contextmanager
def reading(what: str, missing: str | None = None, remedy: str = "") -> Iterator[None]:
    """The border to files: whatever reading one raises is `UserError`, since what is in a file is nobody's bug.

    Args:
        what: was found out, for the message, such as 'The model in RUN is corrupt'
        missing: the message where a file is not there, with {name} of it
        remedy: behind the reason
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if missing is None or error.filename is None:
            raise UserError(f"{what}: {reason(error)}.{remedy}") from error
        raise UserError(missing.format(name=os.path.basename(error.filename)) + remedy) from error
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}.{remedy}") from error


@contextmanager
def users_code(what: str, remedy: str = "") -> Iterator[None]:
    """The border to a user's code that is imported, made or closed: whatever it raises, or that it exits, is `UserError`.

    What it raises while it is stepped is `EnvError`, which knows where.

    Args:
        what: it cannot do, for the message, such as "env.id 'Mine-v0' cannot be made"
        remedy: behind the reason
    """
    try:
        yield
    except (UserError, EnvError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit):
            why = f"it calls sys.exit({shown(error.code)})"
        else:
            why = f"{type(error).__name__}: {_short(str(error))}".removesuffix(".")
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*_IMPORTING, _PACKAGE))
        ]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        if isinstance(error, SyntaxError):  # which says so itself; its frames are of the import
            place = ""
        raise UserError(f"{what}: {why}{place}.{remedy}") from error


def reason(error: BaseException) -> str:
    """What an error says, in one line that is not too long."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return f"it asks for more memory than there is ({_short(str(error)) or 'MemoryError'})"
    if isinstance(error, KeyError):
        return f"{_short(str(error))} is missing"
    said = _short(str(error)).removesuffix(".")
    return said if said and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {said}"


def shown(value: object) -> str:
    """A value of a user's or of a file, for a message: not too long, however large or deep it is."""
    try:
        return _short(repr(value))
    except (RecursionError, ValueError):  # whole numbers of too many digits
        return f"a {type(value).__name__} too large to show"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class WorkerLost(Exception):
    """A worker process died, or something that it held is gone. `worker` is None where it is not known which."""

    def __init__(self, worker: object | None, reason: str) -> None:
        super().__init__(reason)
        self.worker = worker


class ExecutionLost(WorkerLost):
    """All workers are gone, with what they ran on."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for the known word nearest to `word`, or '' where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
