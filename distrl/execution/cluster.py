"""Workers as Ray actors, on a Ray of this run's own or on an existing cluster. The one place of `import ray`.

A run's own Ray is closed to others (token authentication with a token made for the run), lives in a temporary
directory of its own, is not disturbed by any other Ray on the machine, and is gone when the run is, also when the
driver was killed: a tiny process outlives it to clean up.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrl.errors import Diverged, EnvError, UserError, WorkerLost

# Waits for the driver's end (its side of the pipe closes), then ends what still uses the directory, then the directory.
# Ray's processes change their titles, but keep their logs or sockets there open, or were started with it.
_JANITOR = """
import os, shutil, signal, sys, time
directory, driver = sys.argv[1], int(sys.argv[2])

def uses(pid):
    for name in ("cmdline", "environ"):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            if directory.encode() in file.read():
                return True
    fds = f"/proc/{pid}/fd"
    return any(os.readlink(f"{fds}/{fd}").startswith(directory) for fd in os.listdir(fds))

sys.stdin.read()
for attempt in range(50):
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        try:
            if int(pid) not in (driver, os.getpid()) and uses(pid):
                found = True
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            continue
    shutil.rmtree(directory, ignore_errors=True)
    if not found and not os.path.exists(directory) and attempt > 2:
        break
    time.sleep(0.1)
"""
_MARK = "DISTRL_RAY_DIRECTORY"  # in the environment of all that Ray starts, for the janitor


class RayExecution:
    """`distrl.execution.Execution` on Ray. `cpus` and `gpus` tell what is free on the cluster."""

    def __init__(self, address: str, object_store_bytes: int) -> None:
        """Start a Ray (`address` 'local') or join one. Raises `UserError` for an address that does not answer."""
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            raise UserError(
                "Ray is in use in this process already. Call ray.shutdown() first: a run connects by itself."
            )
        self._directory: str | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._environment = {k: os.environ.get(k) for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH", _MARK)}
        self._workers: dict[str, Any] = {}
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default lets anything else on the machine go first
        os.environ.setdefault(
            "RAY_task_events_report_interval_ms", "0"
        )  # a history of calls that grows for hours: none
        if address == "local":
            self._start(object_store_bytes)
        else:
            self._join(address)
        import ray

        self.ray = ray
        resources = ray.cluster_resources() if address == "local" else ray.available_resources()
        self.cpus, self.gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))

    def _start(self, object_store_bytes: int) -> None:
        # Ray reads both when it is first imported.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
        _reread_token()
        # Workers import what the driver can: the user's own environments, beside the script or the notebook.
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path))
        import ray

        self._directory = os.environ[_MARK] = tempfile.mkdtemp(prefix="distrl-")
        self._janitor = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _JANITOR, self._directory, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=object_store_bytes,
                _temp_dir=self._directory,
            )
        except Exception as error:
            self.close()
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"Ray could not be started on this machine: {first} See 'distrl doctor', or train without it: --local."
            ) from error
        except BaseException:
            self.close()
            raise

    def _join(self, address: str) -> None:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        if "RAY_AUTH_TOKEN" in os.environ or Path(token).exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        _reread_token()
        remedy = "Start one with 'ray start --head', correct cluster.address, or leave it out to use a Ray of this run's own."
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if address != "auto":
            try:
                socket.create_connection((host, int(port)), timeout=3).close()
            except (OSError, ValueError) as error:
                raise UserError(f"cluster.address {address!r} does not answer ({error}). {remedy}") from None
        import ray

        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            self._restore_environment()
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"No Ray cluster could be joined at cluster.address {address!r}: {first} {remedy}"
            ) from None

    def spawn(self, cls: type, *args: Any, name: str, cpus: float = 0, gpus: float = 0) -> Any:
        remote = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, concurrency_groups={"watch": 1})
        handle = remote(cls).remote(*args)
        handle.__ray_call__.remote(_let_ray_in_soon)
        self._workers[handle._actor_id.hex()] = handle
        return handle

    def submit(self, worker: Any, method: str, *args: Any) -> Any:
        return getattr(worker, method).remote(*args)

    def submit_pair(self, worker: Any, method: str, *args: Any) -> tuple[Any, Any]:
        first, second = getattr(worker, method).options(num_returns=2).remote(*args)
        return first, second

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        ready, rest = self.ray.wait(list(futures), num_returns=1, timeout=timeout, fetch_local=False)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        done: list[Any] = ready
        return done

    def get(self, future: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(future)
        except errors.RayTaskError as error:
            if isinstance(error.cause, (EnvError, Diverged, UserError)):
                raise error.cause from None
            if isinstance(error.cause, (errors.RayActorError, errors.ObjectLostError)):
                raise self._lost(error.cause) from None
            raise
        except errors.RayActorError as error:
            if "creation task" in str(error):  # it would fail again
                raise
            raise self._lost(error) from None
        except (errors.ObjectLostError, errors.OutOfMemoryError, errors.WorkerCrashedError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> WorkerLost:
        actor_id = getattr(error, "actor_id", None)
        worker = self._workers.get(actor_id) if isinstance(actor_id, str) else None
        return WorkerLost(worker, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

    def put(self, value: Any) -> Any:
        return self.ray.put(value)

    def progress(self, worker: Any, method: str) -> Any:
        try:
            return self.ray.get(getattr(worker, method).options(concurrency_group="watch").remote(), timeout=5)
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            return None

    def kill(self, worker: Any) -> None:
        self._workers.pop(worker._actor_id.hex(), None)
        self.ray.kill(worker)

    def close(self) -> None:
        """End what was started; once is enough, and twice does no harm."""
        import ray

        for handle in list(self._workers.values()):
            ray.kill(handle)
        self._workers.clear()
        ray.shutdown()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._janitor is not None:
            self._janitor.communicate()
            self._janitor = None
        self._restore_environment()

    def _restore_environment(self) -> None:
        for key, value in self._environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _let_ray_in_soon(worker: Any) -> None:
    """Hand Python's lock over after 0.1 ms instead of 5 ms.

    A worker with concurrency groups works in a thread beside Ray's own, which wants the lock a hundred times a second to
    look for signals. While that one waits, each NumPy call that gives up the lock for a moment wakes it in vain: at 5 ms,
    stepping environments that make such calls (FrozenLake, Taxi) took half as long again.
    """
    sys.setswitchinterval(1e-4)


def _reread_token() -> None:
    """Ray reads the mode when it is imported and keeps the token it used first: a second run in a process has another."""
    if "ray" in sys.modules:
        raylet = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
