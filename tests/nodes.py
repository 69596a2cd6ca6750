"""A Ray of several nodes on this machine, in a process of its own (`python nodes.py`), and what tests have of it: `Nodes`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SOON = {  # a node that was killed, and so refuses connections, is noticed in seconds; one on a busy machine is left alone
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "15000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "120",
}
ENVIRONMENT = {
    **{name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
    **SOON,
    "RAY_AUTH_MODE": "disabled",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)]),
}


class Nodes:
    """The head has no CPU. Nodes are known by their ids."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )
        self.address = self._answer()
        self.raylets: dict[str, int] = {}

    def add(self, cpus: float) -> str:
        node, self.raylets[node] = self._ask("add", cpus)
        return str(node)

    def asked_for(self) -> list[dict[str, float]]:
        """What lacks of what runs wait for, as an autoscaler is told it."""
        return list(self._ask("asked for", None))

    def drain(self, node: str) -> None:
        """As a spot machine is told that it ends in a minute."""
        assert self._ask("drain", node)[0]

    def kill(self, node: str) -> None:
        psutil.Process(self.raylets[node]).kill()

    def workers(self, node: str) -> list[str]:
        """What runs there, by the names of their classes."""
        found = []
        if not psutil.pid_exists(self.raylets[node]):
            return []
        for process in psutil.Process(self.raylets[node]).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended just now
                name = " ".join(process.cmdline())
                if name.startswith("ray::") and not name.startswith("ray::IDLE"):
                    found.append(name.removeprefix("ray::").partition(".")[0].partition(" ")[0])
        return sorted(found)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("> "):
            assert line, "the cluster is gone"
        return json.loads(line[2:])


def main() -> None:
    from ray._private import services
    from ray._private.internal_api import get_state_from_address
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    from distrl.execution.own_ray import patient

    services.get_node = patient(services.get_node, 120, lambda: False)  # a busy machine takes longer than Ray waits
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print("> " + json.dumps(cluster.address), flush=True)
    for line in sys.stdin:
        word, value = json.loads(line)
        answer: Any
        if word == "add":
            node = cluster.add_node(num_cpus=value, object_store_memory=200 * 2**20)
            answer = node.node_id, node.all_processes["raylet"][0].process.pid
        elif word == "asked for":
            groups = get_state_from_address(cluster.address).placement_group_table().values()
            waiting = [group for group in groups if group["state"] in ("PENDING", "RESCHEDULING")]
            answer = [part for group in waiting for part in group["bundles"].values()]
        else:
            deadline = int((time.time() + 60) * 1000)
            answer = GcsClient(address=cluster.address).drain_node(value, 2, "the spot market wants it", deadline)
        print("> " + json.dumps(answer), flush=True)
    for node in list(cluster.list_all_nodes()):
        node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
