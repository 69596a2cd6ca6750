"""Telling MLflow of a run, as the driver sees it: start a process that does, ask how it is, wait for it at the end.

RUN/metrics.jsonl is the truth. The process (`python -m distrl.tracking RUN`) reads it and tells MLflow. So training
never waits for a tracking server, and a server that goes away costs nothing: what it missed is sent when it is back,
when the run is resumed, or by `sync`. Only that process imports mlflow.

Files in RUN: track.json (what the process is to tell), track.state (whether it has fallen behind), track.log (its
output), mlflow.json (where to find the run in MLflow). None of them ever holds a credential.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from distrl.errors import UserError
from distrl.files import lock_now
from distrl.settings import dotted
from distrl.tracking.companion import Companion
from distrl.tracking.metrics import safe_name
from distrl.tracking.where import database_path, read_json, split_credentials, write_json

Status = Literal["FINISHED", "FAILED", "KILLED"]
# MLflow's word for the status in result.json; a run that says "running" was killed.
ENDS: dict[str, Status] = {
    "finished": "FINISHED",
    "interrupted": "KILLED",
    "running": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


class MlflowTracker(Companion):
    """The process that tells MLflow of a run. It ends when its driver does, in whatever way: its stdin closes then."""

    def __init__(self, run_dir: str | Path, uri: str) -> None:
        if uri.startswith("sqlite:"):
            database_path(uri).parent.mkdir(parents=True, exist_ok=True)
        bare, credentials = split_credentials(uri)
        # MLflow by itself would try again for minutes; the process does that. What the user has set stays.
        settings = {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        unset = {name: value for name, value in settings.items() if name not in os.environ}
        environment = unset | {"MLFLOW_TRACKING_URI": bare} | credentials
        super().__init__(run_dir, "track", ["distrl.tracking", str(Path(run_dir).absolute())], environment)

    @classmethod
    def start(
        cls,
        run_dir: str | Path,
        uri: str,
        experiment: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        run_name: str,
        register_as: str | None = None,
    ) -> MlflowTracker:
        """Begin to track a new run, or go on with a resumed one. `params`: the config, nested or not."""
        path = Path(run_dir) / "track.json"
        about = {
            "key": read_json(path).get("key") or uuid.uuid4().hex,
            "uri": uri,
            "experiment": experiment,
            "run_name": run_name,
            "register_as": register_as,
            "tags": dict(tags),
            "params": {safe_name(key): str(value)[:500] for key, value in dotted(params).items()},
        }
        write_json(path, about)
        return cls(run_dir, uri)

    def poll(self) -> str | None:
        """A line for people when tracking has just fallen behind or caught up. Cheap enough for every iteration."""
        match self.news():
            case "ended", code:
                return (
                    f"The process that tells MLflow ended ({code}) and was started again; see {self.run_dir}/track.log."
                )
            case "behind", reason:
                return f"MLflow does not take the metrics ({reason}). Training goes on; they are kept and sent later."
            case "caught up", _:
                return "MLflow takes the metrics again; nothing was lost."
        return None

    def finish(self, status: Status, timeout: float) -> str | None:
        """Send all that is left, and end the run in MLflow. Returns a warning where `timeout` s were not enough."""
        if self.end(status, timeout) == 0:
            return None
        reason = self.reason or f"see {self.run_dir}/track.log"
        command = f"python -m distrl.tracking --sync {shlex.quote(str(self.run_dir))}"
        return f"MLflow does not have all of this run ({reason}). Nothing is lost; send it later: {command}"


def sync(run_dir: str | Path, uri: str | None = None, timeout: float = 3600) -> None:
    """Send what MLflow lacks of a run that has ended. `uri` None: to where it was tracked.

    Raises:
        UserError: the run was never tracked, is being tracked right now, or could not be sent.
    """
    run_dir = Path(run_dir)
    about = read_json(run_dir / "track.json")
    if not about:
        raise UserError(f"{run_dir} is not the directory of a run with MLflow: it has no track.json.")
    with (run_dir / "track.log").open("ab") as lock:
        if not lock_now(lock):
            raise UserError(f"{run_dir} is being sent to MLflow by its own run right now.")
    status = ENDS[read_json(run_dir / "result.json").get("status", "running")]
    if warning := MlflowTracker(run_dir, uri or about["uri"]).finish(status, timeout):
        raise UserError(warning)
