"""Telling MLflow of a run, as the driver sees it: start a process that does, ask how it is, wait for it at the end.

RUN/metrics.jsonl is the truth. The process (`python -m distrl.tracking RUN`) reads it and tells MLflow. So training
never waits for a tracking server, and a server that goes away costs nothing: what it missed is sent when it is back,
when the run is resumed, or by `sync`. Only that process imports mlflow.

Files in RUN: track.json (what the process is to tell), track.state (whether it has fallen behind), track.log (its
output), mlflow.json (where to find the run in MLflow). None of them ever holds a credential.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from distrl.errors import UserError
from distrl.files import lock_now
from distrl.outside import child_environment
from distrl.settings import dotted
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
STARTS = 3  # of the process, at most, while the run goes on


class MlflowTracker:
    """The process that tells MLflow of a run. It ends when its driver does, in whatever way: its stdin closes then."""

    def __init__(self, run_dir: str | Path, uri: str) -> None:
        self.run_dir = Path(run_dir).absolute()
        self._uri = uri
        self._behind, self._starts, self._polled = False, 0, 0.0
        self._spawn()

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
        if time.monotonic() - self._polled < 1:
            return None
        self._polled = time.monotonic()
        if (code := self._child.poll()) is not None and self._starts < STARTS:
            self._spawn()
            return f"The process that tells MLflow ended ({code}) and was started again; see {self.run_dir}/track.log."
        reason = read_json(self.run_dir / "track.state").get("behind")
        if bool(reason) == self._behind:
            return None
        self._behind = bool(reason)
        if reason:
            return f"MLflow does not take the metrics ({reason}). Training goes on; they are kept and sent later."
        return "MLflow takes the metrics again; nothing was lost."

    def finish(self, status: Status, timeout: float) -> str | None:
        """Send all that is left, and end the run in MLflow. Returns a warning where `timeout` s were not enough."""
        if self._child.poll() is not None:
            self._spawn()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"end {status} {timeout}\n".encode())
            self._child.stdin.close()
            code = self._child.wait(timeout + 5)  # it gives up by itself at `timeout`
        except BrokenPipeError:
            code = self._child.wait()
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        if code == 0:
            return None
        reason = read_json(self.run_dir / "track.state").get("behind") or f"see {self.run_dir}/track.log"
        command = f"python -m distrl.tracking --sync {shlex.quote(str(self.run_dir))}"
        return f"MLflow does not have all of this run ({reason}). Nothing is lost; send it later: {command}"

    def _spawn(self) -> None:
        self._starts += 1
        (self.run_dir / "track.state").unlink(missing_ok=True)
        if self._uri.startswith("sqlite:"):
            database_path(self._uri).parent.mkdir(parents=True, exist_ok=True)
        bare, credentials = split_credentials(self._uri)
        # MLflow by itself would try again for minutes; the process does that. What the user has set stays.
        settings = {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        with (self.run_dir / "track.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "distrl.tracking", str(self.run_dir)],
                env=settings | child_environment() | {"MLFLOW_TRACKING_URI": bare} | credentials,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver, which then says how the run ended
            )


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
