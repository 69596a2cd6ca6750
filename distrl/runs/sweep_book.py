"""What has happened in a sweep, on the disk: events.jsonl is the truth, trials.json and best.yaml are written from it.

A sweep that was killed is what its events say, and goes on from there. Files in a sweep's directory:

`sweep.yaml` the sweep, itself a valid input    `trials/0007/seed-1/` a run of trial 7
`trials.json` all runs that are not going on    `test/base/seed-101/` a run of the base, or a winner, on a test seed
`best.yaml` the best config so far              `result.json` how the sweep ended, and the comparison on the test seeds
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import UserError
from distrl.files import write_text
from distrl.json_format import json_text
from distrl.runs.sweep_decisions import Outcome, Piece
from distrl.runs.sweep_spaces import Overrides

Event = dict[str, Any]


@dataclass(frozen=True)
class Test:
    """A run on a test seed: of a trial, or (None) of the base config."""

    trial: int | None
    seed: int

    @property
    def whose(self) -> str:
        return "base" if self.trial is None else f"trial-{self.trial:04}"


Job = Piece | Test


class Book:
    """The events of a sweep; every one that is told is on the disk before anything is decided by it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.overrides: dict[int, Overrides] = {}  # by trial
        self.begun: dict[Piece, Event] = {}
        self.open: list[Piece] = []  # begun, and not ended
        self.cut: dict[Piece, Event] = {}  # of those, what was reached when the time of the sweep was up
        self.ended: dict[Piece, Event] = {}  # in the order in which they ended
        self.tested: dict[Test, Event] = {}
        self.search_s = 0.0  # wall-clock of the search so far
        path = directory / "events.jsonl"
        for event in _read(path):
            self._apply(event)
        self._file = path.open("ab", buffering=0)
        self._file.truncate(sum(len(line) for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")))

    def begin(self, piece: Piece, overrides: Overrides, donor: int | None) -> None:
        """`donor`: the trial whose state this one takes over, in a population."""
        self._tell({"event": "begun", **_of(piece), "overrides": overrides, "donor": donor})

    def end(self, job: Job, result: dict[str, Any], cut: bool = False) -> None:
        kind = "tested" if isinstance(job, Test) else "cut" if cut else "ended"
        self._tell({"event": kind, **_of(job), "result": result, "time": time.time(), "search_s": self.search_s})

    def _tell(self, event: Event) -> None:
        line = json_text(event).encode() + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise UserError(
                f"{self.directory}/events.jsonl cannot be written: {error.strerror}. Free some space, then go on: "
                f"distrl tune --resume {self.directory}"
            ) from error
        self._apply(json.loads(line))

    def _apply(self, event: Event) -> None:
        if event["event"] == "tested":
            self.tested[Test(event["trial"], event["seed"])] = event
            return
        piece = Piece(event["trial"], event["seed"], event["rung"])
        if event["event"] == "begun":
            self.overrides[piece.trial] = event["overrides"]
            self.begun[piece] = event
            self.cut.pop(piece, None)
            if piece not in self.open:
                self.open.append(piece)
            return
        self.search_s = event["search_s"]
        if event["event"] == "cut":
            self.cut[piece] = event
        else:
            self.open.remove(piece)
            self.ended[piece] = event

    def outcomes(self) -> list[tuple[Piece, Outcome]]:
        return [(piece, outcome_of(event["result"])) for piece, event in self.ended.items()]

    def run_dir(self, job: Job) -> Path:
        above = f"trials/{job.trial:04}" if isinstance(job, Piece) else f"test/{job.whose}"
        return self.directory / above / f"seed-{job.seed}"

    def trials(self, going: bool = False) -> list[dict[str, Any]]:
        """All runs that are not going on, as trials.json has them, in the order in which they ended.

        Args:
            going: also those that are, and have reached a rung; they are `running`
        """
        under_way = {piece.run for piece in self.open if piece not in self.cut}
        newest = {piece.run: (piece, event) for piece, event in (self.ended | self.cut).items()}
        ended = sorted(newest.values(), key=lambda pair: pair[1]["time"])
        running = {"status": "running"}
        return [
            self._trial(*pair) | (running if pair[0].run in under_way else {})
            for pair in ended
            if going or pair[0].run not in under_way
        ]

    def _trial(self, piece: Piece, event: Event) -> dict[str, Any]:
        result = event["result"]
        before = [(p, e["result"]) for p, e in self.ended.items() if p.run == piece.run]
        return {
            "trial": piece.trial,
            "overrides": self.overrides[piece.trial],
            "seed": piece.seed,
            "status": "stopped" if result["status"] == "paused" else result["status"],
            **{name: result[name] for name in ("score", "env_steps", "weights_sha256")},
            "run_dir": str(self.run_dir(piece)),
            "seconds": result["seconds"],
            "rungs": [[told["env_steps"], told["rung_score"]] for _, told in before],
            "ended": event["time"],
            "error": result["error"],
        }

    def write(self, best: str) -> None:
        """trials.json and best.yaml as they are now. `best`: the config as YAML."""
        write_text(self.directory / "trials.json", json_text(self.trials(), indent=1))
        write_text(self.directory / "best.yaml", best)

    def close(self) -> None:
        self._file.close()


def outcome_of(result: dict[str, Any]) -> Outcome:
    return Outcome(result["status"], result["score"], result["rung_score"])


def _of(job: Job) -> Event:
    if isinstance(job, Test):
        return {"trial": job.trial, "seed": job.seed}
    return {"trial": job.trial, "seed": job.seed, "rung": job.rung}


def _read(path: Path) -> Sequence[Event]:
    """All whole lines. Half a last one was being written when the sweep was killed."""
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Begin the sweep anew, under another name.") from None
