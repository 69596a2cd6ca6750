"""What a run uses of its machine: CPU, memory, GPUs."""

from __future__ import annotations

import math
import time

import psutil

from distrl.tracking.where import program_output

METER_S = 10.0  # between two readings


class Meter:
    """Reads what a process and all processes below it use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._processes: dict[psutil.Process, psutil.Process] = {}
        self._read = -math.inf

    def read(self) -> dict[str, float]:
        """Metrics `system/...`; {} where the last reading was just now, or the process is gone."""
        if time.monotonic() - self._read < METER_S:
            return {}
        self._read = time.monotonic()
        try:
            driver = psutil.Process(self._pid)
            found = [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return {}
        # psutil counts CPU time between two calls on the same object.
        self._processes = {process: self._processes.get(process, process) for process in found}
        cpu = memory = 0.0
        for process in self._processes.values():
            try:
                cpu += process.cpu_percent()
                memory += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # it ended a moment ago
        return {
            "system/cpu_percent": cpu,
            "system/memory_rss_mb": memory / 1e6,
            "system/memory_available_mb": psutil.virtual_memory().available / 1e6,
            **_read_gpus(),
        }


def _read_gpus() -> dict[str, float]:
    metrics = {}
    query = "--query-gpu=utilization.gpu,memory.used"
    for i, line in enumerate(program_output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()):
        for name, text in zip(("percent", "memory_mb"), line.split(","), strict=True):
            if text.strip().isdigit():  # or "[N/A]"
                metrics[f"system/gpu_{i}_{name}"] = float(text)
    return metrics
