"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from distrl.errors import UserError
from distrl.sizes import check_fits

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, or what this user may write of it
LOCK = ".lock"  # in a run directory


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


@contextmanager
def open_arrays(path: Path) -> Iterator[Any]:
    """An npz as `numpy.load` gives it, without pickle. Raises ValueError where it is none, `UserError` where it is too large."""
    if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and advise the user to load it
        raise ValueError(f"{path.name} is no archive of arrays")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    check_fits(unpacked, f"{path} unpacks to {unpacked:,} bytes", "It is damaged, or of a larger machine.")
    import numpy as np  # here: whoever only writes JSON starts without it

    with np.load(path, allow_pickle=False) as file:
        yield file


def lock_now(file: IO[bytes]) -> bool:
    """Whether the lock on an open file is now ours; it ends with the file or the process, however that ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """A run directory for this process alone. Raises `UserError` where it is not to be had."""
    with _writable(directory):
        lock = (directory / LOCK).open("ab")
    with lock:
        if not lock_now(lock) or os.fstat(lock.fileno()).st_nlink == 0:  # whoever had it took it away in the meantime
            raise UserError(f"{directory} is in use by another process that trains it. Wait for it, or end it.")
        yield


@contextmanager
def new_directory(path: Path, numbered: bool) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A run directory for this process alone, and what keeps it: without that it is gone again when the block ends.

    Args:
        numbered: take the first of path, path-2, path-3, ... that is not there
    Raises:
        UserError: it holds something, or is not to be had
    """
    with _writable(path):
        made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if numbered:
            path = _make_numbered(path)
            made.insert(0, path)
        elif not path.exists():
            path.mkdir(exist_ok=True)
            made.insert(0, path)
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    with locked(path):
        refuse_used(path)
        try:
            yield path, keep
        finally:
            if not kept:
                (path / LOCK).unlink()
                with suppress(OSError):  # another process found a use for them
                    for directory in made:
                        directory.rmdir()


def refuse_used(directory: Path) -> None:
    """Raise `UserError` where a new run cannot begin, since something is there."""
    with _writable(directory):
        used = directory.exists() and (not directory.is_dir() or any(f.name != LOCK for f in directory.iterdir()))
    if used:
        raise UserError(
            f"run_dir {str(directory)!r} exists. Choose another one, or go on with it: --resume {directory}"
        )


def _make_numbered(path: Path) -> Path:
    for number in itertools.count(1):
        directory = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


@contextmanager
def _writable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"run_dir {str(directory)!r} cannot be written: {error}.") from None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
