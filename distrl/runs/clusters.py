"""A cluster that is up, checked: what its machines are, whether they are alike and closed, and what their network allows."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from distrl.errors import UserError
from distrl.execution import probe
from distrl.execution.cluster_files import Finding
from distrl.execution.jobs import PROBE, Cluster, Order
from distrl.execution.on_cluster import release
from distrl.models.store import versions
from distrl.runs.jobs import MATTER, PACKAGE, check_shared, passed_on
from distrl.stores import Store

CLOCK_S = 1.0  # more than that a clock may not be off


def check_up(cluster: Cluster, warn: Callable[[str], None], storage: str | None = None) -> Iterator[Finding]:
    """Look at a cluster that is up, and at a store as all its machines see it. Raises `UserError` where nothing can be found out."""
    if storage is not None:
        check_shared(storage)
        storage = str(Store.parse(storage))
    open_to_all = "nobody needs it: whoever reaches the dashboard may run code. Start Ray with RAY_AUTH_MODE=token"
    yield Finding(
        "token", None if cluster.is_closed else open_to_all, "none is let in without it, and it is the one here"
    )
    machines = ask(cluster, warn, storage)
    yield from judge(machines)
    if storage is not None:
        yield judge_storage(machines, storage)


def ask(cluster: Cluster, warn: Callable[[str], None], storage: str | None) -> list[dict[str, Any]]:
    """What `distrl.execution.probe` finds out of every machine. Raises `UserError` where it finds nothing out."""
    job, said = f"{PROBE}{secrets.token_hex(4)}", list[str]()
    order = Order(
        "check of the cluster",
        versions()["distrl"],
        "",
        module=probe.__name__,
        environment={} if storage is None else passed_on(),
        store=storage,
    )
    cluster.submit(job, order, PACKAGE)
    ended = cluster.follow(job, said.append, warn)
    lines = "".join(said).splitlines()
    if ended.code or not lines:
        raise UserError(
            f"The cluster at {cluster.address} could not be looked at: {' '.join(lines[-5:]) or ended.message}"
        )
    cluster.forget(job)
    machines: list[dict[str, Any]] = json.loads(lines[-1])
    return machines


def judge(machines: list[dict[str, Any]]) -> Iterator[Finding]:
    """What is wrong with them, and what they allow."""
    dead = [machine["address"] for machine in machines if not machine["alive"]]
    alive = [machine for machine in machines if machine["alive"]]
    cpus, gpus = (sum(machine[kind] for machine in alive) for kind in ("cpus", "gpus"))
    yield Finding(
        "machines",
        None,
        f"{len(alive)} with {cpus:g} CPUs and {gpus:g} GPUs" + (f"; lost: {', '.join(dead)}" if dead else ""),
    )
    mute = [f"{machine['address']} ({machine['error']})" for machine in alive if "error" in machine]
    if mute:
        yield Finding("answers", f"none from {', '.join(mute)}")
    asked = [machine for machine in alive if "error" not in machine]
    known = versions()
    for name in MATTER:
        there = {machine["address"]: release(name, machine[name]) for machine in asked}
        if len(set(there.values())) > 1:
            yield Finding(
                name, "of several versions: " + ", ".join(f"{place} {version}" for place, version in there.items())
            )
        elif there and (one := next(iter(there.values()))) != release(name, known[name]):
            yield Finding(name, f"{one} there, {known[name]} here: submit would refuse")
        else:
            yield Finding(name, None, f"{known[name]} everywhere")
    processors = {machine["processor"] for machine in asked}
    if len(processors) > 1:
        yield Finding("processors", f"of several kinds, so that bits may differ: {', '.join(sorted(processors))}")
    off = [
        f"{machine['address']} by {machine['clock_off_s']:+.1f} s"
        for machine in asked
        if abs(machine["clock_off_s"]) > CLOCK_S
    ]
    yield Finding("clocks", f"off: {', '.join(off)}. Let them follow a time server" if off else None, "together")
    yield _closed(asked)
    for machine in asked:
        if not machine["head"]:
            way, rate = machine["fragment_ms"], machine["mb_per_s"]
            yield Finding(
                f"way to {machine['address']}",
                None,
                f"{machine['round_trip_ms']:.1f} ms there and back, {rate:.0f} MB/s: a fragment of 1 MB is here after {way:.0f} ms, "
                f"and {rate:.0f} of them a second at most; to keep the way below a tenth, let a fragment take {way / 100:.1f} s and more",
            )


def _closed(machines: list[dict[str, Any]]) -> Finding:
    """Whether strangers are kept out, seen from all machines."""
    public = sorted(machine["address"] for machine in machines if _is_public(machine["address"]))
    seen = sorted({place for machine in machines for place in machine["reached"]})
    wrong = []
    if public:
        wrong.append(
            f"Ray's servers listen on addresses of the Internet: {', '.join(public)}. Use a network of your own"
        )
    if seen:
        wrong.append(
            f"the dashboard answers the network at {', '.join(seen)}. Start the head with --dashboard-host=127.0.0.1"
        )
    if open_to := sorted(machine["address"] for machine in machines if machine["let_in"]):
        wrong.append(
            f"the head answers without the token at {', '.join(open_to)}. Start Ray with RAY_AUTH_MODE=token on all machines"
        )
    return Finding(
        "ports", "; ".join(wrong) or None, "the dashboard is the head's own, and Ray answers nobody without the token"
    )


def judge_storage(machines: list[dict[str, Any]], storage: str) -> Finding:
    """Whether all machines write and read the same store."""
    asked = [machine for machine in machines if machine["alive"] and "error" not in machine]
    wrong = [f"{m['address']}: {m['store_error']}" for m in asked if "store_error" in m]
    apart = [
        f"{m['address']} does not see what {' and '.join(m['store_lacks'])} wrote"
        for m in asked
        if m.get("store_lacks")
    ]
    if apart and not wrong:
        apart.append("it is not one that all share")
    return Finding(
        "storage",
        f"{storage}: {'; '.join(wrong + apart)}" if wrong or apart else None,
        f"{storage} is written and read by all {len(asked)}",
    )


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:  # a name
        return False
