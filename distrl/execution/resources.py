"""Who gets which CPUs and GPUs, and on which node: a pure function of the config and of the nodes that there are."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from distrl.errors import UserError
from distrl.settings import Config


@dataclass(frozen=True)
class Node:
    """A machine, and what a run may use of it: what is free, and what its own workers hold."""

    id: str = ""  # '' where there is but one
    name: str = "this machine"
    cpus: float = 0
    gpus: float = 0
    memory: float = math.inf  # bytes
    head: bool = False


@dataclass(frozen=True)
class Seat:
    """What a worker is given, and the id of its node; '' is anywhere."""

    node: str = ""
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class Resources:
    """What the workers of a run are given."""

    runners: tuple[Seat, ...]
    learners: tuple[Seat, ...] = (Seat(),)
    replays: tuple[Seat, ...] = (Seat(),)
    evaluator: Seat = Seat()
    replay_bytes: int = 0  # that all replays take together
    nodes: frozenset[str] = frozenset({""})  # on which they were shared out

    @property
    def learner(self) -> Seat:
        """Of the first one."""
        return self.learners[0]

    def replay(self, number: int) -> Seat:
        return self.replays[number % len(self.replays)]


RUNNERS_PER_CPU = 32  # more processes than that on a core are a mistake


def share_out(
    config: Config, nodes: Sequence[Node], replay_bytes: int = 0, before: Resources | None = None
) -> Resources:
    """Share the CPUs and GPUs of some nodes among the workers of a run whose `learner.device` is chosen.

    Runners are spread by the CPUs that each node has. The learner sits on a node with a GPU where it needs one, else on the
    head, whose loss ends the run anyway; several sit side by side as far as they can. Replays sit beside the first one as far
    as they fit.

    Args:
        replay_bytes: that all replays take together
        before: who sits where; learners and replays stay there if they can, and there are as many runners as find a CPU
    Raises:
        UserError: the config asks for more than there is.
    """
    cluster = config.cluster
    cpus, each = sum(node.cpus for node in nodes), cluster.cpus_per_runner
    if cpus <= 0:
        raise UserError(f"No CPU is free on the cluster at {cluster.address!r}. Wait for its other jobs, or end one.")
    least, most = cluster.bounds
    most_here = int(RUNNERS_PER_CPU * cpus) if each is None else sum(int(node.cpus / each + 1e-9) for node in nodes)
    wanted = min(max(min(int(cpus), most_here), least), most or config.rollout.shards)
    if before is None:
        _check_wanted(config, wanted, cpus, most_here)
    wanted = max(1, min(wanted, most_here))
    learners = _learner_nodes(config, nodes, before)
    load = dict.fromkeys([node.id for node in nodes], 0)
    for node in learners:
        load[node.id] += config.learner.threads
    seated = _spread(min(wanted, config.rollout.shards), nodes, load, each)
    units = {node.id: _unit(node.cpus, load[node.id]) for node in nodes}
    return Resources(
        runners=tuple(Seat(node, units[node] if each is None else each) for node in seated),
        learners=tuple(
            Seat(
                node.id,
                0 if each is not None else units[node.id] * config.learner.threads,
                float(config.learner.device == "cuda"),
            )
            for node in learners
        ),
        replays=_seat_replays(config, nodes, learners[0], replay_bytes, before),
        evaluator=Seat(_quietest(nodes, load).id),
        replay_bytes=replay_bytes,
        nodes=frozenset(node.id for node in nodes),
    )


def needed(config: Config) -> list[dict[str, float]]:
    """What must be free on a cluster at once before a run begins there, part by part, in Ray's words: all that its config says.

    Where that leaves it open, it is one CPU, from which on the run makes do with what there is.
    """
    (least, _), each = config.cluster.bounds, config.cluster.cpus_per_runner
    cpus = [{"CPU": 1.0}] if each is None else [{"CPU": each}] * min(least, config.rollout.shards)
    return [*cpus, *([{"GPU": 1.0}] * config.learner.count if config.learner.device == "cuda" else [])]


def lacking(config: Config, nodes: Sequence[Node]) -> list[dict[str, float]]:
    """The parts of `needed` for which some nodes have no room: the first node that has it takes a part."""
    rooms, without = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes], []
    makes_do = config.cluster.cpus_per_runner is None and any(node.cpus > 0 for node in nodes)
    for part in needed(config):
        (kind, count), *_ = part.items()
        room = next((room for room in rooms if room[kind] >= count - 1e-9), None)
        if room is not None:
            room[kind] -= count
        elif kind == "GPU" or not makes_do:
            without.append(part)
    return without


def counted(parts: Sequence[dict[str, float]]) -> str:
    """Such parts, for people: '3 CPUs and 1 GPU'."""
    totals = {kind: sum(part.get(kind, 0) for part in parts) for kind in ("CPU", "GPU")}
    return " and ".join(f"{count:g} {kind}{'s' * (count != 1)}" for kind, count in totals.items() if count)


def placement(resources: Resources, nodes: Sequence[Node]) -> dict[str, str]:
    """What goes to each node, for people: by the node's name, with a number where several have the same."""
    told: dict[str, str] = {}
    for node in nodes:
        runners = [seat for seat in resources.runners if seat.node == node.id]
        learners = [seat for seat in resources.learners if seat.node == node.id]
        few, gpus = len(resources.learners) == 1, bool(resources.learner.gpus)
        who = "the learner" if few else f"{len(learners)} of {len(resources.learners)} learners"
        parts = [who + (" and its GPU" if few else " and their GPUs") * gpus] * bool(learners)
        replays = sum(seat.node == node.id for seat in resources.replays) if resources.replay_bytes else 0
        parts += [f"{replays} {'replay' if replays == 1 else 'replays'}"] * (replays > 0)
        parts += ["the evaluator"] * (resources.evaluator.node == node.id)
        count = f"{len(runners)} {'runner' if len(runners) == 1 else 'runners'}"
        parts += [f"{count} of {runners[0].cpus:g} CPUs"] if runners else []
        name = f"{node.name}{' (head)' if node.head else ''}"
        same = sum(known.partition(" #")[0] == name for known in told)
        told[f"{name} #{same + 1}" if same else name] = f"{', '.join(parts) or 'nothing'}; {node.cpus:g} CPUs are free"
    return told


