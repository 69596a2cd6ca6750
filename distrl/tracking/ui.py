"""MLflow's pages on this machine alone: over which store, at which address, and until when."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from distrl.errors import UserError
from distrl.signals import ignored
from distrl.tracking.where import UI_HOST, check_tracking, database_path, read_json, run_page, split_credentials

END_S = 10.0  # that a server has to end by itself


def find_store(run: Path | None, directory: Path) -> str:
    """Where the runs are that are to be looked at.

    Args:
        run: a run directory; None: MLFLOW_TRACKING_URI, else the store beside the runs of `directory` that was written last
    Raises:
        UserError: there is none
    """
    if run is not None:
        if uri := read_json(run / "track.json").get("uri"):
            return str(uri)
        raise UserError(f"{run} is not the directory of a run with MLflow: it has no track.json.")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return f"sqlite:///{database_path(uri)}" if uri.startswith("sqlite:///") else uri.rstrip("/")
    stores = [path for pattern in ("mlflow.db", "*/mlflow.db") for path in directory.glob(pattern)]
    if not stores:
        raise UserError(
            f"No run was tracked in {directory}: neither mlflow.db nor runs/mlflow.db is there. Go where you trained, name a "
            "run (distrl ui RUN), or set MLFLOW_TRACKING_URI."
        )
    return f"sqlite:///{max(stores, key=lambda path: path.stat().st_mtime).absolute()}"


def page_of(uri: str, run: Path | None, address: str) -> str:
    """The page of a run, else of the experiment that was written last; `address`: of the server."""
    known = {} if run is None else read_json(run / "mlflow.json")
    if known:
        return run_page(address, known["experiment_id"], known["run_id"])
    experiment = _newest_experiment(database_path(uri)) if uri.startswith("sqlite:") else None
    return run_page(address, experiment)


def _newest_experiment(database: Path) -> str | None:
    """Read behind MLflow's back, so that no server is needed to know its address."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT experiment_id FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
    except sqlite3.Error:
        return None
    return None if found is None else str(found[0])


@contextmanager
def serve(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server over a store, on loopback, until the block ends.

    Raises:
        UserError: the port is taken, the store cannot be used, or the server ends
    """
    check_tracking(uri)
    _check_port(port)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", UI_HOST]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        tempfile.TemporaryFile() as log,
        running([*command, "--port", str(port), "--workers", "1"], quiet, log) as server,
    ):
        wait_until_ready(server, f"http://{UI_HOST}:{port}/health", log)
        yield server


@contextmanager
def running(command: list[str], settings: dict[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, so that Ctrl-C comes to us alone; all of it ends with the block."""
    server = subprocess.Popen(
        command, env=settings | os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield server
    finally:
        with ignored():  # a second Ctrl-C would leave it behind
            _end(server)


def wait_until_ready(server: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Until the server answers. Raises `UserError` with its last words where it ends instead."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    log.seek(0)
    said = " ".join(log.read().decode(errors="replace").strip().splitlines()[-3:])
    raise UserError(f"The server of MLflow ended with code {server.returncode}: {said}")


def _end(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            continue


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((UI_HOST, port))
        except OSError as error:
            free = _free_port()
            raise UserError(
                f"Port {port} of {UI_HOST} cannot be used: {error.strerror}. Another program may have it, such as another 'distrl "
                f"ui'. Choose a free one: --port {free}."
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((UI_HOST, 0))
        return int(probe.getsockname()[1])


def is_server(uri: str) -> bool:
    """Whether pages are there already, at the address of a server."""
    return uri.startswith(("http://", "https://"))


def server_page(uri: str, run: Path | None) -> str:
    """A page of a server that runs elsewhere. Raises `UserError` where it does not answer."""
    check_tracking(uri)
    return page_of(uri, run, split_credentials(uri)[0])
