"""What people see of a run: live progress, metrics.jsonl, and MLflow, which follows it. Floor 5.

RUN/metrics.jsonl is the truth. A process of its own (`python -m distrl.track RUN`) reads it and tells MLflow, so
training never waits for a tracking server, and a server that goes away costs nothing: what is missing is sent when it
is back, when the run is resumed, or by `sync`. Only that process imports mlflow.

Files in RUN: track.json (what the process is to tell), track.state (whether it has fallen behind), track.log (its
output), mlflow.json (where the run is found in MLflow). None of them ever holds a credential.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import math
import numbers
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from distrl.config import Config, dotted
from distrl.errors import UserError
from distrl.files import write_text

if TYPE_CHECKING:
    import psutil
    from rich.progress import Progress

Row = dict[str, float | int | str]
Status = Literal["FINISHED", "FAILED", "KILLED"]

REQUEST = 1000  # metrics that MLflow takes in one request
FOLLOW_S, METER_S, BACKOFF_S = 1.5, 10.0, 10.0  # between looks at the file, at the machine; longest between retries
STARTS = 3  # of the process, while the run goes on
ORPHAN_S = 60.0  # what the process still has when its driver died without a word
KEY = "distrl.key"  # tag: finds a run again whose id was lost between creating it and writing mlflow.json
MODEL = "distrl.model_sha256"  # tag: the model that was logged last, so that none is logged twice


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


class MetricsLog:
    """metrics.jsonl, open for writing: one line of JSON a row, each with `iteration`, `env_steps` and unix `time`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("ab", buffering=0)
            rows, self._size = _read(self.path)
            self._file.truncate(self._size)  # a killed process may leave half a line
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error}. Free it, or choose another run_dir.") from error
        self.last_iteration = int(rows[-1]["iteration"]) if rows else -1

    def append(self, row: Mapping[str, float | int | str]) -> None:
        """Write a row through to the system, without what JSON has no number for (NaN, infinities).

        A row that is there already is left alone: a resumed run replays its last iterations with the same bits.
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

    def sync(self) -> None:
        """Down to the disk: before a checkpoint, so that no power cut leaves a gap before the rows after it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[Row]:
    """All whole rows of a metrics.jsonl; half a last line is a row that is just being written, or was not to be."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[Row], int]:
    """The whole rows and how many bytes they take."""
    rows: list[Row] = []
    size = 0
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
    return rows, size


def _plain(key: str, value: object) -> float | int | str | None:
    """As JSON has it; numpy's scalars are numbers too. None: not finite."""
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"the metric {key!r} is a {type(value).__name__}; it must be a number or a string")


# --- the terminal ----------------------------------------------------------------------------------------------------


class Console:
    """Progress and messages on stderr, so that stdout stays clean for results."""

    def __init__(self, total_env_steps: int | None, quiet: bool = False) -> None:
        self._total, self._quiet = total_env_steps, quiet
        self._tty = sys.stderr.isatty()
        self._shown = -math.inf
        self._row: Mapping[str, float | int | str] = {}
        self._best: float | None = None
        self._bar: Progress | None = None  # made by the first row: errors before it find the terminal as it was

    def update(self, row: Mapping[str, float | int | str]) -> None:
        """Show a row of metrics, unless the last one was shown just now."""
        self._row = row
        if (evaluation := self._number("evaluation/return_mean")) is not None:
            self._best = evaluation if self._best is None else max(self._best, evaluation)
        if not self._quiet and time.monotonic() - self._shown >= (0.2 if self._tty else 10):
            self._show()

    def note(self, message: str) -> None:
        if not self._quiet:
            self._print(message)

    def warn(self, message: str) -> None:
        """Shown even when quiet."""
        self._print(f"warning: {message}", "yellow")

    def close(self) -> None:
        """Show the last row and leave the terminal as it was."""
        if self._row and not self._quiet:
            self._show()
        self._row = {}
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        self._shown = time.monotonic()
        done, total, text = int(self._row["env_steps"]), self._total, self._summary()
        if not self._tty:
            self._print(f"{done:,}{'' if total is None else f'/{total:,}'} env steps  {text}")
            return
        if self._bar is None:
            from rich.console import Console as Terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("env steps  {task.description}", markup=False))
            # No refresh thread: the driver's core is for training.
            self._bar = Progress(*columns, console=Terminal(stderr=True), auto_refresh=False, redirect_stdout=False)
            self._bar.add_task("", total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, description=text, refresh=True)

    def _summary(self) -> str:
        speed, mean = self._number("time/env_steps_per_s"), self._number("train/return_mean")
        parts = [] if speed is None else [f"{speed:,.0f}/s"]
        if mean is not None:
            parts.append(f"return {mean:.4g}")
        if self._best is not None:
            parts.append(f"best evaluation {self._best:.4g}")
        if self._total is not None and speed:
            left = int(max(0, self._total - int(self._row["env_steps"])) / speed)
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return "  ".join(parts)

    def _number(self, key: str) -> float | None:
        """What the row says, where it is a number."""
        value = float(self._row.get(key, math.nan))
        return value if math.isfinite(value) else None

    def _print(self, message: str, style: str | None = None) -> None:
        if self._bar is None:
            print(message, file=sys.stderr, flush=True)
        else:  # above the bar
            self._bar.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)


