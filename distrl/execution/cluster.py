"""Workers as Ray actors, on a Ray of the run's own or on an existing cluster; the seam is `distrl.execution.Execution`."""

from __future__ import annotations

import copy
import importlib
import math
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from distrl.errors import Diverged, EnvError, Left, UserError, WorkerLost
from distrl.execution import SEAT
from distrl.execution.own_ray import RayConnection
from distrl.execution.resources import Node, Seat
from distrl.heartbeat import leave, pulse


class Connection(Protocol):
    """This process connected to a Ray."""

    def check(self) -> None:
        """Raises `ExecutionLost` where that Ray has died."""

    def close(self) -> None:
        """Leave it."""


class RayExecution:
    """`distrl.execution.Execution` on Ray."""

    def __init__(self, address: str, object_store_bytes: int, wait: bool = True) -> None:
        """On a Ray of this run's own (`address` 'local') or on one to join. Raises `UserError` as `RayConnection` does.

        Where it does not wait, `up()` must have been true before anything else is asked.
        """
        connection = RayConnection(address, object_store_bytes)
        self.up = connection.up
        self._use(connection, joined=address != "local")
        if wait:
            connection.wait()

    def _use(self, connection: Connection, joined: bool) -> None:
        """`joined`: others use this Ray, too, and its nodes come and go."""
        self._connection, self._joined = connection, joined
        self._workers: dict[str, Any] = {}  # by the ids of their actors, as all below
        self._killed: dict[str, str] = {}  # why, of those for which a reason is known
        self._seats: dict[str, Seat] = {}
        self._alive: set[str] = set()  # nodes, at the last look
        self._begun: dict[str, Any] = {}  # futures of their first calls
        self._asked: Any = None  # a placement group of what lacks, which autoscalers see

    @property
    def ray(self) -> Any:
        import ray

        return ray

    def warm(self, wanted: Sequence[tuple[Sequence[str], Seat]]) -> list[Any]:
        """Have a process each import modules, where a worker is to be spawned later: the futures of that."""
        load = self.ray.remote(num_cpus=0, max_retries=0)(_load)
        return [load.options(scheduling_strategy=_on_node(seat, soft=True)).remote(names) for names, seat in wanted]

    def nodes(self) -> list[Node]:
        if not self._joined:
            whole = self.ray.cluster_resources()
            return [Node(cpus=float(whole.get("CPU", 0)), gpus=float(whole.get("GPU", 0)))]
        from ray._private import state

        kept = self._kept()  # until the next `ask_for`
        leaving = state.state.get_draining_nodes()
        free = state.available_resources_per_node()
        self._alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}  # also those that end soon
        return [
            self._node(node, free[node["NodeID"]], kept)
            for node in self.ray.nodes()
            if node["Alive"] and node["NodeID"] in free and node["NodeID"] not in leaving
        ]

    def _node(self, node: dict[str, Any], free: dict[str, float], kept: Sequence[Seat]) -> Node:
        whole = node["Resources"]
        held = [seat for seat in (*self._seats.values(), *kept) if seat.node == node["NodeID"]]
        cpus = free.get("CPU", 0.0) + sum(seat.cpus for seat in held)
        gpus = free.get("GPU", 0.0) + sum(seat.gpus for seat in held)
        return Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            min(_whole(cpus), whole.get("CPU", 0.0)),  # what is free is told a moment late
            min(gpus, whole.get("GPU", 0.0)),
            free.get("memory", math.inf),
            "node:__internal_head__" in whole,
        )

    def _kept(self) -> list[Seat]:
        """What was asked for and has come."""
        group = {} if self._asked is None else self.ray.util.placement_group_table(self._asked)
        if group.get("state") != "CREATED":
            return []
        return [
            Seat(group["bundles_to_node_id"][number], part.get("CPU", 0), part.get("GPU", 0))
            for number, part in group["bundles"].items()
        ]

    def ask_for(self, parts: Sequence[dict[str, float]]) -> None:
        from ray.util import placement_group, remove_placement_group

        came = self._kept()
        if self._asked is not None and (came or list(parts) != self._asked.bundle_specs):
            remove_placement_group(self._asked)  # what came is for the workers, and may be a CPU that was theirs
            self._asked = None
        if self._asked is None and parts and self._joined and not came:
            self._asked = placement_group(list(parts))

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> Any:
        self._connection.check()
        remote = self.ray.remote(
            num_cpus=seat.cpus,
            num_gpus=seat.gpus,
            max_restarts=0,
            concurrency_groups={"watch": 1},
            scheduling_strategy=_on_node(seat, soft=False),
        )
        handle = remote(cls).remote(*args)
        actor = handle._actor_id.hex()
        self._begun[actor] = handle.__ray_call__.remote(_let_ray_in_soon)
        self._workers[actor], self._seats[actor] = handle, seat
        return handle

    def begun(self, worker: Any) -> bool:
        first = self._begun.get(worker._actor_id.hex())
        return first is not None and self.alive(worker) and bool(self.ray.wait([first], timeout=0)[0])

    def alive(self, worker: Any) -> bool:
        seat = self._seats.get(worker._actor_id.hex(), SEAT)
        return not seat.node or seat.node in self._alive

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
            # A copy: arrays that lie in Ray's object store take this process along when that dies.
            return copy.deepcopy(self.ray.get(future, timeout=timeout))
        except errors.RayTaskError as error:
            if isinstance(error.cause, (EnvError, Diverged, Left, UserError)):
                raise error.cause from None
            if isinstance(error.cause, (errors.RayActorError, errors.ObjectLostError, errors.ActorUnschedulableError)):
                raise self._lost(error.cause) from None
            raise
        except errors.RayActorError as error:
            if "creation task" in (text := str(error)):  # it would fail again
                _, users, message = text.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
                if users:  # of what a constructor raises Ray keeps the text alone
                    raise UserError(message.strip()) from None
                raise
            raise self._lost(error) from None
        except (
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
            errors.ActorUnschedulableError,
        ) as error:
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

    def leave(self, worker: Any) -> None:
        worker.__ray_call__.options(concurrency_group="watch").remote(leave)

    def kill(self, worker: Any, why: str = "") -> None:
        actor = worker._actor_id.hex()
        if why:  # whoever waits for what it owes will ask who is gone
            self._killed[actor] = why
        else:
            self._workers.pop(actor, None)
        for known in (self._seats, self._begun):
            known.pop(actor, None)
        self.ray.kill(worker)

    def close(self) -> None:
        """End what was started; once is enough, and twice does no harm."""
        for handle in list(self._workers.values()):
            self.ray.kill(handle)
        self._workers.clear()
        self._connection.close()


def _on_node(seat: Seat, soft: bool) -> Any:
    """Ray's word for a seat's node. `soft`: another one will do, where it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(seat.node, soft=soft) if seat.node else None


def _whole(cpus: float) -> float:
    """Ray counts in ten-thousandths, so what many workers hold and what is free beside them may be short of the whole by some."""
    return float(round(cpus)) if abs(cpus - round(cpus)) < 0.01 else cpus


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
