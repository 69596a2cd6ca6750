"""Nodes that come, go with notice, and die: the run is the same run. The cluster is one of this process, and takes chances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, DQN, LUNARLANDER, Outcome, Recorder, config_of, run_trainer
from faulty import FaultyExecution, FaultyWorker

from distrl.execution import SEAT
from distrl.execution.local import LocalExecution
from distrl.execution.resources import Node, Seat, share_out
from distrl.settings import Config
from distrl.training import crew
from distrl.types import Snapshot
from distrl.workers.runner import Runner

CHANGES = 12


class Cluster(FaultyExecution):
    """Nodes of 2 CPUs. Every look finds other ones, until there were so many changes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, losses=0)
        self.there: dict[str, Node] = {"head": Node("head", cpus=1, head=True), "n0": Node("n0", cpus=2)}
        self.ending: list[str] = []
        self.changes: list[str] = []
        self.where: dict[FaultyWorker, str] = {}

    def nodes(self) -> list[Node]:
        if len(self.changes) < CHANGES and self.rng.random() < 0.2:
            self._change()
        return [node for name, node in self.there.items() if name not in self.ending]

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> FaultyWorker:
        assert seat.node in self.there, "it is put where no node is any more"
        worker = super().spawn(cls, *args, name=name, seat=seat)
        self.where[worker] = seat.node
        return worker

    def alive(self, worker: FaultyWorker) -> bool:
        return self.where[worker] in self.there

    def _change(self) -> None:
        some = [name for name in self.there if name not in ("head", *self.ending)]
        what = self.rng.choice(["come", "die", "notice", "end"])
        if what == "come":
            name = f"n{len(self.changes) + 1}"
            self.there[name] = Node(name, cpus=2)
        elif what == "notice" and some:
            self.ending.append(some[0])
        elif what == "die" and some:
            self._end(some[0])
        elif what == "end" and self.ending:
            self._end(self.ending.pop(0))
        else:
            return
        self.changes.append(str(what))

    def _end(self, name: str) -> None:
        del self.there[name]
        for worker in [worker for worker in self.workers if self.where[worker] == name]:
            self.kill(worker)


@pytest.fixture(autouse=True)
def _looks_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOOK_S", 0.0)


def run(config: Config, execution: Cluster, run_dir: Path) -> Outcome:
    resources = share_out(config, list(execution.there.values()))
    return run_trainer(config, execution, run_dir, observer=Recorder(), resources=resources)


