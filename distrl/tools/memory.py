"""Memory of a process and all below it."""

from __future__ import annotations

import contextlib
import time

import psutil


def process_memory(process: psutil.Process) -> dict[int, tuple[str, float]]:
    """The kind and the memory in MB (proportional set size) of each process of a tree, by pid."""
    found: dict[int, tuple[str, float]] = {}
    for member in [process, *_children(process)]:
        with contextlib.suppress(psutil.Error):
            name = "driver" if member.pid == process.pid else _name(member.cmdline())
            found[member.pid] = name, _size(member) / 1e6
    return found


def watch_memory(process: psutil.Popen) -> tuple[dict[str, float], float]:
    """Peak memory in MB by kind of process, and of all together, until the process ends."""
    peaks: dict[int, tuple[str, float]] = {}
    together = 0.0
    while process.poll() is None:
        now = process_memory(process)
        together = max(together, sum(size for _, size in now.values()))
        for pid, (name, size) in now.items():
            peaks[pid] = name, max(size, peaks.get(pid, ("", 0.0))[1])
        time.sleep(2)  # looking costs the processes that are looked at
    memory: dict[str, float] = {}
    for name, size in peaks.values():
        memory[name] = memory.get(name, 0.0) + size
    return memory, together


def _size(process: psutil.Process) -> int:
    """In bytes; where the system does not tell that of another process (macOS), with what it shares."""
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return children


def _name(command: list[str]) -> str:
    """'Learner' of an actor, the program's name of anything else."""
    line = " ".join(command)
    if line.startswith("ray::"):
        name = line.removeprefix("ray::").split(".")[0].split()[0]
        return {"Runner": "runners"}.get(name, name.lower())
    if "distrl.tracking" in line:
        return "MLflow's follower"
    return "Ray itself" if "ray" in line else "others"
