"""Jobs on a Ray cluster by its dashboard: submit, follow, stop, fetch. Needs `ray[default]` and nothing else of distrl's.

A job brings the code of the distrl that submits it, so that what runs there is what is here. Its run directory lies on the
cluster's head and outlives the job; a second, tiny job sends it back through its log, which is the one way out of a cluster
that every cluster has open.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import secrets
import shlex
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distrl.errors import UserError, did_you_mean, reason
from distrl.execution import on_cluster, other_ray
from distrl.outside import OUTSIDE_S, within

RUNS = "~/distrl-runs"  # on the head
LARGEST = 512 * 2**20  # of what Ray carries to a cluster in one piece
SILENCE_S = 45.0  # after that a connection may be dead: a run says something every 10 s
TRIES = 3  # to fetch a run
PATIENCE_S = 900.0  # so long a cluster may be away while a job is followed
WAIT_S = 900.0  # for machines that are only just started
READY_S = 90.0  # a head that answers may not take jobs yet for so long
STOP_S = 120  # to write a checkpoint in
FETCH = "distrl-fetch-"  # begins the ids of jobs that send a run directory back
PROBE = "distrl-probe-"  # of those that look at the machines
INTERRUPTED = 130
LEFT_OUT = (
    ".env",
)  # of a directory that is sent; what is in it comes as the job's environment, which others cannot read

# Of Ray: tell of every upload, and of every connection that ended.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

# Sends a directory as lines of base64: all but locks, drafts and old checkpoints. What goes away meanwhile is left out.
_SEND = """
import base64, glob, hashlib, os, sys, tarfile, time
logs = os.path.dirname(os.readlink("/proc/self/fd/1"))
for old in glob.glob(logs + "/job-driver-distrl-fetch-*.log"):
    try:
        if time.time() - os.path.getmtime(old) > 3600: os.unlink(old) # a younger one may still be read
    except OSError: pass
root = os.path.expanduser(sys.argv[1])
if not os.path.isdir(root): sys.exit("error: there is no run directory " + root + " on the head")
print("-" * 8 + "BEGIN", flush=True)
class Lines:
    rest, digest = b"", hashlib.sha256()
    def write(self, data):
        self.digest.update(data)
        self.rest += data
        while len(self.rest) >= 6000:
            print(base64.b64encode(self.rest[:6000]).decode())
            self.rest = self.rest[6000:]
        return len(data)
lines = Lines()
kept = sorted(n for n in (os.listdir(root + "/checkpoints") if os.path.isdir(root + "/checkpoints") else []) if n.isdecimal())[-1:]
with tarfile.open(fileobj=lines, mode="w|gz") as tar:
    for place, names, files in os.walk(root):
        names[:] = [n for n in names if n[0] != "." and (os.path.basename(place) != "checkpoints" or n in kept)]
        for name in files:
            path = os.path.join(place, name)
            if name[0] == ".": continue
            try: file = open(path, "rb")
            except OSError: continue
            with file:
                info = tar.gettarinfo(arcname=os.path.relpath(path, root), fileobj=file)
                tar.addfile(info, file)
print(base64.b64encode(lines.rest).decode())
print("-" * 8 + "END " + lines.digest.hexdigest(), flush=True)
"""


class Away(UserError):
    """The cluster does not answer, at least not now."""


class NoJob(UserError):
    """The cluster knows no such job."""


@dataclass(frozen=True)
class Job:
    """What a cluster knows of a job."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str
    exit_code: int | None  # None while it runs, and where it never ran
    started: float | None  # unix times
    ended: float | None
    about: Mapping[str, str]  # what was said of it when it was submitted

    @property
    def over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def code(self) -> int:
        """The exit code of its run; of one that was stopped as if it had been interrupted."""
        if self.status == "STOPPED":
            return INTERRUPTED
        return 0 if self.status == "SUCCEEDED" else self.exit_code or 1


