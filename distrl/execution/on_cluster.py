"""What a job is on the cluster: its processes made ready, versions compared, then `distrl` as on any machine.

What it is handed lies in the package `distrl_job`, which comes with the job (`distrl.execution.jobs`). Before versions are
compared, this needs nothing but Python: a cluster may have any.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import runpy
import subprocess
import sys
from importlib import metadata
from typing import Any

from distrl.errors import UserError

PAYLOAD = "distrl_job"
ORDER, ENVIRONMENT, CONFIG = "order.json", "environment.json", "config.yaml"  # in it
ROOM = "distrl.execution.room"  # in a process of its own: a run joins Ray in its own way
NEEDS = "distrl.runs.jobs"  # says what a run needs of the cluster; with all that a run imports, so once versions are the same
REFUSED = 2  # exit code, as of `UserError`


def payload() -> str:
    """The directory of what the job was handed."""
    spec = importlib.util.find_spec(PAYLOAD)
    if spec is None or spec.origin is None:
        raise ImportError(f"{PAYLOAD} is not there: this is no job that distrl submitted")
    return os.path.dirname(spec.origin)


def prepare() -> None:
    """Called by Ray in each worker of the job: the Python that Ray runs on comes first, and the submitter's values are set.

    They come in a file, since Ray logs and shows what it is given as environment variables.
    """
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    os.environ.update(read(ENVIRONMENT))


def different(wanted: dict[str, str]) -> list[str]:
    """What is of another version here than is wanted, for people. Of Python, and of builds of a package, the first numbers count."""
    found = []
    for name, version in wanted.items():
        try:
            here = platform.python_version() if name == "python" else metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if release(name, here) != release(name, version):
            found.append(f"{name} {here} ({version} where it was submitted)")
    return found


def release(name: str, version: str) -> str:
    """What of a version must be the same: of Python the first two numbers, of a package all but its build."""
    return ".".join(version.split(".")[:2]) if name == "python" else version.partition("+")[0]


def arguments(order: dict[str, Any], handed: str) -> list[str]:
    """Of `distrl train`, for a run that is new or goes on; one that comes from a store needs a directory here."""
    resume, run_dir = order["resume"], f"run_dir={os.path.expanduser(order['run_dir'])}"
    if resume is None:
        begins = [] if order["model"] is None else [f"init_from={os.path.join(handed, order['model'])}"]
        which = [os.path.join(handed, CONFIG), run_dir, *begins]
    elif "://" in resume:
        which = ["--resume", resume, run_dir]
    else:
        which = ["--resume", os.path.expanduser(resume)]
    return [*which, *order["overrides"], "cluster.address=auto"]


def main() -> None:
    """Do what was ordered, in this process; leaves with the exit code of the command."""
    prepare()  # Ray does that in workers alone
    order = read(ORDER)
    if other := different(order["versions"]):
        print(
            f"error: this cluster has {', '.join(other)}. Install there what scripts/constraints.txt names, or submit with "
            "--any-versions: then other weights may come out.",
            file=sys.stderr,
        )
        sys.exit(REFUSED)
    words = arguments(order, payload())
    try:
        room = json.dumps(importlib.import_module(NEEDS).needed(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    if code := subprocess.run([sys.executable, "-m", ROOM, room, str(order["wait_s"])], check=False).returncode:
        sys.exit(code)
    sys.argv = ["distrl", "train", *words]
    runpy.run_module("distrl", run_name="__main__", alter_sys=True)


def read(name: str) -> dict[str, Any]:
    """What the job was handed under a name."""
    with open(os.path.join(payload(), name), encoding="utf-8") as file:
        read: dict[str, Any] = json.load(file)
    return read


if __name__ == "__main__":
    main()
