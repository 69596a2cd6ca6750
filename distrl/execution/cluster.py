"""Workers as Ray actors, on a Ray of the run's own or on an existing cluster; the seam is `distrl.execution.Execution`."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from distrl.errors import Diverged, EnvError, UserError, WorkerLost
from distrl.execution.own_ray import RayConnection


class RayExecution:
    """`distrl.execution.Execution` on Ray. `cpus` and `gpus` tell what is free on the cluster."""

    def __init__(self, address: str, object_store_bytes: int, wait: bool = True) -> None:
        """On a Ray of this run's own (`address` 'local') or on one to join. Raises `UserError` as `RayConnection` does.

        Where it does not wait, `up` must have been true before anything else is asked.
        """
        self._address, self._connection = address, RayConnection(address, object_store_bytes)
        self._workers: dict[str, Any] = {}
        try:
            while wait and not self.up(0.02):
                pass
        except BaseException:
            self.close()
            raise

    def up(self, wait_s: float = 0) -> bool:
        """Whether the Ray is there, or is within so many seconds. Raises `UserError` where it cannot be had."""
        if not self._connection.up(wait_s):
            return False
        import ray

        self.ray = ray
        resources = ray.cluster_resources() if self._address == "local" else ray.available_resources()
        self.cpus, self.gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
        return True

    def warm(self, modules: Sequence[Sequence[str]]) -> list[Any]:
        """Have a process each import modules, for a worker that is spawned later: the futures of that."""
        load = self.ray.remote(num_cpus=0, max_retries=0)(_load)
        return [load.remote(names) for names in modules]

    def spawn(self, cls: type, *args: Any, name: str, cpus: float = 0, gpus: float = 0) -> Any:
        remote = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, concurrency_groups={"watch": 1})
        handle = remote(cls).remote(*args)
        handle.__ray_call__.remote(_let_ray_in_soon)
        self._workers[handle._actor_id.hex()] = handle
        return handle

    def submit(self, worker: Any, method: str, *args: Any) -> Any:
        return getattr(worker, method).remote(*args)

    def submit_pair(self, worker: Any, method: str, *args: Any) -> tuple[Any, Any]:
        first, second = getattr(worker, method).options(num_returns=2).remote(*args)
        return first, second

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        ready, rest = self.ray.wait(list(futures), num_returns=1, timeout=timeout, fetch_local=False)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        done: list[Any] = ready
        return done

    def get(self, future: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(future)
        except errors.RayTaskError as error:
            if isinstance(error.cause, (EnvError, Diverged, UserError)):
                raise error.cause from None
            if isinstance(error.cause, (errors.RayActorError, errors.ObjectLostError)):
                raise self._lost(error.cause) from None
            raise
        except errors.RayActorError as error:
            if "creation task" in (text := str(error)):  # it would fail again
                _, users, message = text.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
                if users:  # of what a constructor raises Ray keeps the text alone
                    raise UserError(message.strip()) from None
                raise
            raise self._lost(error) from None
        except (errors.ObjectLostError, errors.OutOfMemoryError, errors.WorkerCrashedError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> WorkerLost:
        actor_id = getattr(error, "actor_id", None)
        worker = self._workers.get(actor_id) if isinstance(actor_id, str) else None
        return WorkerLost(worker, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

    def put(self, value: Any) -> Any:
        return self.ray.put(value)

    def progress(self, worker: Any, method: str) -> Any:
        try:
            return self.ray.get(getattr(worker, method).options(concurrency_group="watch").remote(), timeout=5)
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            return None

    def kill(self, worker: Any) -> None:
        self._workers.pop(worker._actor_id.hex(), None)
        self.ray.kill(worker)

    def close(self) -> None:
        """End what was started; once is enough, and twice does no harm."""
        for handle in list(self._workers.values()):
            self.ray.kill(handle)
        self._workers.clear()
        self._connection.close()


def _load(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    time.sleep(1)  # so that the others find this process busy, and get their own


def _let_ray_in_soon(worker: Any) -> None:
    """Hand Python's lock over after 0.1 ms instead of 5 ms.

    A worker with concurrency groups works in a thread beside Ray's own, which wants the lock a hundred times a second to
    look for signals. While that one waits, each NumPy call that gives up the lock for a moment wakes it in vain: at 5 ms,
    stepping environments that make such calls (FrozenLake, Taxi) took half as long again.
    """
    sys.setswitchinterval(1e-4)