def _check_wanted(config: Config, wanted: int, cpus: float, most: int) -> None:
    cluster = config.cluster
    each = cluster.cpus_per_runner
    used = min(wanted, config.rollout.shards)  # the others would have nothing to roll
    if each is not None and used > most:
        raise UserError(
            f"cluster.runners={used} at cluster.cpus_per_runner={each:g} need {used * each:g} CPUs; {cpus:g} are free, "
            f"where {most} fit. Lower one of them; they change only the speed."
        )
    if each is None and wanted > most:
        raise UserError(
            f"cluster.runners={wanted} is more than {RUNNERS_PER_CPU} processes on each of the {cpus:g} CPUs here. "
            f"Set at most {most}, or 'auto'; it changes only the speed."
        )


def _learner_nodes(config: Config, nodes: Sequence[Node], before: Resources | None) -> list[Node]:
    """Of each learner, with a GPU each on cuda. Where some are gone later, fewer learners must do."""
    learner, stay = config.learner, [] if before is None else [seat.node for seat in before.learners]
    cuda = learner.device == "cuda"
    fit = [node for node in nodes if node.gpus >= 1] if cuda else list(nodes)
    if not fit:
        raise UserError("No GPU is free on the cluster for the learner. Wait for its other jobs, or end one.")
    fit.sort(key=lambda node: (stay.count(node.id), node.cpus > 0, node.head, node.cpus, node.id), reverse=True)
    room = {node.id: int(node.gpus if cuda else node.cpus / learner.threads) for node in fit}
    places = [node for node in fit for _ in range(max(room[node.id], stay.count(node.id)))] or fit[:1]
    most = next(n for n in range(min(learner.count, len(places)), 0, -1) if learner.slices % n == 0)
    if cuda and before is None and most < learner.count:
        raise UserError(
            f"learner.count is {learner.count}, and each learner has a GPU of its own; {len(places)} are free. "
            f"Set learner.count={most}; it changes only the speed."
        )
    return [places[number % len(places)] for number in range(most if cuda else learner.count)]


def _spread(runners: int, nodes: Sequence[Node], load: dict[str, int], each: float | None) -> list[str]:
    """The node of each runner, the next on the least loaded; the first not on the head, so that it never has all of them."""
    seated: list[str] = []
    for number in range(runners):
        able = [n for n in nodes if n.cpus > 0 and (each is None or (seated.count(n.id) + 1) * each <= n.cpus + 1e-9)]
        others = [node for node in able if not node.head and node.cpus >= 1]
        chosen = min(
            others if number == 0 and others else able, key=lambda n: ((load[n.id] + 1) / n.cpus, n.head, n.id)
        )
        load[chosen.id] += 1
        seated.append(chosen.id)
    return seated


def _seat_replays(
    config: Config, nodes: Sequence[Node], learner: Node, size: int, before: Resources | None
) -> tuple[Seat, ...]:
    if config.replay is None:
        return (Seat(learner.id),)
    size, left = size // config.replay.shards, {node.id: node.memory for node in nodes}
    seats = []
    for number in range(config.replay.shards):
        places = [*([] if before is None else [before.replay(number).node]), learner.id]
        places += sorted(left, key=lambda node: -left[node])
        fit = [place for place in places if left.get(place, -1) >= size]
        if not fit:
            raise UserError(
                f"A replay of {size / 2**30:.1f} GiB fits on no node of the cluster: the most that is free on one is "
                f"{max(left.values()) / 2**30:.1f} GiB. Set replay.capacity lower, or replay.shards higher."
            )
        left[fit[0]] -= size
        seats.append(Seat(fit[0]))
    return tuple(seats)


def _quietest(nodes: Sequence[Node], load: dict[str, int]) -> Node:
    """For the evaluator, which has no CPU of its own: the head, which is lost last, or where there is most room."""
    return max(nodes, key=lambda node: (node.cpus > 0, node.head, node.cpus - load[node.id], node.id))


def _unit(cpus: float, processes: int) -> float:
    """A process's part of a node, in Ray's ten-thousandths."""
    return int(10_000 * min(1.0, cpus / max(1, processes))) / 10_000


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
