"""What a cluster is made of, asked of every machine of it; a job on the cluster, whose last line is JSON.

python -m distrl.execution.probe

A store is asked by processes of their own on every machine: each leaves a file there, then each reads the files of all.
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

from distrl.execution import on_cluster
from distrl.outside import OUTSIDE_S, child_environment

PACKAGES = ("ray", "torch", "gymnasium", "numpy")
CALLS, MEGABYTES, WAIT_S = 20, 16, 60
FRAGMENT, FRAGMENTS = 1_000_000, 5  # bytes of a large one, and how many are sent
STORE_S = 90.0  # for a process to start and to ask a store
# Whether a Ray's head at argv[1] answers a stranger: why not, or 'None'.
_STRANGER = "import sys; from distrl.execution import other_ray; print(other_ray.silence(sys.argv[1], 10))"


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

    def data(self, size: int) -> bytes:
        return bytes(size)

    def reached(self, places: list[tuple[str, int]]) -> list[str]:
        """Those of some addresses and ports at which somebody answers, seen from here."""
        found = []
        for host, port in places:
            try:
                socket.create_connection((host, port), timeout=3).close()
                found.append(f"{host}:{port}")
            except OSError:
                continue
        return found

    def let_in(self, head: str) -> bool:
        """Whether the Ray whose head is at an address answers somebody without its token."""
        environment = child_environment() | {"RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-P", "-c", _STRANGER, head]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STORE_S, check=True)
        return done.stdout.strip() == "None"

    def store(self, *words: str) -> Any:
        """What `python -m distrl.storage` says. Raises OSError with what is wrong."""
        command = [sys.executable, "-P", "-m", "distrl.storage", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=STORE_S, env=child_environment(), check=False
        )
        try:
            answer = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise OSError(f"asking it ended with {done.returncode}: {done.stderr[-300:]}") from None
        if "error" in answer:
            raise OSError(answer["error"])
        return answer["said"]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.machine()


def main() -> None:
    """Ask all machines, each on its own, and then of each other; print what they said."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_cluster.prepare()
    dashboard = ray.init(address="auto", log_to_driver=False, logging_level="ERROR").dashboard_url or ""
    scout = ray.remote(num_cpus=0)(Scout)
    here = ray.get_runtime_context().get_node_id()
    found, scouts = [], {}
    for node in ray.nodes():
        entry: dict[str, Any] = {
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "head": node["NodeID"] == here,
            "cpus": node["Resources"].get("CPU", 0),
            "gpus": node["Resources"].get("GPU", 0),
        }
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            scouts[node["NodeID"]] = (scout.options(scheduling_strategy=where).remote(), entry)
        found.append(entry)
    for there, entry in list(scouts.values()):
        try:
            entry |= _ask(ray, there)
        except Exception as error:  # whatever is wrong with it is what is looked for
            entry["error"] = _told(error)
    asked = [(there, entry) for there, entry in scouts.values() if "error" not in entry]
    _ask_for_ports(ray, asked, dashboard)
    if (store := on_cluster.read(on_cluster.ORDER)["store"]) is not None:
        _ask_for_store(ray, asked, store)
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
    ways = [_seconds(ray, there, FRAGMENT) for _ in range(FRAGMENTS)]
    size = MEGABYTES * 2**20
    return {
        **about,
        "round_trip_ms": round(1e3 * statistics.median(trips), 2),
        "clock_off_s": round(offsets[trips.index(min(trips))], 3),
        "fragment_ms": round(1e3 * statistics.median(ways), 1),
        "mb_per_s": round(size / 1e6 / _seconds(ray, there, size), 1),
    }


def _seconds(ray: Any, there: Any, size: int) -> float:
    """Until so many bytes are here that were asked of a machine."""
    start = time.perf_counter()
    ray.get(there.data.remote(size), timeout=WAIT_S)
    return time.perf_counter() - start


def _ask_for_ports(ray: Any, asked: list[tuple[Any, dict[str, Any]]], dashboard: str) -> None:
    """Whether the dashboard answers on the machines' own addresses, and the head answers strangers, as each machine sees it."""
    head = ray.get_runtime_context().gcs_address
    port = dashboard.rpartition(":")[2]
    places = [(entry["address"], int(port)) for _, entry in asked if port.isdigit()]
    for there, entry in asked:
        try:
            entry["reached"] = ray.get(there.reached.remote(places), timeout=WAIT_S)
            entry["let_in"] = ray.get(there.let_in.remote(head), timeout=STORE_S + OUTSIDE_S)
        except Exception as error:
            entry["error"] = _told(error)


def _ask_for_store(ray: Any, asked: list[tuple[Any, dict[str, Any]]], store: str) -> None:
    """Have every machine leave a file in a store, then look for those of all: `store_lacks` are the machines of the others."""
    marks = [f".distrl-{secrets.token_hex(8)}" for _ in asked]

    def all_do(words: list[list[str]]) -> list[Any]:
        """What every machine is answered that had no trouble before."""
        answers: list[Any] = [None] * len(asked)
        futures = [
            None if "store_error" in entry else there.store.remote(word, store, *rest)
            for (there, entry), (word, *rest) in zip(asked, words, strict=True)
        ]
        for number, ((_, entry), future) in enumerate(zip(asked, futures, strict=True)):
            try:
                answers[number] = None if future is None else ray.get(future, timeout=STORE_S + OUTSIDE_S)
            except Exception as error:
                entry["store_error"] = _told(error)
        return answers

    all_do([["--leave", mark] for mark in marks])
    left = {mark: entry["address"] for mark, (_, entry) in zip(marks, asked, strict=True) if "store_error" not in entry}
    for (_, entry), seen in zip(asked, all_do([["--see", *left]] * len(asked)), strict=True):
        if seen is not None:
            entry["store_lacks"] = [address for mark, address in left.items() if mark not in seen]
    all_do([["--drop", mark] for mark in marks])


def _told(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"


if __name__ == "__main__":
    main()
