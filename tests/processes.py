"""The command line as its user meets it: real processes, real Ray, real signals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from conftest import CARTPOLE

# On Ray from its first step on: else it would be over before Ray is up.
SMALL: dict[str, Any] = {
    **CARTPOLE,
    "track": {"mlflow": False, "video": False},
    "cluster": {"runners": 2, "start": "wait"},
}


def distrl(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distrl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)


def write(directory: Path, config: dict[str, Any], name: str = "config.yaml") -> str:
    (directory / name).write_text(yaml.safe_dump(config))
    return name


def result_of(run_dir: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return data


def start(directory: Path, *arguments: str, **settings: Any) -> psutil.Popen:
    command = [sys.executable, "-m", "distrl", "train", *arguments, "-q"]
    settings = {"stderr": subprocess.PIPE, "start_new_session": True, **settings}
    return psutil.Popen(command, cwd=directory, **settings)


def wait_for_rows(run_dir: Path, rows: int, process: psutil.Popen) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        file = run_dir / "metrics.jsonl"
        if file.exists() and file.read_text().count("\n") >= rows:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {rows} rows: {told_by(process) if process.poll() is not None else 'too slow'}")


def told_by(process: psutil.Popen) -> str:
    """What a process that has ended wrote on stderr."""
    return process.stderr.read().decode() if process.stderr is not None else ""


def family(process: psutil.Popen) -> list[psutil.Process]:
    members: list[psutil.Process] = process.children(recursive=True)
    return members


def programs() -> set[str]:
    """Names of the files that this process's children run, and their words."""
    lines = [child.as_dict(["cmdline"])["cmdline"] or () for child in psutil.Process().children(recursive=True)]
    return {Path(word).name for line in lines for word in line}


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]
