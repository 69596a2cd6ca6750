"""Where a run is tracked: the address, whether it answers, its page, and files without credentials."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from distrl.errors import UserError
from distrl.files import write_text
from distrl.json_format import json_text
from distrl.outside import OUTSIDE_S, within
from distrl.settings import Config

UI_HOST, UI_PORT = "127.0.0.1", 5000  # of MLflow's pages on this machine
NOTE = "mlflow.note.content"  # tag: the description that MLflow shows
MODEL = "distrl.model_sha256"  # tag: the model that was logged last, so that none is logged twice
KEY = "distrl.key"  # tag: finds a run again whose id was lost between creating it and writing mlflow.json


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
    return uri_of(uri, run_dir)


def uri_of(uri: str | None, run_dir: str | Path) -> str:
    """`uri`, else MLFLOW_TRACKING_URI, else a SQLite store beside the run."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(run_dir).absolute().parent}/mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{database_path(uri)}"
    return uri.rstrip("/")


def check_tracking(uri: str) -> None:
    """Raise `UserError` where MLflow cannot be reached at `uri`, or the store is of a kind that it refuses."""
    shown, scheme = without_credentials(uri), uri.partition(":")[0] if ":" in uri else ""
    remedy = (
        "Start a server with 'mlflow server --host 127.0.0.1 --port 5000', correct or unset track.uri and "
        "MLFLOW_TRACKING_URI (then a SQLite store is used), or train without MLflow: track.mlflow=false."
    )
    if scheme in ("http", "https"):
        if reason := unreachable(shown):
            raise UserError(f"The MLflow server at {shown} cannot be reached: {reason}. {remedy}")
    elif uri.startswith("sqlite:///") and uri != "sqlite:///":
        database = database_path(uri)
        there = next(path for path in (database, *database.parents) if path.exists())
        if not os.access(there, os.W_OK) or there.is_dir() == (there == database):
            raise UserError(f"The MLflow store {shown} cannot be written: see {there}. {remedy}")
        if there == database and database.open("rb").read(16) not in (b"", b"SQLite format 3\0"):
            raise UserError(f"The MLflow store {shown} is not a SQLite database. {remedy}")
    elif scheme in ("file", ""):
        raise UserError(f"The tracking URI {shown!r} means plain files, which MLflow 3 refuses. {remedy}")
    else:
        raise UserError(f"The tracking URI {shown!r} must start with http://, https:// or sqlite:///. {remedy}")


def unreachable(uri: str) -> str | None:
    """Why a server does not answer in time; None: it does."""
    import http.client
    import urllib.error
    import urllib.request

    def ask() -> None:
        urllib.request.urlopen(f"{uri}/health", timeout=OUTSIDE_S).close()

    try:
        within(OUTSIDE_S, ask)  # its own limit is of each byte
    except urllib.error.HTTPError as error:  # below 500 it is there; what it thinks of our requests, it says to them
        return None if error.code < 500 else f"it answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def without_credentials(text: str) -> str:
    """`text` with the user:password@ of every URI in it left out."""
    return re.sub(r"(?<=://)[^/\s\"']*@", "", text)


def split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """A URI fit for files and messages, and its credentials as MLflow's environment variables."""
    user, _, password = urlsplit(uri).netloc.rpartition("@")[0].partition(":")
    names = {"MLFLOW_TRACKING_USERNAME": unquote(user), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
    return without_credentials(uri), names if user else {}


def database_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def mlflow_location(run_dir: str | Path) -> tuple[str, ...]:
    """How to look at the run in MLflow: what to type, where there is no server, and the page; () where it is not there yet."""
    known = read_json(Path(run_dir) / "mlflow.json")
    if not known:
        return ()
    uri, commands = known["tracking_uri"], []
    if uri.startswith("sqlite:"):
        commands = [f"distrl ui {shlex.quote(str(run_dir))}"]
        uri = f"http://{UI_HOST}:{UI_PORT}"
    return *commands, run_page(uri, known["experiment_id"], known["run_id"])


def run_page(address: str, experiment: str | None = None, run_id: str = "") -> str:
    """The page of a run, of an experiment's runs, or of all experiments, on a server of MLflow."""
    # Without the type, the page would be the one for language models.
    path = "" if experiment is None else f"/{experiment}/runs{'/' * bool(run_id)}{run_id}"
    return f"{address}/#/experiments{path}?workflowType=machine_learning"


def run_tags(config: Config, run_dir: Path) -> dict[str, str]:
    """What a run is, where it lies, what started it, and `collect_tags`."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    own = name == "distrl" or Path(program).parent.name == "distrl"  # or python -m distrl
    told = f"{config.algorithm.name} on {config.env.id}, seed {config.seed}"
    return collect_tags() | {
        "run_dir": str(run_dir),
        "command": shlex.join(["distrl" if own else name, *arguments]),
        "mlflow.source.name": "distrl" if own else name,  # of which MLflow shows what is behind the last slash
        "mlflow.source.type": "LOCAL",
        NOTE: config.track.description or told,
    }


def collect_tags() -> dict[str, str]:
    """What a result depends on besides the config: versions, hardware, and the revision of the user's own code."""
    import psutil

    tags = {"version.python": platform.python_version()}
    for name in ("distrl", "ray", "torch", "gymnasium", "numpy", "mlflow"):
        tags[f"version.{name}"] = importlib.metadata.version(name)
    if revision := program_output("git", "rev-parse", "HEAD"):  # of the working directory
        dirty = bool(program_output("git", "status", "--porcelain"))
        tags |= {"git.revision": revision, "git.dirty": str(dirty).lower(), "mlflow.source.git.commit": revision}
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    tags["hardware.cpu"] = model[1] if model else platform.processor() or platform.machine()
    tags["hardware.cores"] = str(os.cpu_count())
    tags["hardware.memory_gb"] = f"{psutil.virtual_memory().total / 1e9:.0f}"
    if gpus := program_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"):
        tags["hardware.gpu"] = ", ".join(gpus.splitlines())
    return tags


def program_output(*command: str) -> str:
    """What a program says, or '' where it is missing or fails. For what no run depends on."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; {} where there is no such file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, and without credentials."""
    write_text(path, without_credentials(json_text(data, indent=1)))
