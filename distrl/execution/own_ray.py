"""The Ray that a run works on: one of its own, or one that it joins.

A run's own Ray is closed to others (token authentication with a token made for the run), lives in a temporary
directory that other users cannot enter, is not disturbed by any other Ray on the machine, and is gone when the run is,
also when the driver was killed: a tiny process, the janitor, outlives it to clean up.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from distrl import signals
from distrl.errors import ExecutionLost, UserError
from distrl.execution import other_ray
from distrl.outside import HUGE_PAGES

# Waits for the driver's end (its side of the pipe closes), then ends what still uses the directory, then the directory.
# Ray's processes change their titles, but keep their logs or sockets there open, or were started with it. Where the system
# does not show that (macOS), those that bear it in their command are ended, and what these have started.
_JANITOR = """
import os, shutil, signal, subprocess, sys, time
directory, driver = sys.argv[1], int(sys.argv[2])

def uses(pid):
    for name in ("cmdline", "environ"):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            if directory.encode() in file.read():
                return True
    fds = f"/proc/{pid}/fd"
    return any(os.readlink(f"{fds}/{fd}").startswith(directory) for fd in os.listdir(fds))

def bearing():
    listed = ["ps", "-A", "-ww", "-o", "pid=", "-o", "ppid=", "-o", "command="]
    listed = [line.split(None, 2) for line in subprocess.run(listed, stdout=subprocess.PIPE, text=True).stdout.splitlines()]
    spared = {driver, os.getpid()}
    found, more = set(), {int(line[0]) for line in listed if directory in line[-1]} - spared
    while more:
        found |= more
        more = {int(line[0]) for line in listed if int(line[1]) in more} - found - spared
    return found

def users():
    if not os.path.isdir("/proc/self"):
        yield from bearing()
        return
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if pid not in (driver, os.getpid()) and uses(pid):
                yield pid
        except OSError:
            continue

sys.stdin.read()
for attempt in range(50):
    found = False
    for pid in users():
        found = True
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    shutil.rmtree(directory, ignore_errors=True)
    if not found and not os.path.exists(directory) and attempt > 2:
        break
    time.sleep(0.1)
"""


T = TypeVar("T")
_MARK = "DISTRL_RAY_DIRECTORY"  # in the environment of all that Ray starts, for the janitor
# Whose end Ray's C++ half ends this process for, in silence, where its raylet does not answer; by default its parent's, which
# is long gone where a run was left behind (nohup) or is a service. Of a raylet that is lost `check` tells.
_RAYLET = "RAY_RAYLET_PID"
_ALIVE = "alive"  # a file in the directory of a run's own Ray, which the driver keeps locked while it lives
_SOCKET = (
    "/distrl-12345678/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # how long one is at most
)
LONGEST_SOCKET = 103  # bytes that the path of a socket may have on macOS; four more on Linux
START_S = 120.0  # for a Ray to be up; its own limit is 30 s, which a busy machine may need more than
LEAVE_S = 30.0  # for Ray to end in its own way; then the janitor ends it
PROBE_S = 5.0  # between looks at whether a Ray that was joined still answers
PROBES = 3  # in vain, one after the other, and it does not; Ray's own client would end this process after 60 s
# What a run's own Ray is spared, by Ray's methods that start it: the dashboard, the autoscaler, and what brings to the driver
# what workers print.
UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")


def patient(call: Callable[..., T], seconds: float, given_up: Callable[[], bool]) -> Callable[..., T]:
    """The same call, tried again for so long where it raises RuntimeError. Wrapping it twice does nothing more."""
    if hasattr(call, "impatient"):
        call = call.impatient

    def tried(*args: Any, **kwargs: Any) -> T:
        end = time.monotonic() + seconds
        while True:
            try:
                return call(*args, **kwargs)
            except RuntimeError:
                if given_up() or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    tried.impatient = call  # type: ignore[attr-defined]
    return tried


def _janitor(directory: str, driver: int) -> subprocess.Popen[bytes]:
    """Cleans up when its stdin is closed."""
    command = [sys.executable, "-S", "-E", "-c", _JANITOR, directory, str(driver)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _temporary() -> str:
    """Where directories of Rays are made: where temporary files are, unless its name is too long, as macOS's is."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) + len(_SOCKET) <= LONGEST_SOCKET else "/tmp"


