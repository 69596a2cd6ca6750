"""A sweep on its way to MLflow: a parent run, a child for each trial, a grandchild for each of its seeds.

The process of the sweep's driver follows all of its directories, so that no trial waits for MLflow, and a hundred of them
need no more than one process. Each directory is followed as a run of its own is (`distrl.tracking.follower`), so that
whatever dies, no row is sent twice, and a resumed sweep has the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distrl.settings import dotted
from distrl.tracking.follower import Follower
from distrl.tracking.metrics import safe_name
from distrl.tracking.mlflow import ENDS
from distrl.tracking.where import read_json, write_json
from distrl.yaml_format import read_yaml

FILES = (
    "sweep.yaml",
    "trials.json",
    "best.yaml",
    "result.json",
    "plots",
    "videos",
    "model",
)  # of a sweep that become artifacts
SENT = "track.sent"  # in the directory of a run: which of its results MLflow has all of


class SweepFollower:
    """Does what `Follower` does, for a sweep's directory and all within it."""

    def __init__(self, sweep_dir: Path) -> None:
        self.run_dir = sweep_dir
        self.parent = Follower(sweep_dir, FILES)
        self.below: dict[Path, Follower] = {}  # trials, and runs that are not sent whole

    def connect(self) -> None:
        """Find or create the parent, and forget what the others had sent: they ask again."""
        self.below = {}
        self.parent.connect()

    def follow(self) -> None:
        """Send what is new of the sweep, its trials and their runs."""
        self.parent.follow()
        for trial in self._trials():
            child = self._connected(trial, self.parent, self._about_trial(trial))
            child.send()
            for run_dir in sorted(trial.glob("seed-*")):
                self._follow_run(run_dir, child)

    def _trials(self) -> Iterator[Path]:
        for directory in (*sorted(self.run_dir.glob("trials/*")), *sorted(self.run_dir.glob("test/*"))):
            if any((run_dir / "config.yaml").exists() for run_dir in directory.glob("seed-*")):
                yield directory

    def _follow_run(self, run_dir: Path, child: Follower) -> None:
        result = run_dir / "result.json"
        if not (run_dir / "config.yaml").exists() or (ended := _digest(result)) is None:
            return  # it has not begun
        if read_json(run_dir / SENT).get("result") == ended:
            return
        follower = self._connected(run_dir, child, self._about_run(run_dir))
        follower.send()
        status = read_json(result).get("status", "running")
        if status != "running":
            follower.finish(ENDS[status], model=run_dir.match("test/trial-*/*"))
            write_json(run_dir / SENT, {"result": ended})
            del self.below[run_dir]

    def finish(self, status: str) -> None:
        """Send all that is left of a sweep that has ended."""
        try:
            self.follow()
            for directory, follower in self.below.items():
                follower.finish(self._end(directory, status), model=False)
        finally:
            self.parent.finish(status, model=False)

    def _end(self, directory: Path, status: str) -> str:
        """How a trial ended, by its runs; a run that is still among those that are followed was killed."""
        if directory.name.startswith("seed-"):
            return "KILLED"
        runs = [read_json(run_dir / "result.json").get("status") for run_dir in directory.glob("seed-*")]
        return "FAILED" if {"failed", "diverged"} & {*runs} else status

    def fell_behind(self, error: Exception, log: bool) -> None:
        self.parent.fell_behind(error, log)

    def caught_up(self) -> None:
        self.parent.caught_up()

    def _connected(self, directory: Path, above: Follower, about: Mapping[str, Any]) -> Follower:
        """The follower of a directory, whose run in MLflow is one of `above`."""
        if directory not in self.below:
            sweep = self.parent.about
            inside = directory.relative_to(self.run_dir).as_posix()
            common = {name: sweep[name] for name in ("uri", "experiment")}
            tags = {"mlflow.parentRunId": above.run_id, **about["tags"]}
            write_json(
                directory / "track.json",
                {"key": f"{sweep['key']}/{inside}", **common, **about, "tags": tags, "register_as": None},
            )
            follower = Follower(directory)
            follower.connect()
            self.below[directory] = follower
        return self.below[directory]

    def _about_trial(self, trial: Path) -> dict[str, Any]:
        told = read_json(trial / "trial.json")
        params = {safe_name(key): str(value)[:500] for key, value in dotted(told.get("overrides", {})).items()}
        number = trial.name.rpartition("-")[2]
        name = f"trial {int(number)}" if number.isdigit() else number
        name += "" if trial.parent.name == "trials" else ", on the test seeds"
        return {
            "run_name": name,
            "params": params,
            "tags": {"distrl.sweep": self.run_dir.name, "distrl.level": "trial"},
        }

    def _about_run(self, run_dir: Path) -> dict[str, Any]:
        config = read_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
        params = {k: v for k, v in config.items() if k not in ("run_dir", "track")}
        return {
            "run_name": f"{run_dir.parent.name} {run_dir.name}",
            "params": {safe_name(key): str(value)[:500] for key, value in dotted(params).items()},
            "tags": {"distrl.sweep": self.run_dir.name, "distrl.level": "seed"},
        }


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
