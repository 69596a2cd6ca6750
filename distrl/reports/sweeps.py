"""A sweep's directory, read; its best trials as rows, with intervals.

Reads files; knows nothing of Ray and of how a sweep is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distrl.errors import UserError, reading
from distrl.reports.scores import over_seeds
from distrl.tracking.metrics import read_metrics
from distrl.yaml_format import read_yaml

POPULATION = ("pbt", "pb2")  # schedulers whose trials take each other over
LOWER = {
    "steps_to_threshold": "env steps",
    "time_to_threshold_s": "seconds",
}  # metrics of which less is better, and their units


@dataclass(frozen=True)
class TrialRow:
    """A trial, over its seeds."""

    number: int
    overrides: dict[str, Any]
    runs: list[dict[str, Any]]  # of trials.json

    @property
    def scores(self) -> list[float]:
        """Of its finished runs."""
        return [run["score"] for run in self.runs if run["status"] == "finished" and run["score"] is not None]

    @property
    def score(self) -> float | None:
        """The mean over its finished seeds; of a trial that was stopped what it had reached; None without one."""
        known = self.scores or [run["score"] for run in self.runs if run["score"] is not None]
        return float(np.mean(known)) if known else None

    @property
    def status(self) -> str:
        found = [run["status"] for run in self.runs]
        return next((status for status in ("failed", "running", "stopped") if status in found), "finished")

    @property
    def env_steps(self) -> int:
        return sum(run["env_steps"] for run in self.runs)

    @property
    def seconds(self) -> float:
        """Of training, over its runs."""
        return float(sum(run["seconds"] for run in self.runs))


@dataclass(frozen=True)
class Generation:
    """What a member of a population did between two marks."""

    trial: int
    number: int
    overrides: dict[str, Any]
    donor: int | None  # whose state it took over before
    env_steps: int  # at its end
    score: float | None  # at its end, by which members are compared


@dataclass(frozen=True)
class SweepFiles:
    """A sweep's directory, read."""

    path: Path
    sweep: dict[str, Any]  # sweep.yaml
    runs: list[dict[str, Any]]  # trials.json
    result: dict[str, Any]  # result.json

    @property
    def metric(self) -> str:
        return str(self.sweep["metric"])

    @property
    def sign(self) -> int:
        return -1 if self.metric in LOWER else 1

    @property
    def keys(self) -> list[str]:
        return list(self.sweep["search"])

    @property
    def cpus(self) -> int:
        """Of a trial."""
        return 1 + int((self.sweep.get("trial") or {}).get("runners", 0))

    @property
    def population(self) -> bool:
        return self.sweep.get("scheduler") in POPULATION

    @cached_property
    def generations(self) -> dict[tuple[int, int], Generation]:
        """Of a population those that have ended, by trial and number."""
        begun, found = dict[tuple[int, int], dict[str, Any]](), {}
        for line in (self.path / "events.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line) if line.endswith("}") else {}
            if event.get("event") == "begun":
                begun[event["trial"], event["rung"]] = event
            elif event.get("event") == "ended":
                key, result = (event["trial"], event["rung"]), event["result"]
                told = begun[key]["overrides"], begun[key]["donor"], result["env_steps"], result["rung_score"]
                found[key] = Generation(*key, *told)
        return found

    @property
    def lineage(self) -> list[Generation]:
        """Of a population the generations that led to its best member."""
        best = self.result.get("best")
        if best is None:
            return []
        path, trial = list[Generation](), int(best["trial"])
        for number in sorted({number for _, number in self.generations}, reverse=True):
            if (generation := self.generations.get((trial, number))) is not None:
                path.append(generation)
                trial = trial if generation.donor is None else generation.donor
        return path[::-1]

    @cached_property
    def trials(self) -> list[TrialRow]:
        """The best first: those with more finished seeds before the others."""
        numbers = dict.fromkeys(run["trial"] for run in self.runs)
        rows = [TrialRow(n, *self._of(n)) for n in numbers]
        worst = -np.inf
        return sorted(
            rows, key=lambda t: (-len(t.scores), -(worst if t.score is None else self.sign * t.score), t.number)
        )

    def _of(self, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        runs = [run for run in self.runs if run["trial"] == number]
        return runs[0]["overrides"], runs

    @property
    def going(self) -> list[tuple[Path, dict[str, Any]]]:
        """Runs that are under way, or were when the sweep was killed, and the newest row of each."""
        rows = []
        for file in sorted(self.path.glob("*/*/seed-*/metrics.jsonl")):
            result = file.with_name("result.json")
            status = json.loads(result.read_text(encoding="utf-8"))["status"] if result.exists() else "running"
            if status == "running" and (found := read_metrics(file)):
                rows.append((file.parent, dict(found[-1])))
        return rows


def is_sweep(path: Path) -> bool:
    return (path / "sweep.yaml").exists()


def read_sweep(path: Path) -> SweepFiles:
    """Raises `UserError` where the directory is no sweep's."""
    if not is_sweep(path):
        raise UserError(f"{path} is not the directory of a sweep: it has no sweep.yaml.")
    with reading(f"The sweep in {path} cannot be read"):
        sweep = read_yaml((path / "sweep.yaml").read_text(encoding="utf-8"))
        parts = [
            json.loads((path / name).read_text(encoding="utf-8")) if (path / name).exists() else empty
            for name, empty in (("trials.json", []), ("result.json", {}))
        ]
        return SweepFiles(path, dict(sweep), *parts)


def spread(values: Sequence[float]) -> str:
    """A score over seeds and its interval, for people."""
    return f"{over_seeds(values):.4g}" if values else "none"


def told_score(trial: TrialRow) -> str:
    """Its score; in brackets that of a trial that has not come to its end."""
    return spread(trial.scores) if trial.scores else "none" if trial.score is None else f"({trial.score:.4g})"


def compared(files: SweepFiles) -> list[tuple[str, str, str, str]]:
    """Winner and base config on the test seeds: whose, the metric, the return of the best model, how many seeds."""
    rows = []
    best = (files.result.get("best") or {}).get("trial")
    names = {"best": f"trial {best}{', by its schedule' if files.population else ''}", "base": "base config"}
    for whose, runs in (files.result.get("test") or {}).items():
        ended = [run for run in runs if run["status"] == "finished"]
        scores = [run["score"] for run in ended if run["score"] is not None]
        returns = [run["return_mean"] for run in ended if run["return_mean"] is not None]
        rows.append((names[whose], spread(scores), spread(returns), str(len(ended))))
    return rows


def told_overrides(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={f'{v:.4g}' if isinstance(v, float) else v}" for k, v in overrides.items())