@pytest.mark.parametrize("base", [CARTPOLE, LUNARLANDER, DQN], ids=["cartpole", "lunarlander", "dqn"])
def test_whatever_nodes_come_and_go(base: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(base)
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    seen: set[str] = set()
    used: set[tuple[int, str]] = set()
    for seed in range(4):
        cluster = Cluster(seed)
        outcome = run(config, cluster, tmp_path / str(seed))
        assert outcome.facts == expected
        used |= {(seed, node) for node in cluster.where.values()}
        assert not cluster.ending or all(cluster.where[worker] not in cluster.ending for worker in cluster.workers)
        seen |= set(cluster.changes)
    assert seen == {"come", "die", "notice", "end"}
    assert len(used) > 2 * 4 + 4, "hardly a node that came was used"


def test_a_node_that_ends_with_notice_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runners finish what they roll, its shards go on elsewhere from snapshots; nothing is lost or rolled twice."""
    rolled: list[tuple[int, int, bool]] = []
    rollout = Runner.rollout

    def spy(self: Runner, shard: int, iteration: int, message: Any, before: Any, keyframe: Any = None) -> Any:
        rolled.append((shard, iteration, isinstance(before, Snapshot)))
        return rollout(self, shard, iteration, message, before, keyframe)

    monkeypatch.setattr(Runner, "rollout", spy)
    config = config_of(CARTPOLE)
    cluster = Cluster(1)
    cluster.changes = [""] * CHANGES  # none by chance
    cluster.there["head"] = Node("head", cpus=3, head=True)

    def notice(row: dict[str, float]) -> None:
        if row["iteration"] == 3:
            cluster.ending.append("n0")
            cluster.there["n9"] = Node("n9", cpus=2)
        if row["iteration"] == 8:
            assert not [worker for worker in cluster.workers if cluster.where[worker] == "n0"]

    observer = Recorder(notice)
    resources = share_out(config, list(cluster.there.values()))
    outcome = run_trainer(config, cluster, tmp_path, observer=observer, resources=resources)
    assert outcome.trainer.recovery.restarts == 0
    assert len(rolled) == len({key[:2] for key in rolled}) == config.rollout.shards * (config.iterations or 0)
    moved = {shard for shard, _, moved in rolled if moved}
    assert 0 < len(moved) < config.rollout.shards
    assert any("1 node" in message or "a node" in message for message in observer.messages)


def test_a_node_that_dies_takes_the_run_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runners are new then: who was left would first do what it was asked for and nobody wants any more."""
    config = config_of(CARTPOLE)
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    cluster = Cluster(1)
    cluster.changes = [""] * CHANGES  # none by chance
    cluster.there = {name: Node(name, cpus=2, head=name == "head") for name in ("head", "n0", "n1")}
    asked: list[tuple[FaultyWorker, int]] = []  # after the loss
    before: list[FaultyWorker] = []
    submit_pair = cluster.submit_pair

    def spy(worker: FaultyWorker, method: str, *args: Any) -> Any:
        if method == "rollout" and before:
            asked.append((worker, args[0]))
        return submit_pair(worker, method, *args)

    def end(row: dict[str, float]) -> None:
        if row["iteration"] == 3 and not before:
            before.extend(cluster.workers)
            cluster._end("n1")

    monkeypatch.setattr(cluster, "submit_pair", spy)
    observer = Recorder(end)
    resources = share_out(config, list(cluster.there.values()))
    outcome = run_trainer(config, cluster, tmp_path / "run", observer=observer, resources=resources)
    assert outcome.facts == expected
    assert sum("going back" in message for message in observer.messages) == 1
    rolled_by = {shard: worker for worker, shard in asked}
    assert rolled_by and not {*rolled_by.values()} & {*before}


def test_the_learner_leaves_a_node_before_it_ends(tmp_path: Path) -> None:
    """At an iteration's border, with a checkpoint of its own: nothing is learnt twice."""
    config = config_of(CARTPOLE, "checkpoint.every=0")
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    cluster = Cluster(1)
    cluster.changes = [""] * CHANGES
    cluster.there = {"n0": Node("n0", cpus=4), "n1": Node("n1", cpus=2)}  # the learner is on the larger one

    def notice(row: dict[str, float]) -> None:
        if row["iteration"] == 4:
            cluster.ending.append("n0")

    observer = Recorder(notice)
    outcome = run_trainer(
        config, cluster, tmp_path / "run", observer=observer, resources=share_out(config, [*cluster.there.values()])
    )
    learners = [cluster.where[worker] for worker in cluster.where if worker.name == "learner"]
    assert learners == ["n0", "n1"]
    assert outcome.trainer.recovery.restarts == 0
    assert outcome.facts == expected


def test_without_any_node_the_run_waits_for_one(tmp_path: Path) -> None:
    config = config_of(CARTPOLE)
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    cluster = Cluster(2)
    cluster.changes = [""] * CHANGES
    cluster.there = {"n0": Node("n0", cpus=2)}
    looks = 0
    nodes = cluster.nodes

    def look() -> list[Node]:
        nonlocal looks
        looks += not cluster.there
        if looks == 5:
            cluster.there["n1"] = Node("n1", cpus=1)
        return nodes()

    cluster.nodes = look  # type: ignore[method-assign]

    def end(row: dict[str, float]) -> None:
        if row["iteration"] == 5 and "n0" in cluster.there:
            cluster._end("n0")

    observer = Recorder(end)
    resources = share_out(config, [*cluster.there.values()])
    outcome = run_trainer(config, cluster, tmp_path / "run", observer=observer, resources=resources)
    assert outcome.facts == expected
    assert sum("waits for a node" in message for message in observer.messages) >= 1


def test_what_lacked_is_used_when_others_leave_it_on_a_node_that_is_known(tmp_path: Path) -> None:
    """No node comes then; the run has what it asked the cluster for all the same."""
    config = config_of(CARTPOLE, "rollout.shards=4", "cluster.runners=4", "cluster.cpus_per_runner=1")
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    cluster = Cluster(1)
    cluster.changes = [""] * CHANGES  # none by chance
    cluster.there = {"n0": Node("n0", cpus=2), "n1": Node("n1", cpus=2)}
    runners: list[int] = []

    def change(row: dict[str, float]) -> None:
        if row["iteration"] == 3 and "n1" in cluster.there:
            cluster._end("n1")
        if row["iteration"] == 6:
            runners.append(sum(worker.name == "runner" for worker in cluster.workers))
            cluster.there["n0"] = Node("n0", cpus=4)
        if row["iteration"] == 9:
            runners.append(sum(worker.name == "runner" for worker in cluster.workers))

    observer = Recorder(change)
    resources = share_out(config, [*cluster.there.values()])
    outcome = run_trainer(config, cluster, tmp_path / "run", observer=observer, resources=resources)
    assert outcome.facts == expected
    assert runners[0] == 2 and runners[-1] == 4
    assert any("what the cluster lacked is free: 4 runners on 1 node now" in message for message in observer.messages)


def test_others_roll_for_a_lost_runner_until_another_has_begun(tmp_path: Path) -> None:
    """Its CPU may be somebody else's by then: the run goes on meanwhile, and shards come back when it is free again."""
    config = config_of(CARTPOLE)
    expected = run_trainer(config, LocalExecution(), tmp_path / "local").facts
    cluster = Cluster(1)
    cluster.changes = [""] * CHANGES  # none by chance
    cluster.there = {"n0": Node("n0", cpus=2)}
    first: list[FaultyWorker] = []
    taken = False
    rolled: dict[int, set[FaultyWorker]] = {}  # by iteration, who rolled
    submit_pair = cluster.submit_pair

    def spy(worker: FaultyWorker, method: str, *args: Any) -> Any:
        if method == "rollout":
            rolled.setdefault(args[1], set()).add(worker)
        return submit_pair(worker, method, *args)

    def change(row: dict[str, float]) -> None:
        nonlocal taken
        if row["iteration"] == 3 and not first:
            first.extend(worker for worker in cluster.workers if worker.name == "runner")
            taken = True
            cluster.kill(first[0])
        if row["iteration"] == 7:
            taken = False

    cluster.submit_pair = spy  # type: ignore[method-assign]
    cluster.begun = lambda worker: not taken  # type: ignore[method-assign]
    observer = Recorder(change)
    resources = share_out(config, [*cluster.there.values()])
    outcome = run_trainer(config, cluster, tmp_path / "run", observer=observer, resources=resources)
    assert outcome.facts == expected and outcome.trainer.recovery.restarts == 1
    assert len(first) == 2 and rolled[6] == {first[1]}
    assert len(rolled[10]) == 2 and first[0] not in rolled[10] and first[1] in rolled[10]
