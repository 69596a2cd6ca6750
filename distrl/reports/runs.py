"""Run directories, read: config and metrics. Runs that differ only in the seed form a group."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distrl.errors import UserError
from distrl.settings import dotted
from distrl.tracking.metrics import read_metrics
from distrl.types import Array, Evaluation
from distrl.yaml_format import read_yaml

NOT_LEARNT = ("seed", "run_dir", "cluster", "track")  # parts of a config in which the runs of a group may differ


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    best: Evaluation | None = None  # the one that chose the best model

    @property
    def name(self) -> str:
        return f"{self.config['algorithm']['name']} {self.config['env']['id']}"

    def curve(self, metric: str, x: str = "env_steps") -> tuple[Array, Array]:
        """The x [n], increasing, and the metric [n] there. Rows where one of them is missing or not finite are left out."""
        points = {row[x]: row[metric] for row in self.rows if _finite(row.get(x)) and _finite(row.get(metric))}
        steps = np.array(sorted(points), np.float64)
        return steps, np.array([points[step] for step in steps.tolist()], np.float64)

    def evaluations(self) -> tuple[Array, Array, Array]:
        """Env steps [n] behind the weights that were evaluated in training, and mean and deviation [n] of the return."""
        x = "evaluation/env_steps"
        if not any(x in row for row in self.rows):
            x = "env_steps"
        steps, means = self.curve("evaluation/return_mean", x)
        spread = dict(zip(*(a.tolist() for a in self.curve("evaluation/return_std", x)), strict=True))
        return steps, means, np.array([spread.get(step, 0.0) for step in steps.tolist()])


def read_run(path: Path) -> Run:
    """Read the config and metrics of a run directory. Raises `UserError` where it holds none."""
    config = read_config(path)
    try:
        return Run(path, config, read_metrics(path / "metrics.jsonl"), _read_best(path))
    except OSError as error:
        raise UserError(f"{path} has no metrics to plot: metrics.jsonl cannot be read ({error.strerror}).") from None


def _read_best(path: Path) -> Evaluation | None:
    file = path / "best" / "policy.json"
    chosen = read_json(file).get("selected_by") if file.exists() else None
    return None if chosen is None else Evaluation.from_json(chosen)


def read_result(run_dir: Path) -> dict[str, Any]:
    """What result.json says. Raises `UserError` where there is none."""
    return read_json(run_dir / "result.json")


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a file of a run. Raises `UserError` where it is none."""
    try:
        return dict(json.loads(read_file(file)))
    except (ValueError, TypeError):
        raise UserError(f"{file} is not what a run wrote: no JSON mapping.") from None


def read_file(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file.parent} is not a run directory: {file.name} cannot be read ({reason}).") from None


def read_config(run_dir: Path) -> dict[str, Any]:
    try:
        config = read_yaml(read_file(run_dir / "config.yaml"))
        config["algorithm"]["name"], config["env"]["id"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{run_dir / 'config.yaml'} is not the config of a run.") from None
    return dict(config)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups of runs that differ only in seed, place and tracking, by labels that tell the groups apart."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        learnt = {key: value for key, value in run.config.items() if key not in NOT_LEARNT}
        if learnt.get("init_from") is not None:  # every run has a copy of its own
            learnt["init_from"] = _told_origin(run.path) or learnt["init_from"]
        groups[json.dumps(learnt, sort_keys=True, default=str)].append(run)
    alike: dict[str, list[dict[str, str]]] = defaultdict(list)  # flat configs of groups with one algorithm and env
    for key, members in groups.items():
        alike[members[0].name].append(_printed(json.loads(key)))
    labelled = {}
    for key, members in groups.items():
        others, flat = alike[members[0].name], _printed(json.loads(key))
        names = sorted(
            {name for other in others for name in other.keys() | flat.keys() if other.get(name) != flat.get(name)}
        )
        differences = [f"{name.removeprefix('algorithm.')}={flat.get(name, 'unset')}" for name in names]
        labelled[" ".join([members[0].name, *differences])] = members
    return labelled


def _told_origin(run_dir: Path) -> str | None:
    """The sha256 of the weights that a run began with, as far as a label needs it; None where the copy is gone."""
    file = run_dir / "init" / "policy.json"
    return str(json.loads(file.read_text("utf-8"))["origin"]["weights_sha256"])[:12] if file.exists() else None


def _printed(config: Mapping[str, Any]) -> dict[str, str]:
    """The values as labels show them, by dotted keys."""
    return {k: f"{v:g}" if isinstance(v, float) else json.dumps(v).strip('"') for k, v in dotted(config).items()}
