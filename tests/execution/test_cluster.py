"""What workers of a Ray cluster are, beyond the calls that the trainer makes of them."""

from __future__ import annotations

import sys

from distrl.execution.cluster import RayExecution


class Clerk:
    def interval(self) -> float:
        return sys.getswitchinterval()


def test_rays_own_thread_in_a_worker_is_let_in_soon(ray_execution: RayExecution) -> None:
    """A hundred times a second it waits for Python's lock, and while it waits the worker is at half its speed."""
    worker = ray_execution.spawn(Clerk, name="clerk")
    interval = ray_execution.get(ray_execution.submit(worker, "interval"))
    ray_execution.kill(worker)
    assert interval <= 1e-3 < sys.getswitchinterval()
