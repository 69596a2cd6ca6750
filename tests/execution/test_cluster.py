"""What workers of a Ray cluster are, beyond the calls that the trainer makes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import programs

from distrl.execution.cluster import RayExecution
from distrl.execution.resources import Seat

UNUSED = {"dashboard.py", "monitor.py", "log_monitor.py"}


class Clerk:
    def interval(self) -> float:
        return sys.getswitchinterval()


def test_rays_own_thread_in_a_worker_is_let_in_soon(ray_execution: RayExecution) -> None:
    """A hundred times a second it waits for Python's lock, and while it waits the worker is at half its speed."""
    worker = ray_execution.spawn(Clerk, name="clerk")
    interval = ray_execution.get(ray_execution.submit(worker, "interval"))
    ray_execution.kill(worker)
    assert interval <= 1e-3 < sys.getswitchinterval()


def test_a_runs_own_ray_has_no_dashboard_and_no_autoscaler_and_a_later_ray_of_the_users_has(
    ray_execution: RayExecution,
) -> None:
    assert "gcs_server" in programs() and not UNUSED & programs()
    script = """
import sys

sys.path += sys.argv[1:]
import ray
from processes import programs
from distrl.execution.cluster import RayExecution

RayExecution("local", 100 * 2**20).close()
ray.init(address="local", include_dashboard=False, object_store_memory=100 * 2**20)
print(programs())
"""
    run = subprocess.run([sys.executable, "-c", script, *sys.path], capture_output=True, text=True, check=True)
    assert all(f"'{name}'" in run.stdout for name in UNUSED)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try it as another user")
def test_another_user_finds_no_way_into_the_directory_of_a_ray(ray_execution: RayExecution) -> None:
    directory = Path(ray_execution._connection._directory or "")
    inside = [*directory.rglob("*")]
    assert any(path.is_socket() for path in inside)
    assert any(path.suffix == ".log" for path in inside)
    script = (
        'test -r "$1" -o -w "$1" -o -x "$1" && echo "$1"; shift; for path; do test -e "$path" && echo "$path"; done'
    )
    command = ["sh", "-c", script, "sh", directory, *inside]
    asked = subprocess.run(
        command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False
    )
    assert asked.stdout == ""


@pytest.mark.parametrize(
    ("free", "held", "cpus"), [(0.6667, [0.6666] * 2, 2.0), (0.0, [0.2] * 10, 2.0), (0.5, [0.7], 1.2)]
)
def test_no_cpu_is_lost_to_rounding(free: float, held: list[float], cpus: float) -> None:
    """Else a run goes on with a runner fewer whenever a node comes or goes."""
    execution = RayExecution.__new__(RayExecution)
    execution._seats = {str(number): Seat("n", part) for number, part in enumerate(held)}
    about = {"NodeID": "n", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0}}
    assert execution._node(about, {"CPU": free}, ()).cpus == pytest.approx(cpus, abs=1e-9)
    assert int(execution._node(about, {"CPU": free}, ()).cpus) == int(cpus)