@dataclass(frozen=True)
class Order:
    """A run that is to be done on a cluster."""

    what: str  # for people
    distrl: str  # the version of it that comes along
    run_dir: str  # on the head
    overrides: Sequence[str] = ()
    config: str | None = None  # YAML, of a new run
    resume: str | None = None  # else the run that goes on: its directory on the head, or its address in a store
    model: Path | None = None  # a model directory or file that it begins with
    versions: Mapping[str, str] = field(default_factory=dict)  # what the cluster must have
    environment: Mapping[str, str] = field(default_factory=dict)  # what all its processes find; Ray shows it to nobody
    wait_s: float = WAIT_S  # the most that it waits for CPUs and GPUs
    module: str = on_cluster.__name__  # what is run there
    store: str | None = None  # the address of one that is looked at, of a check


class Cluster:
    """The jobs of a cluster. Every call raises `UserError` where the cluster does not answer, or not to us."""

    def __init__(self, address: str) -> None:
        """`address`: of the dashboard, such as http://127.0.0.1:8265."""
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise UserError(f"--address {address!r} is none of a dashboard, such as http://127.0.0.1:8265. {REMEDY}")
        other_ray.show_token()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray prefers what it finds there to what it is told
        with self._asking():
            from ray.job_submission import JobSubmissionClient

            for name in _TALKATIVE:
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = within(OUTSIDE_S, lambda: JobSubmissionClient(self.address))

    @property
    def ray_version(self) -> str:
        return str(self._client._server_ray_version)

    @property
    def is_closed(self) -> bool:
        """Whether it answers those alone who have its token."""
        try:
            with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=OUTSIDE_S):
                return False
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        except OSError as error:
            raise Away(f"{self.address} does not answer ({reason(error)}). {REMEDY}") from error

    def submit(self, job: str, order: Order, package: Path, working_dir: Path | None = None) -> None:
        """Start a job under an id that is new. `package`: the directory of distrl, whose code it runs."""
        for directory in (package, *([] if working_dir is None else [working_dir])):
            check_size(directory)
        with tempfile.TemporaryDirectory(prefix="distrl-") as payload:
            self._start(
                entrypoint=f"python -m {order.module}",
                submission_id=job,
                metadata={"distrl": order.distrl, "what": order.what, "run_dir": order.run_dir},
                runtime_env={
                    "py_modules": [str(package), *_write_payload(Path(payload), order)],
                    "worker_process_setup_hook": f"{on_cluster.__name__}.prepare",
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                    **({} if working_dir is None else {"working_dir": str(working_dir), "excludes": [*LEFT_OUT]}),
                },
            )

    def _start(self, **job: Any) -> None:
        """Submit a job; to a head that has only just come up after some seconds."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with self._asking():
                    self._client.submit_job(**job)
                    return
            except Away as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def job(self, job: str) -> Job:
        with self._asking(job):
            return _job(within(OUTSIDE_S, lambda: self._client.get_job_info(job)))

    def jobs(self) -> list[Job]:
        """Those that distrl submitted, the newest last."""
        with self._asking():
            found = within(OUTSIDE_S, self._client.list_jobs)
        jobs = [_job(info) for info in found if info.submission_id and (info.metadata or {}).get("run_dir")]
        return sorted(jobs, key=lambda job: job.started or 0)

    def forget(self, job: str) -> None:
        """Take one that is over from the cluster's list."""
        with self._asking(job):
            within(OUTSIDE_S, lambda: self._client.delete_job(job))

    def stop(self, job: str) -> None:
        """Ask it to end with a checkpoint. Raises `UserError` where it has ended."""
        with self._asking(job):
            if not within(OUTSIDE_S, lambda: self._client.stop_job(job)):
                raise UserError(f"The job {job} is not running any more: nothing to stop.")

    def log(self, job: str) -> str:
        """All that it said so far."""
        with self._asking(job):
            return str(within(OUTSIDE_S, lambda: self._client.get_job_logs(job)))

    def follow(self, job: str, write: Callable[[str], None], warn: Callable[[str], None]) -> Job:
        """Hand on what a job says until it is over, also when the connection is lost meanwhile.

        Raises:
            UserError: there is no such job, or the cluster was away for too long
        """
        told, lost = 0, None

        def hear(text: str) -> None:
            nonlocal told, lost
            told, lost = told + len(text), None
            write(text)

        while True:
            try:
                with self._asking(job):
                    asyncio.run(self._tail(job, told, hear))
                found = self.job(job)
                if found.over:
                    hear(self.log(job)[told:])
                    return found
            except Away as error:
                if lost is None:
                    lost = time.monotonic()
                    warn(f"{error} The job goes on; trying again.")
                if time.monotonic() - lost > PATIENCE_S:
                    raise UserError(
                        f"{self.address} has not answered for {PATIENCE_S:.0f} s. The job may still go on: try 'distrl logs {job}'."
                    ) from None
            time.sleep(1)

    async def _tail(self, job: str, skip: int, hear: Callable[[str], None]) -> None:
        """Hand on what a job says behind the first `skip` characters, until it is over or says nothing for a while."""
        stream = self._client.tail_job_logs(job)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            new, skip = text[skip:], max(0, skip - len(text))
            if new:
                hear(new)

    def fetch(self, job: str, out: Path, warn: Callable[[str], None]) -> None:
        """Bring the run directory of a job here, to `out`, which is new. Of its checkpoints the newest comes.

        Raises:
            UserError: there is no such run, or it did not arrive whole
        """
        refuse_taken(out)
        missing: NoJob | None = None
        try:
            run_dir = self.job(job).about.get("run_dir", f"{RUNS}/{job}")
        except NoJob as error:  # a head that was started anew knows no job before, and may have the directory
            run_dir, missing = f"{RUNS}/{job}", error
        send = f"python3 -c {shlex.quote(_SEND)} {shlex.quote(run_dir)}"
        for left in reversed(range(TRIES)):
            sender = f"{FETCH}{secrets.token_hex(4)}"
            self._start(entrypoint=send, submission_id=sender)
            with tempfile.TemporaryFile() as archive:
                receiver = _Receiver(archive)
                ended = self.follow(sender, receiver.hear, warn)
                self.forget(sender)
                if receiver.whole:
                    archive.seek(0)
                    _unpack(archive, out)
                    return
            said = f"The run of {job} did not arrive{' whole' if receiver.begun else ''} ({receiver.said or ended.message})."
            if not (receiver.begun and left):
                raise (None if receiver.begun else missing) or UserError(said)
            warn(f"{said} It is asked for once more.")

    @contextmanager
    def _asking(self, job: str | None = None) -> Iterator[None]:
        """The border to a cluster: whatever comes back from there that is no answer is `UserError`."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            if isinstance(error, AuthenticationError):
                raise UserError(f"The cluster at {self.address} does not let us in: {other_ray.TOKEN}.") from error
            if job is not None and (getattr(error, "status", None) == 404 or "status code 404" in said):
                raise NoJob(self._no_job(job)) from None
            if "Version check" in said or (isinstance(error, OSError) and isinstance(error, ValueError)):  # no JSON
                raise UserError(f"What answers at {self.address} is no Ray dashboard. {REMEDY}") from error
            dropped = "status code 5" in said or "unexpectedly" in said or type(error).__module__.startswith("aiohttp")
            if dropped or isinstance(error, OSError):
                raise Away(f"{self.address} does not answer ({reason(error)}). {REMEDY}") from error
            if not isinstance(error, RuntimeError | ValueError | KeyError):
                raise
            raise UserError(f"The cluster at {self.address} refuses that: {reason(error)}.") from error

    def _no_job(self, job: str) -> str:
        near = did_you_mean(job, [known.id for known in self.jobs()])
        return f"There is no job {job!r} on the cluster at {self.address}.{near} 'distrl jobs' lists them."


REMEDY = "Give --address as http://127.0.0.1:8265; 'ray dashboard FILE' opens that to a cluster that 'ray up FILE' made, as long as it runs."


def new_id(what: str) -> str:
    """An id for a job, whose name is what it trains."""
    name = "".join(char if char.isalnum() else "-" for char in what.lower()).strip("-")
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def refuse_taken(out: Path) -> None:
    """Raise `UserError` where a run cannot be put."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{str(out)!r} exists. Choose another place for the results, with --out DIR.")


