"""A piece of a run, in a trial's process: begun or gone on with, up to a mark or the end, and told in numbers.

Whatever happened to an earlier try of it, the same piece ends with the same weights: a run goes on from its newest
checkpoint, and one that has its end is not run again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrl.config import load_config
from distrl.errors import Diverged, EnvError, UserError
from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.execution.resources import Resources, Seat
from distrl.files import locked, write_text
from distrl.models.store import newest_checkpoint, read_model, weights_sha256
from distrl.runs.plan import Plan, plan_run
from distrl.runs.run import train_as
from distrl.runs.sweep_metrics import Metric
from distrl.settings import Config
from distrl.tracking.metrics import read_metrics
from distrl.training.callbacks import Callbacks
from distrl.training.checkpoint import adopt_checkpoint

LEAVING_S = 60.0  # so long the process of a killed sweep may hold a run that another one goes on with


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job; returns plain JSON.

    Args:
        job: `run_dir`; `phases`, each with a `config` and the iteration `pause_at` which ends it (None: the run's end);
            `begin_from`, a checkpoint to take over (or None); `runners`; `metric` and `rung_metric`; `stop_file`, at
            whose appearance the run ends with a checkpoint
    Returns:
        `status`: paused, finished, failed, or interrupted; `score`, `rung_score`, `return_mean`, `env_steps`,
        `weights_sha256`, `seconds`, `error`
    """
    began, run_dir, error = time.time(), Path(job["run_dir"]), None
    try:
        if _result(run_dir).get("status") != "finished":
            _train(job, run_dir, began)
    except (UserError, EnvError, Diverged) as raised:
        error = str(raised)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return _told(job, run_dir, error)


def _train(job: Mapping[str, Any], run_dir: Path, began: float) -> None:
    """All phases that are not done yet; the first one that is interrupted is the last."""
    if run_dir.exists():
        _wait_for(run_dir)
        if not (run_dir / "config.yaml").exists():  # a process was killed while it made it
            shutil.rmtree(run_dir)
    stop, before = Path(job["stop_file"]), None
    for phase in job["phases"]:
        pause_at, config = phase["pause_at"], load_config(phase["config"])
        at = _newest(run_dir)
        if pause_at is not None and at is not None and int(at.name) >= pause_at:
            before = pause_at
            continue
        if job["begin_from"] is not None and (at is None or int(at.name) <= int(Path(job["begin_from"]).name)):
            _adopt(Path(job["begin_from"]), run_dir, config)
        elif at is not None and int(at.name) == before:  # the phase before ended here, with other values
            _adopt(at, run_dir, config)
        plan = plan_run(config, run_dir if (run_dir / "config.yaml").exists() else None)
        result = train_as(
            plan,
            lambda plan: _start(plan, job["runners"]),
            Callbacks(pause_at=pause_at),
            since=began,
            quiet=True,
            pictures=False,
            wish=lambda: "interrupted" if stop.exists() else None,
        )
        if result.status == "finished" or stop.exists():
            return
        before = pause_at


def _adopt(source: Path, run_dir: Path, config: Config) -> None:
    """Make the newest checkpoint of a run one of its own config. What is swept wins over what is restored."""
    adopt_checkpoint(source, run_dir / "checkpoints" / source.name, config.to_yaml())
    write_text(run_dir / "config.yaml", config.to_yaml())


def _newest(run_dir: Path) -> Path | None:
    return newest_checkpoint(run_dir) if (run_dir / "checkpoints").exists() else None


def _start(plan: Plan, runners: int) -> tuple[Execution, Config, Resources]:
    """This process, or actors in its placement group."""
    if not runners:
        return LocalExecution(), plan.config, Resources((Seat(),))
    from distrl.execution.tune import TrialExecution

    return TrialExecution(), plan.config, Resources((Seat(cpus=1),) * runners)


def _wait_for(run_dir: Path) -> None:
    """Until nobody else has it. Raises `UserError` where that does not come."""
    deadline = time.monotonic() + LEAVING_S
    while True:
        try:
            with locked(run_dir):
                return
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _result(run_dir: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
        return data
    except FileNotFoundError:
        return {}


def _told(job: Mapping[str, Any], run_dir: Path, error: str | None) -> dict[str, Any]:
    """What there is to tell of a run, by its files."""
    result, rows, last = _result(run_dir), [], job["phases"][-1]
    if (run_dir / "metrics.jsonl").exists():
        rows = read_metrics(run_dir / "metrics.jsonl")
    newest = _newest(run_dir)
    at = None if newest is None else int(newest.name)
    if error is not None:
        status = "failed"
    elif result["status"] == "finished":
        status = "finished"
    else:
        status = "paused" if at is not None and at == last["pause_at"] else "interrupted"
    length = last["config"]["stop"]["env_steps"] if status == "finished" else None
    evaluation = result.get("evaluation") or {}
    return {
        "status": status,
        "score": None if status == "failed" else Metric(job["metric"]).of(rows, result, length),
        "rung_score": None if status == "failed" else Metric(job["rung_metric"]).of(rows, result, length),
        "return_mean": evaluation.get("mean"),
        "env_steps": int(rows[-1]["env_steps"]) if rows else 0,
        "weights_sha256": None if newest is None else weights_sha256(read_model(newest)[0]),
        "seconds": result.get("train_s") or 0.0,
        "error": error,
    }