# --- where MLflow is -------------------------------------------------------------------------------------------------


def tracking_uri(config: Config, run_dir: str | Path) -> str:
    """`track.uri`, else MLFLOW_TRACKING_URI, else a SQLite store beside the run. May hold credentials: do not print it.

    Raises:
        UserError: `track.uri` holds credentials, which would end up in config.yaml.
    """
    uri = config.track.uri
    if uri is not None and uri != without_credentials(uri):
        raise UserError(
            f"track.uri holds credentials for {without_credentials(uri)!r}, and a config is written to files. Put them "
            "into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the URI into MLFLOW_TRACKING_URI (in .env)."
        )
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(run_dir).absolute().parent}/mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{_database(uri)}"
    return uri.rstrip("/")


def check_tracking(uri: str) -> None:
    """Raise `UserError` where MLflow cannot be reached at `uri`, or the store is of a kind that it refuses."""
    shown, scheme = without_credentials(uri), uri.partition(":")[0] if ":" in uri else ""
    remedy = (
        "Start a server with 'mlflow server --host 127.0.0.1 --port 5000', correct or unset track.uri and "
        "MLFLOW_TRACKING_URI (then a SQLite store is used), or train without MLflow: track.mlflow=false."
    )
    if scheme in ("http", "https"):
        if reason := _unreachable(shown):
            raise UserError(f"The MLflow server at {shown} cannot be reached: {reason}. {remedy}")
    elif uri.startswith("sqlite:///") and uri != "sqlite:///":
        database = _database(uri)
        there = next(path for path in (database, *database.parents) if path.exists())
        if not os.access(there, os.W_OK) or there.is_dir() == (there == database):
            raise UserError(f"The MLflow store {shown} cannot be written: see {there}. {remedy}")
        if there == database and database.open("rb").read(16) not in (b"", b"SQLite format 3\0"):
            raise UserError(f"The MLflow store {shown} is not a SQLite database. {remedy}")
    elif scheme in ("file", ""):
        raise UserError(f"The tracking URI {shown!r} means plain files, which MLflow 3 refuses. {remedy}")
    else:
        raise UserError(f"The tracking URI {shown!r} must start with http://, https:// or sqlite:///. {remedy}")


def _unreachable(uri: str) -> str | None:
    """Why a server does not answer, within seconds."""
    import http.client
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"{uri}/health", timeout=3).close()
    except urllib.error.HTTPError as error:  # below 500 it is there; what it thinks of our requests, it says to them
        return None if error.code < 500 else f"it answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def without_credentials(text: str) -> str:
    """`text` with the user:password@ of every URI in it left out."""
    return re.sub(r"(?<=://)[^/\s\"']*@", "", text)


