"""Workers as Ray actors, on a Ray of the run's own or on an existing cluster; the seam is `distrl.execution.Execution`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from distrl.errors import Diverged, EnvError, UserError, WorkerLost
from distrl.execution.own_ray import RayConnection
from distrl.heartbeat import pulse


class RayExecution:
    """`distrl.execution.Execution` on Ray. `cpus` and `gpus` tell what is free on the cluster."""

    def __init__(self, address: str, object_store_bytes: int) -> None:
        """On a Ray of this run's own (`address` 'local') or on one to join. Raises `UserError` as `RayConnection` does."""
        self._connection = RayConnection(address, object_store_bytes)
        self._workers: dict[str, Any] = {}
        self._killed: dict[str, str] = {}  # why, of those for which a reason is known
        import ray

        self.ray = ray
        resources = ray.cluster_resources() if address == "local" else ray.available_resources()
        self.cpus, self.gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))

    def spawn(self, cls: type, *args: Any, name: str, cpus: float = 0, gpus: float = 0) -> Any:
        self._connection.check()
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
        self._connection.check()
        ready, rest = self.ray.wait(list(futures), num_returns=1, timeout=timeout, fetch_local=False)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
        done: list[Any] = ready
        return done

    def get(self, future: Any, timeout: float | None = None) -> Any:
        self._connection.check()
        try:
            return self._get(future, timeout)
        except TimeoutError:
            raise
        except Exception:
            self._connection.check()  # a Ray that dies takes more with it than one call
            raise

    def _get(self, future: Any, timeout: float | None) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(future, timeout=timeout)
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
        if worker is not None and actor_id in self._killed:
            return WorkerLost(worker, self._killed[actor_id])
        return WorkerLost(worker, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)

    def put(self, value: Any) -> Any:
        self._connection.check()
        return self.ray.put(value)

    def pulse(self, worker: Any) -> Any:
        return worker.__ray_call__.options(concurrency_group="watch").remote(pulse)

    def kill(self, worker: Any, why: str = "") -> None:
        if why:  # whoever waits for what it owes will ask who is gone
            self._killed[worker._actor_id.hex()] = why
        else:
            self._workers.pop(worker._actor_id.hex(), None)
        self.ray.kill(worker)

    def close(self) -> None:
        """End what was started; once is enough, and twice does no harm."""
        for handle in list(self._workers.values()):
            self.ray.kill(handle)
        self._workers.clear()
        self._connection.close()


def _let_ray_in_soon(worker: Any) -> None:
    """Hand Python's lock over after 0.1 ms instead of 5 ms.

    A worker with concurrency groups works in a thread beside Ray's own, which wants the lock a hundred times a second to
    look for signals. While that one waits, each NumPy call that gives up the lock for a moment wakes it in vain: at 5 ms,
    stepping environments that make such calls (FrozenLake, Taxi) took half as long again.
    """
    sys.setswitchinterval(1e-4)
