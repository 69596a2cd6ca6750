"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distrl.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, or what this user may write of it


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory beside `path` with `write`, flush it to the disk, and put it in the place of `path` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        write(draft)
        for file in draft.iterdir():
            _fsync(file)
        _fsync(draft)
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(draft, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        _fsync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error}. What was there before is intact; free some space."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def draft(out: Path) -> Iterator[Path]:
    """A file beside `out` to write; it takes `out`'s place when the block ends well, else nothing is left of it.

    Raises:
        UserError: it cannot be written there, or the disk is full.
    """
    path = out.with_name(f".{out.stem}.{os.getpid()}.tmp{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be written: {error.strerror}. Choose another place.") from None
    try:
        yield path
        os.replace(path, out)
    except OSError as error:  # others are of what the block does besides
        if error.errno not in FULL:
            raise
        raise UserError(f"{str(out)!r} cannot be written: {error.strerror}. Free some space.") from error
    finally:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text down to the disk. Raises `UserError` as `draft` does."""
    with draft(path) as file:
        file.write_text(text, encoding="utf-8")
        _fsync(file)


def lock_now(file: IO[bytes]) -> bool:
    """Whether the lock on an open file is now ours; it ends with the file or the process, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """A run directory, made where it is missing, for this process alone. Raises `UserError` where it is not to be had."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("ab")
    except OSError as error:
        raise UserError(f"run_dir {str(directory)!r} cannot be written: {error}.") from None
    with lock:
        if not lock_now(lock):
            raise UserError(f"{directory} is in use by another process that trains it. Wait for it, or end it.")
        yield


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
