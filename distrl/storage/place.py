"""Reading and writing a directory of a store, by pyarrow's file systems."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from distrl.stores import Store

CONNECT_S, ANSWER_S = 5.0, 15.0  # limits for a connection, and for a server that says nothing
CHUNK = 1 << 20


class Place:
    """A directory of a store. Whatever it is asked raises OSError where the store does not answer, or will not."""

    def __init__(self, store: Store, beat: Callable[[], None] = lambda: None) -> None:
        """`beat`: called while something goes on."""
        from pyarrow import fs

        self.root, self.local, self._fs, self._beat = store.path, store.scheme == "file", fs, beat
        options: dict[str, Any] = dict(store.options)
        if store.scheme == "s3":
            if not options and not {"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"} & os.environ.keys():
                with suppress(OSError):  # else it is asked as if it were in us-east-1, and says what is wrong
                    options["region"] = fs.resolve_s3_region(store.path.partition("/")[0])
            self.files = fs.S3FileSystem(
                connect_timeout=CONNECT_S,
                request_timeout=ANSWER_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
                **options,
            )
        elif store.scheme == "gs":
            self.files = fs.GcsFileSystem(retry_time_limit=timedelta(seconds=ANSWER_S), **options)
        else:
            self.files = fs.LocalFileSystem()

    def list(self, below: str = "") -> dict[str, int]:
        """The files below a directory and their sizes, by their names from here."""
        where = f"{self.root}/{below}" if below else self.root
        found = self.files.get_file_info(self._fs.FileSelector(where, recursive=True, allow_not_found=True))
        files = [info for info in found if info.type == self._fs.FileType.File]
        return {info.path.removeprefix(f"{self.root}/"): info.size for info in files}

    def read(self, name: str) -> bytes:
        with self.files.open_input_stream(f"{self.root}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, file: IO[bytes]) -> None:
        """Copy an open file; it is there whole or not at all."""
        path = f"{self.root}/{name}"
        draft = path
        if self.local:
            self.files.create_dir(os.path.dirname(path), recursive=True)
            draft = f"{os.path.dirname(path)}/.{os.path.basename(path)}.tmp"
        with self.files.open_output_stream(draft) as stream:
            while chunk := file.read(CHUNK):
                stream.write(chunk)
                self._beat()
        if draft != path:
            self.files.move(draft, path)
        self._beat()

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file from there to a path here."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.files.open_input_stream(f"{self.root}/{name}") as stream, path.open("wb") as file:
            while chunk := stream.read(CHUNK):
                file.write(chunk)
                self._beat()

    def delete(self, name: str) -> None:
        """A file, which need not be there any more."""
        with suppress(FileNotFoundError):
            self.files.delete_file(f"{self.root}/{name}")

    def delete_directory(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.files.delete_dir(f"{self.root}/{name}")