def _split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """A URI fit for files and messages, and its credentials as MLflow's environment variables."""
    user, _, password = urlsplit(uri).netloc.rpartition("@")[0].partition(":")
    names = {"MLFLOW_TRACKING_USERNAME": unquote(user), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
    return without_credentials(uri), names if user else {}


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def mlflow_location(run_dir: str | Path) -> tuple[str, ...]:
    """How to look at the run in MLflow: what to type, where no server runs, and the page. () where it is not known there yet."""
    known = _read_json(Path(run_dir) / "mlflow.json")
    if not known:
        return ()
    uri, commands = known["tracking_uri"], []
    if uri.startswith("sqlite:"):
        commands = [f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000 --workers 1"]
        uri = "http://127.0.0.1:5000"
    # Its pages are those for language models unless they are asked for otherwise.
    page = f"{uri}/#/experiments/{known['experiment_id']}/runs/{known['run_id']}?workflowType=machine_learning"
    return *commands, page


def collect_tags() -> dict[str, str]:
    """What a result depends on beside the config: revision, versions, hardware."""
    import psutil

    tags = {"version.python": platform.python_version()}
    for name in ("distrl", "ray", "torch", "gymnasium", "numpy", "mlflow"):
        tags[f"version.{name}"] = importlib.metadata.version(name)
    for directory in (str(Path(__file__).parent), os.getcwd()):
        if revision := _output("git", "-C", directory, "rev-parse", "HEAD"):
            dirty = bool(_output("git", "-C", directory, "status", "--porcelain"))
            tags |= {"git.revision": revision, "git.dirty": str(dirty).lower(), "mlflow.source.git.commit": revision}
            break
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    tags["hardware.cpu"] = model[1] if model else platform.processor() or platform.machine()
    tags["hardware.cores"] = str(os.cpu_count())
    tags["hardware.memory_gb"] = f"{psutil.virtual_memory().total / 1e9:.0f}"
    if gpus := _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"):
        tags["hardware.gpu"] = ", ".join(gpus.splitlines())
    return tags


def _output(*command: str) -> str:
    """What a program says, or '' where it is missing or fails: nothing that a run depends on."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# --- the driver's side -----------------------------------------------------------------------------------------------


class MlflowTracker:
    """The process that tells MLflow of a run. It ends with its driver, however that ends: its stdin then closes."""

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
        """Begin to track a new run, or go on with that of a resumed one. `params`: the config, nested or not."""
        path = Path(run_dir) / "track.json"
        about = {
            "key": _read_json(path).get("key") or uuid.uuid4().hex,
            "uri": uri,
            "experiment": experiment,
            "run_name": run_name,
            "register_as": register_as,
            "tags": dict(tags),
            "params": {_name(key): str(value)[:500] for key, value in dotted(params).items()},
        }
        _write_json(path, about)
        return cls(run_dir, uri)

    def poll(self) -> str | None:
        """A line for people, once, when tracking has fallen behind or caught up; cheap enough for every iteration."""
        if time.monotonic() - self._polled < 1:
            return None
        self._polled = time.monotonic()
        if (code := self._child.poll()) is not None and self._starts < STARTS:
            self._spawn()
            return f"The process that tells MLflow ended ({code}) and was started again; see {self.run_dir}/track.log."
        reason = _read_json(self.run_dir / "track.state").get("behind")
        if bool(reason) == self._behind:
            return None
        self._behind = bool(reason)
        if reason:
            return f"MLflow does not take the metrics ({reason}). Training goes on; they are kept and sent later."
        return "MLflow takes the metrics again; nothing was lost."

    def finish(self, status: Status, timeout: float) -> str | None:
        """Send all that is left and end the run in MLflow; a warning where that could not be done in `timeout` s."""
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
        reason = _read_json(self.run_dir / "track.state").get("behind") or f"see {self.run_dir}/track.log"
        command = f"python -m distrl.track --sync {shlex.quote(str(self.run_dir))}"
        return f"MLflow does not have all of this run ({reason}). Nothing is lost; send it later: {command}"

    def _spawn(self) -> None:
        self._starts += 1
        (self.run_dir / "track.state").unlink(missing_ok=True)
        if self._uri.startswith("sqlite:"):
            _database(self._uri).parent.mkdir(parents=True, exist_ok=True)
        bare, credentials = _split_credentials(self._uri)
        # MLflow's own retries last for minutes, and retrying is what the process does. A user's settings stand.
        settings = {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        # What bears the marks of the run's own Ray is ended with it, before the last metrics are sent.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DISTRL_RAY_"))}
        path = os.pathsep.join(entry for entry in sys.path if entry)  # the process imports what the driver does
        forced = {"MLFLOW_TRACKING_URI": bare, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with (self.run_dir / "track.log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "distrl.track", str(self.run_dir)],
                env=settings | inherited | forced | credentials,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver, which then says how the run ended
            )


def sync(run_dir: str | Path, uri: str | None = None, timeout: float = 3600) -> None:
    """Send what MLflow does not have yet of a run that is over. `uri` None: where it was tracked.

    Raises:
        UserError: the run was never tracked, is being tracked right now, or could not be sent.
    """
    run_dir = Path(run_dir)
    about = _read_json(run_dir / "track.json")
    if not about:
        raise UserError(f"{run_dir} is not the directory of a run with MLflow: it has no track.json.")
    with (run_dir / "track.log").open("ab") as lock:
        if not _locked(lock):
            raise UserError(f"{run_dir} is being sent to MLflow by its own run right now.")
    ends: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}
    status = ends.get(_read_json(run_dir / "result.json").get("status", ""), "KILLED")
    if warning := MlflowTracker(run_dir, uri or about["uri"]).finish(status, timeout):
        raise UserError(warning)


def _name(key: str) -> str:
    """MLflow refuses other characters in names, and a whole request with them."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all, and without credentials."""
    write_text(path, without_credentials(json.dumps(data, indent=1)))


# --- the process's side ----------------------------------------------------------------------------------------------


class _Driver(threading.Thread):
    """Listens to the driver, and sees to it that this process is gone in time whatever it is doing then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.status: str | None = None  # what the driver says of its end; None: nothing, it was killed
        self._limit = ORPHAN_S

    def run(self) -> None:
        said = b""
        while not said.endswith(b"\n") and (chunk := os.read(0, 4096)):
            said += chunk
        if said.endswith(b"\n"):
            _, self.status, limit = said.decode().split()
            self._limit = float(limit)
        self.ended.set()
        time.sleep(self._limit)
        logging.getLogger("distrl.track").warning("gave up: not everything was sent within %g s", self._limit)
        os._exit(3)


class _Meter:
    """What the driver and all processes below it use."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._processes: dict[psutil.Process, psutil.Process] = {}
        self._read = -math.inf

    def read(self) -> dict[str, float]:
        """{} unless it is time again."""
        import psutil

        if time.monotonic() - self._read < METER_S:
            return {}
        self._read = time.monotonic()
        cpu = memory = 0.0
        try:
            driver = psutil.Process(self._pid)
            found = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return {}  # the run is over
        # CPU time is counted between two looks at the same object.
        self._processes = {process: self._processes.get(process, process) for process in found}
        for process in self._processes.values():
            try:
                cpu += process.cpu_percent()
                memory += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # ended since it was found
        metrics = {
            "system/cpu_percent": cpu,
            "system/memory_rss_mb": memory / 1e6,
            "system/memory_available_mb": psutil.virtual_memory().available / 1e6,
        }
        query = "--query-gpu=utilization.gpu,memory.used"
        for i, line in enumerate(_output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()):
            for name, text in zip(("percent", "memory_mb"), line.split(","), strict=True):
                if text.strip().isdigit():  # or "[N/A]"
                    metrics[f"system/gpu_{i}_{name}"] = float(text)
        return metrics


def _make_store(database: Path) -> None:
    """A SQLite store where there is none, whole or not at all: one that is half made is of no use to MLflow ever after."""
    from mlflow import MlflowClient

    with database.with_name(f".{database.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs that begin together wait for the first of them
        if database.exists() and database.stat().st_size:
            return
        draft = database.with_name(f".{database.name}.tmp")
        draft.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        os.replace(draft, database)


class _Follower:
    """A run on its way to MLflow. Whatever fails, `connect` and what follows it may be done again: no row is sent
    twice, none is left out."""

    def __init__(self, run_dir: Path) -> None:
        from mlflow import MlflowClient

        self.run_dir = run_dir
        self.about = _read_json(run_dir / "track.json")
        if (uri := os.environ["MLFLOW_TRACKING_URI"]).startswith("sqlite:"):
            _make_store(_database(uri))
        self.client = MlflowClient()
        self.run_id = ""
        self.env_steps = 0
        self._held, self._offset = -1, 0
        self._introduced = False
        self._meter = _Meter()

    def connect(self) -> None:
        """Find or create the run, tell it what it is, and ask which rows it holds."""
        from mlflow.entities import Param, RunTag

        run = self._find() or self.client.create_run(
            self._experiment(), run_name=self.about["run_name"], tags={KEY: self.about["key"]}
        )
        self.run_id = run.info.run_id
        where = {"tracking_uri": os.environ["MLFLOW_TRACKING_URI"], "experiment_id": run.info.experiment_id}
        _write_json(self.run_dir / "mlflow.json", where | {"run_id": self.run_id, "run_name": run.info.run_name})
        if run.info.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        # A param of MLflow can never change, so a resumed run adds those that are new.
        params = [Param(key, value) for key, value in self.about["params"].items() if key not in run.data.params]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        self.client.log_batch(self.run_id, tags=[RunTag(_name(key), text) for key, text in self.about["tags"].items()])
        self._held, self._offset = int(run.data.metrics.get("iteration", -1)), 0

    def _find(self) -> Any:
        from mlflow import MlflowException

        if known := _read_json(self.run_dir / "mlflow.json"):
            try:
                run = self.client.get_run(known["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another server, or it was deleted there
                    raise
        found = self.client.search_runs([self._experiment()], f"tags.`{KEY}` = '{self.about['key']}'", max_results=1)
        return found[0] if found else None

    def _experiment(self) -> str:
        from mlflow import MlflowException

        name, uri = self.about["experiment"], os.environ["MLFLOW_TRACKING_URI"]
        if experiment := self.client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        # Left alone, MLflow puts the artifacts of a SQLite store under the directory that it happens to be started in.
        location = (_database(uri).parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment()  # another run was faster

    def follow(self) -> None:
        """Send the rows that MLflow does not hold yet, and every so often what the machine is doing."""
        self._send()
        if not self._introduced:
            self._upload("config.yaml")
            self._introduced = True
        if metrics := self._meter.read():
            self._log(metrics, time.time())

    def finish(self, status: str) -> None:
        """Send all that is left of a run that is over."""
        try:
            self._send()
            for name in ("config.yaml", "result.json", "plots", "videos"):
                self._upload(name)
            result = self.run_dir / "result.json"
            if final := _read_json(result).get("evaluation"):
                names = {"mean": "final/return_mean", "std": "final/return_std", "episodes": "final/episodes"}
                metrics = {name: final[key] for key, name in names.items()}
                metrics |= {
                    f"final/{key}_mean": value["mean"] for key, value in final.items() if isinstance(value, dict)
                }
                # At the time of the file, not now: sent twice, it is still the same point.
                self._log(metrics, result.stat().st_mtime)
            self._model()
        finally:  # whatever MLflow did not take, it learns how the run ended
            self.client.set_terminated(self.run_id, status)

    def _send(self) -> None:
        while rows := self._rows():
            for metrics in self._requests(rows):
                self.client.log_batch(self.run_id, metrics=metrics)

    def _rows(self) -> list[Row]:
        """Whole lines of metrics.jsonl from where the last call stopped, about a megabyte of them."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offset)
            lines = [line for line in file.readlines(1 << 20) if line.endswith(b"\n")]
        self._offset += sum(map(len, lines))
        return [json.loads(line) for line in lines]

    def _requests(self, rows: list[Row]) -> Iterator[list[Any]]:
        """Metrics for one request each. A request is taken whole or not at all, and so then is a row."""
        request: list[Any] = []
        for row in rows:
            self.env_steps = int(row["env_steps"])
            if int(row["iteration"]) <= self._held:
                continue
            metrics = self._metrics(row, float(row["time"]))
            if len(request) + len(metrics) > REQUEST:
                yield request
                request = []
            request += metrics
        if request:
            yield request

    def _metrics(self, row: Mapping[str, Any], unix: float) -> list[Any]:
        from mlflow.entities import Metric

        evaluated = int(row.get("evaluation/env_steps", self.env_steps))  # an evaluation counts some iterations later
        return [
            Metric(_name(key), value, int(unix * 1000), evaluated if key.startswith("evaluation/") else self.env_steps)
            for key, value in row.items()
            if isinstance(value, (int, float)) and key not in ("env_steps", "time", "evaluation/env_steps")
        ]

    def _log(self, row: Mapping[str, Any], unix: float) -> None:
        self.client.log_batch(self.run_id, metrics=self._metrics(row, unix))

    def _upload(self, name: str) -> None:
        path = self.run_dir / name
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), name)
        elif path.exists():
            self.client.log_artifact(self.run_id, str(path))

    def _model(self) -> None:
        """The best policy as a model of MLflow's own, which loads and predicts where there is no distrl."""
        import mlflow
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import Schema, TensorSpec

        best = self.run_dir / "best"
        if not (best / "policy.json").exists():
            return
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(best.iterdir()))).hexdigest()
        run = self.client.get_run(self.run_id)
        if run.data.tags.get(MODEL) == digest:
            return
        observation = _read_json(best / "policy.json")["observation"]
        shape, dtype = tuple(observation["shape"]), np.dtype(observation["dtype"])
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
        Model.log(
            artifact_path=None,
            name="policy",
            flavor=mlflow.pyfunc,
            run_id=self.run_id,
            python_model=str(Path(__file__).with_name("track_model.py")),
            code_paths=[str(Path(__file__).parent)],
            artifacts={"model": str(best)},
            signature=ModelSignature(
                inputs=Schema([TensorSpec(dtype, (-1, *shape))]), outputs=Schema([TensorSpec(np.dtype("int64"), (-1,))])
            ),
            input_example=np.zeros((2, *shape), dtype),
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "safetensors", "threadpoolctl")
            ],
            registered_model_name=self.about["register_as"],
        )
        self.client.set_tag(self.run_id, MODEL, digest)


def _follow(run_dir: Path) -> int:
    """Follow the run until its driver ends. 0: MLflow has all of it."""
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    log = logging.getLogger("distrl.track")
    driver = _Driver()
    driver.start()
    with (run_dir / "track.log").open("ab") as lock:
        # A resumed run waits until the process of the driver that was killed is through; and that one, should it come
        # second, has nothing more to say.
        while not _locked(lock):
            if driver.ended.wait(0.2) and driver.status is None:
                return 0

        from mlflow import MlflowException

        follower = _Follower(run_dir)
        failures, connected = 0, False
        while True:
            ended = driver.ended.is_set()
            try:
                if not connected:
                    follower.connect()
                    connected = True
                if ended:
                    follower.finish(driver.status or "KILLED")
                    return 0
                follower.follow()
                if failures:
                    log.warning("MLflow takes the metrics again")
                    (run_dir / "track.state").unlink(missing_ok=True)
                failures = 0
            except (MlflowException, OSError, UserError) as error:  # of the server, the network, the disk
                reason = without_credentials(" ".join(str(error).split()))[:300]
                with suppress(UserError):  # the disk is full
                    _write_json(run_dir / "track.state", {"behind": reason})
                if ended or not failures:
                    log.warning("MLflow does not take everything: %s", reason)
                if ended and failures >= 3:
                    return 1
                failures, connected = failures + 1, False
            if ended:
                time.sleep(2)
            else:
                driver.ended.wait(min(BACKOFF_S, FOLLOW_S * 2**failures))


def _locked(lock: IO[bytes]) -> bool:
    """Whether the lock is now ours; it ends with the process, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    *flags, run_dir = sys.argv[1:] or ["--help", ""]
    if not flags:
        sys.exit(_follow(Path(run_dir)))
    if flags != ["--sync"]:
        sys.exit("usage: python -m distrl.track --sync RUN_DIR   (sends to MLflow what it does not have of a run)")
    try:
        sync(run_dir)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