def _sweep() -> None:
    """Clean up after drivers that were killed together with their janitors: whose file nobody keeps locked."""
    for file in Path(_temporary()).glob(f"distrl-*/{_ALIVE}"):
        try:
            with file.open() as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        _janitor(str(file.parent), 0).communicate()


class RayConnection:
    """This process connected to a Ray; `close` undoes all of it."""

    def __init__(self, address: str, object_store_bytes: int) -> None:
        """Begin to start a Ray (`address` 'local') or to join one. Raises `UserError` for an address that does not answer."""
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            raise UserError(
                "Ray is in use in this process already. Call ray.shutdown() first: a run connects by itself."
            )
        self._directory: str | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._connected, self._leave = threading.Event(), threading.Event()
        self._starts = threading.Lock()  # while a process of Ray's is being started
        self._failure: Exception | None = None
        self._joined = ""  # the address of a Ray that is not the run's own
        self._put_back = signals.keep()
        self._gone = ""  # why, of a Ray that was joined and does not answer any more
        self._alive: IO[str] | None = None
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH", "RAY_IGNORE_UNHANDLED_ERRORS", _RAYLET, _MARK)
        self._environment = {name: os.environ.get(name) for name in (*names, HUGE_PAGES[0])}
        os.environ[_RAYLET] = str(os.getpid())
        os.environ.setdefault(*HUGE_PAGES)
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default lets anything else on the machine go first
        # A history of calls that grows for hours: none.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault(
            "RAY_ENABLE_MAC_LARGE_OBJECT_STORE", "1"
        )  # macOS: more than 2 GiB, where a run needs them
        try:
            if address == "local":
                self._start(object_store_bytes)
            else:
                self._join(address)
        except BaseException:
            self.close()
            raise

    def _start(self, object_store_bytes: int) -> None:
        # Ray reads both when it is first imported.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
        _reread_token()
        # Workers import what the driver can: the user's own environments, beside the script or the notebook.
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path))
        _sweep()
        self._directory = os.environ[_MARK] = tempfile.mkdtemp(prefix="distrl-", dir=_temporary())
        self._alive = (Path(self._directory) / _ALIVE).open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._janitor = _janitor(self._directory, os.getpid())
        self._begin(
            address="local",
            include_dashboard=False,
            object_store_memory=object_store_bytes,
            _temp_dir=f"{self._directory}/ray",  # which Ray opens to all users; the one around it stays closed
        )

    def _join(self, address: str) -> None:
        other_ray.show_token()
        _reread_token()
        address = other_ray.find(address)
        self._joined = address
        self._begin(address=address)
        self._probe = threading.Thread(target=self._look, args=(address,), name="probe", daemon=True)
        self._probe.start()

    def _look(self, address: str) -> None:
        """Look now and then whether a Ray that was joined still answers."""
        self._connected.wait()
        if self._failure is not None:
            return
        import ray

        raylet, silent = ray._private.worker._global_node.raylet_socket_name, 0
        while not self._leave.wait(PROBE_S):
            reason = other_ray.silence(address, PROBE_S) or _closed(raylet)
            silent = silent + 1 if reason else 0
            if silent == PROBES:
                self._gone = f"the one at {address} does not answer any more: {reason}"

    def _begin(self, **settings: Any) -> None:
        """`ray.init` in a thread of its own, so that this one can be interrupted, or train in the meantime."""
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # what a lost worker takes with it is told once, by the trainer

        def live() -> None:
            # Ray's processes inherit this. A closed terminal tells all that began there; it is the driver who ends them.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            try:
                import ray
                from ray._private import services, worker

                worker.print_to_stdstream = lambda data, ignore_prefix: None  # on stdout, which is for results
                services.get_node = patient(services.get_node, START_S, lambda: self._leave.is_set() or not _raylets())
                with self._own() if self._directory else nullcontext():
                    ray.init(log_to_driver=False, logging_level="ERROR", **settings)
            except Exception as error:
                self._failure = error
            self._connected.set()
            self._leave.wait()  # they end with the thread that began them
            sys.modules["ray"].shutdown()

        self._keeper = threading.Thread(target=live, name=signals.RAY_STARTS, daemon=True)
        self._keeper.start()

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Let Ray start without `UNUSED`, which took it three of seven seconds and a third of its memory, and start nothing
        more once it is to end: the janitor would not see it."""
        from ray._private import services
        from ray._private.node import Node

        start = services.start_ray_process

        def while_wanted(*args: Any, **kwargs: Any) -> Any:
            with self._starts:
                if self._leave.is_set():
                    raise RuntimeError("Ray was to end before it was up.")
                return start(*args, **kwargs)

        kept = {name: method for name, method in vars(Node).items() if name in UNUSED}
        try:
            for name in kept:
                setattr(Node, name, lambda *_, **__: None)
            services.start_ray_process = while_wanted
            yield
        finally:  # a Ray of the user's in this process has all of it
            services.start_ray_process = start
            for name, method in kept.items():
                setattr(Node, name, method)

    def up(self, wait_s: float = 0) -> bool:
        """Whether it is there, or is within so many seconds. Raises `UserError` where it cannot be had."""
        connected = self._connected.wait(wait_s)
        self._put_back()  # the C++ half of Ray takes SIGTERM for itself
        if self._failure is not None:
            first = (str(self._failure).strip() or type(self._failure).__name__).splitlines()[0]
            if self._joined:
                raise UserError(f"The Ray cluster at {self._joined} cannot be joined: {first} {other_ray.REMEDY}")
            busy = " Where the machine is merely busy, try again." if "timed out" in first else ""
            raise UserError(
                f"Ray could not be started on this machine: {first}{busy} See 'distrl doctor', or train without it: --local."
            ) from self._failure
        return connected

    @property
    def directory(self) -> str | None:
        """Of a run's own Ray: for files that are to be gone when this process is, however it ends."""
        return self._directory

    def wait(self) -> None:
        """Until it is there. Raises `UserError` where it cannot be had, and then undoes all."""
        try:
            while not self.up(0.02):
                pass
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises `ExecutionLost` where this Ray is not there any more. A janitor that is gone is replaced."""
        gone = self._gone
        if self._janitor is not None and self._directory is not None:
            import ray

            if self._janitor.poll() is not None:
                self._janitor = _janitor(self._directory, os.getpid())
            node = ray._private.worker._global_node
            gone = ", ".join(name for name, _ in node.dead_processes() if name in ("gcs_server", "raylet"))
            gone = gone and f"its {gone} is gone"
        if gone:
            raise ExecutionLost(f"Ray died ({gone})")

    def close(self) -> None:
        """Leave the Ray, and end it where it is the run's own; once is enough, and twice does no harm."""
        with self._starts:
            self._leave.set()
        if self._keeper is not None and self._connected.is_set():
            self._keeper.join(LEAVE_S)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._janitor is not None and self._directory is not None:
            if self._janitor.poll() is not None:
                self._janitor = _janitor(self._directory, os.getpid())
            self._janitor.communicate()
            self._janitor = None
        if self._alive is not None:
            self._alive.close()
        self._restore_environment()
        if self._connected.is_set():
            _reread_token()  # a Ray of the user's in this process has other settings

    def _restore_environment(self) -> None:
        for key, value in self._environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _closed(path: str) -> str:
    """Why nobody listens at the socket of a raylet, or ''."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            return ""
    except OSError as error:
        return f"its raylet here is gone ({error.strerror})"


def _raylets() -> list[psutil.Process]:
    """That this process has started, and that live."""
    children = psutil.Process().children()
    return [child for child in children if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE]


def _reread_token() -> None:
    """Ray reads the mode when it is imported and keeps the token it used first: a second run in a process has another."""
    if "ray" in sys.modules:
        raylet = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
