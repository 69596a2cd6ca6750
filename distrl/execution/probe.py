"""What a cluster is made of, asked of every machine of it; a job on the cluster, whose last line is JSON.

python -m distrl.execution.probe
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import time
from importlib import metadata
from typing import Any

PACKAGES = ("ray", "torch", "gymnasium", "numpy")
CALLS, MEGABYTES, WAIT_S = 20, 16, 60


class Scout:
    """An actor on the machine that is asked about."""

    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = {"python": platform.python_version(), "processor": _processor()}
        for name in PACKAGES:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "none"
        found["disk_free_gib"] = round(shutil.disk_usage("/").free / 2**30, 1)
        return found

    def clock(self) -> float:
        """unix time."""
        return time.time()

    def data(self) -> bytes:
        return bytes(MEGABYTES * 2**20)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.machine()


def main() -> None:
    """Ask all machines, each on its own; print what they said."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    scout = ray.remote(num_cpus=0)(Scout)
    nodes = ray.nodes()
    here = ray.get_runtime_context().get_node_id()
    found = []
    for node in nodes:
        entry: dict[str, Any] = {
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "head": node["NodeID"] == here,
            "cpus": node["Resources"].get("CPU", 0),
            "gpus": node["Resources"].get("GPU", 0),
        }
        if node["Alive"]:
            there = scout.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            try:
                entry |= _ask(ray, there)
            except Exception as error:  # whatever is wrong with it is what is looked for
                entry["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ray.kill(there)
        found.append(entry)
    print(json.dumps(found), flush=True)
    ray.shutdown()


def _ask(ray: Any, there: Any) -> dict[str, Any]:
    """What a machine is, how far its clock is off, how long a call takes, how fast data comes."""
    about = ray.get(there.about.remote(), timeout=WAIT_S)
    trips, offsets = [], []
    for _ in range(CALLS):
        start = time.time()
        clock = ray.get(there.clock.remote(), timeout=WAIT_S)
        trips.append(time.time() - start)
        offsets.append(clock - start - trips[-1] / 2)
    start = time.time()
    ray.get(there.data.remote(), timeout=WAIT_S)
    return {
        **about,
        "round_trip_ms": round(1e3 * statistics.median(trips), 2),
        "clock_off_s": round(offsets[trips.index(min(trips))], 3),
        "mb_per_s": round(MEGABYTES * 2**20 / 1e6 / (time.time() - start), 1),
    }


if __name__ == "__main__":
    main()
