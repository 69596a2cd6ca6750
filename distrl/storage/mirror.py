"""What of a run's directory is copied when: a checkpoint's manifest last, and before it all rows that it has counted."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path

from distrl.models.store import list_checkpoints
from distrl.storage.place import Place

MANIFEST = "manifest.json"
NOT_COPIED = (".log", ".state", ".tmp")  # of the processes beside the training, on this machine


class Mirror:
    """A run's directory and its copy. Whatever raises, make another one: it looks for itself what is there."""

    def __init__(self, run_dir: Path, place: Place, keep: int) -> None:
        """`keep`: of the newest checkpoints."""
        self.run_dir, self.place, self.keep = run_dir, place, keep
        self.sent: dict[str, tuple[int, int]] = {}  # files, by size and time
        there = place.list("checkpoints")
        self.known = {name.split("/")[1] for name in there if name.count("/") == 2}  # checkpoints, whole or not
        whole = [number for number in self.known if f"checkpoints/{number}/{MANIFEST}" in there]
        self.whole = {number: place.read(f"checkpoints/{number}/{MANIFEST}") for number in whole}

    def copy(self) -> None:
        """Copy all that is new. Raises OSError where that is not possible now."""
        newest = next(
            iter(list_checkpoints(self.run_dir)[::-1]), None
        )  # before the rows: it has counted none that come later
        for path in sorted(
            self._files(), key=lambda path: (path.suffix == ".json", path)
        ):  # a model's description last
            self._copy(path)
        if newest is not None:
            self._copy_checkpoint(newest)
        self._forget_old()

    def _files(self) -> list[Path]:
        found = []
        for directory, below, names in os.walk(self.run_dir):
            below[:] = [name for name in below if not name.startswith(".") and name != "checkpoints"]
            found += [Path(directory, n) for n in names if not n.startswith(".") and not n.endswith(NOT_COPIED)]
        return found

    def _copy(self, path: Path) -> None:
        name = path.relative_to(self.run_dir).as_posix()
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                state = stat.st_size, stat.st_mtime_ns
                if self.sent.get(name) == state:
                    return
                self.place.write(name, file)
        except FileNotFoundError as error:
            if path.exists():  # it is the store that is not there
                raise OSError(str(error)) from error
            return  # it was replaced or taken away just now
        self.sent[name] = state

    def _copy_checkpoint(self, path: Path) -> None:
        with ExitStack() as stack:
            try:  # an open file stays what it is, whatever becomes of its directory
                files = {file.name: stack.enter_context(file.open("rb")) for file in sorted(path.iterdir())}
                manifest = files.pop(MANIFEST).read()
            except (FileNotFoundError, KeyError):
                return  # it was replaced by a newer one
            if self.whole.get(path.name) == manifest:
                return
            where = f"checkpoints/{path.name}"
            if path.name in self.known:
                self.whole.pop(path.name, None)
                self.place.delete(f"{where}/{MANIFEST}")  # while its files change it is none
            self.known.add(path.name)
            for name, file in files.items():
                self.place.write(f"{where}/{name}", file)
            self.place.write(f"{where}/{MANIFEST}", io.BytesIO(manifest))
            self.whole[path.name] = manifest

    def _forget_old(self) -> None:
        newest = sorted(self.whole)[-self.keep :]
        for number in sorted(self.known):
            if newest and number < newest[-1] and number not in newest:
                self.place.delete(f"checkpoints/{number}/{MANIFEST}")
                self.place.delete_directory(f"checkpoints/{number}")
                self.known.remove(number)
                self.whole.pop(number, None)
