"""metrics.jsonl, the truth about a run: one line of JSON an iteration."""

from __future__ import annotations

import errno
import json
import math
import numbers
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from distrl.errors import UserError

Row = dict[str, float | int | str]


class MetricsLog:
    """metrics.jsonl, open for writing: one line of JSON a row, each with `iteration`, `env_steps` and unix `time`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("ab", buffering=0)
            rows, self._size = _read(self.path, ended=False)
            self._file.truncate(self._size)  # a killed process may leave half a line, and the end of a run comes again
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error}. Free it, or choose another run_dir.") from error
        self.last_iteration = int(rows[-1]["iteration"]) if rows else -1

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """Write a row through to the system, without what JSON has no number for (NaN, infinities).

        A row that is there already stays: a resumed run replays its last iterations to the same bits.
        """
        iteration = int(row["iteration"])
        if iteration <= self.last_iteration:
            return
        plain = {key: value for key, raw in row.items() if (value := _plain(key, raw)) is not None}
        if missing := {"env_steps", "time"} - plain.keys():
            raise ValueError(f"a row of metrics without {' and '.join(sorted(missing))}")
        line = json.dumps(plain, allow_nan=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._size)
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}. Free some space, then go on from the last "
                f"checkpoint with --resume {self.path.parent}."
            ) from error
        self._size += len(line)
        self.last_iteration = iteration

    def close(self) -> None:
        self._file.close()


def points(row: Mapping[str, float | int | str]) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number of a row, as MLflow and TensorBoard get them: names without what MLflow refuses.

    What an evaluation found belongs to the env steps of its weights; it came some iterations after these.
    """
    silent = {"env_steps", "time", "evaluation/env_steps"} | ({"iteration"} if is_at_the_end(row) else set())
    at = int(row["env_steps"])
    evaluated = int(row.get("evaluation/env_steps", at))
    for key, value in row.items():
        if isinstance(value, (int, float)) and key not in silent:
            yield safe_name(key), float(value), evaluated if key.startswith("evaluation/") else at


def safe_name(key: str) -> str:
    """`key` without the characters that MLflow refuses in names, together with the whole request."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def read_metrics(path: str | Path) -> list[Row]:
    """All whole rows of a metrics.jsonl. Half a last line is a row that is being written, or never will be."""
    return _read(Path(path))[0]


def is_at_the_end(row: Mapping[str, object]) -> bool:
    """Whether a row is of an evaluation at the end of a run alone: no iteration took place."""
    groups = {key.partition("/")[0] for key in row}
    return "evaluation" in groups and "train" not in groups


def _read(path: Path, ended: bool = True) -> tuple[list[Row], int]:
    """The whole rows, and how many bytes they take; without `ended` not those at the end of a run."""
    rows: list[Row] = []
    size = 0
    last = 0, 0  # of training: how many rows and bytes there are with it
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(
                    f"{path}, line {len(rows) + 1}, is not JSON: it was damaged. Remove that line."
                ) from None
            size += len(line)
            if not is_at_the_end(rows[-1]):
                last = len(rows), size
    return (rows, size) if ended else (rows[: last[0]], last[1])


def _plain(key: str, value: object) -> float | int | str | None:
    """The value as JSON has it (numpy's scalars are numbers too); None where it is not finite."""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"the metric {key!r} is a {type(value).__name__}; it must be a number or a string")