def check_size(directory: Path) -> None:
    """Raise `UserError` where a directory is more than Ray takes to a cluster, with what is large in it."""
    from ray._private.runtime_env import packaging

    if not directory.is_dir():
        raise UserError(f"--working-dir {str(directory)!r} is no directory.")
    sizes: dict[Path, int] = {}

    def weigh(path: Path) -> None:
        if path.is_file():
            sizes[path] = path.stat().st_size

    left_out = packaging._get_excludes(directory, [".git", ".venv", "venv", "__pycache__", *LEFT_OUT])
    packaging._dir_travel(
        directory.absolute(), [left_out], weigh, include_gitignore=True, logger=logging.getLogger(__name__)
    )
    total = sum(sizes.values())
    if total >= LARGEST:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        told = ", ".join(
            f"{path.relative_to(directory.absolute())} ({sizes[path] / 2**20:,.0f} MiB)" for path in largest
        )
        raise UserError(
            f"{directory} has {total / 2**20:,.0f} MiB, and Ray takes at most {LARGEST / 2**20:.0f} MiB to a cluster. The largest "
            f"files are {told}. Name what is not needed in {directory / '.rayignore'}, which is written as a .gitignore is."
        )


def _write_payload(directory: Path, order: Order) -> list[str]:
    """What a job is handed, as two packages: the order itself, and what tells the version of the distrl that comes along."""
    handed = directory / on_cluster.PAYLOAD
    told = directory / f"distrl-{order.distrl}.dist-info"
    handed.mkdir()
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: distrl\nVersion: {order.distrl}\n")
    (handed / "__init__.py").touch()
    secret = handed / on_cluster.ENVIRONMENT
    secret.touch(0o600)
    secret.write_text(json.dumps(dict(order.environment)))
    model = None
    if order.model is not None:
        model = f"model{order.model.suffix}"
        (shutil.copytree if order.model.is_dir() else shutil.copy)(order.model, handed / model)
    wanted = {
        "model": model,
        "run_dir": order.run_dir,
        "resume": order.resume,
        "overrides": list(order.overrides),
        "versions": dict(order.versions),
        "wait_s": order.wait_s,
        "store": order.store,
    }
    (handed / on_cluster.ORDER).write_text(json.dumps(wanted))
    if order.config is not None:
        (handed / on_cluster.CONFIG).write_text(order.config, encoding="utf-8")
    return [str(handed), str(told)]


def _job(info: Any) -> Job:
    return Job(
        id=info.submission_id,
        status=str(getattr(info.status, "value", info.status)),
        message=info.message or "",
        exit_code=info.driver_exit_code,
        started=None if info.start_time is None else info.start_time / 1e3,
        ended=None if info.end_time is None else info.end_time / 1e3,
        about=info.metadata or {},
    )


class _Receiver:
    """Puts together what `_SEND` sends."""

    def __init__(self, file: IO[bytes]) -> None:
        self.begun, self.whole, self.said = False, False, ""
        self._file, self._digest = file, hashlib.sha256()
        self._line, self._inside = "", False

    def hear(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line == "-" * 8 + "BEGIN":
                self.begun = self._inside = True
            elif line.startswith("-" * 8 + "END "):
                self.whole = line.split()[1] == self._digest.hexdigest()
                self._inside = False
            elif self._inside:
                self._take(line)
            elif line.strip():
                self.said = line.strip().removeprefix("error: ")

    def _take(self, line: str) -> None:
        """A line of the directory; one that is none, an error of who sends say, is missing in the checksum."""
        try:
            data = base64.b64decode(line, validate=True)
        except ValueError:
            self.said = line[-200:]
            return
        self._digest.update(data)
        self._file.write(data)


def _unpack(archive: IO[bytes], out: Path) -> None:
    """Whole or not at all."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            tar.extractall(draft, filter="data")
        draft.rename(out)
    except OSError as error:
        raise UserError(
            f"{str(out)!r} cannot be written: {reason(error)}. Choose another place with --out DIR."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
