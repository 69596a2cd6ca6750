"""Where the workers of a run go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from conftest import CARTPOLE, DQN, config_of

from distrl.errors import UserError
from distrl.execution.resources import Node, counted, lacking, placement, share_out

HEAD = Node("head", cpus=4, head=True, memory=8e9)
WORKERS = [Node(f"w{i}", cpus=4, memory=32e9) for i in range(3)]


def test_runners_are_spread_by_the_cpus_of_the_nodes() -> None:
    config = config_of(CARTPOLE, "rollout.shards=64")
    seats = share_out(config, [HEAD, *WORKERS])
    assert len(seats.runners) == 16
    on = Counter(seat.node for seat in (*seats.runners, seats.learner))
    assert max(on.values()) - min(on.values()) <= 1
    for node in (HEAD, *WORKERS):  # what is promised fits
        held = sum(seat.cpus for seat in (*seats.runners, seats.learner) if seat.node == node.id)
        assert held <= node.cpus


@pytest.mark.parametrize("runners", [1, 2, 3, 8])
def test_never_all_on_the_head(runners: int) -> None:
    config = config_of(CARTPOLE, "rollout.shards=64", f"cluster.runners={runners}")
    large = Node("head", cpus=64, head=True)
    assert {seat.node for seat in share_out(config, [large, Node("w", cpus=1)]).runners} > {"head"} or runners == 1
    assert share_out(config, [large, Node("w", cpus=1)]).runners[0].node == "w"
    assert {seat.node for seat in share_out(config, [large]).runners} == {"head"}


def test_the_learner_is_where_a_gpu_is() -> None:
    config = config_of(CARTPOLE, "learner.device=cuda")
    seats = share_out(config, [HEAD, *WORKERS, Node("gpu", cpus=2, gpus=1)])
    assert (seats.learner.node, seats.learner.gpus) == ("gpu", 1)
    assert share_out(config_of(CARTPOLE, "learner.device=cpu"), [*WORKERS, HEAD]).learner.node == "head"
    with pytest.raises(UserError, match="No GPU is free"):
        share_out(config, [HEAD, *WORKERS])


def test_learners_have_a_gpu_each_or_fewer_must_do() -> None:
    config = config_of(CARTPOLE, "learner.device=cuda", "learner.slices=4", "learner.count=4")
    nodes = [HEAD, Node("a", cpus=8, gpus=2), Node("b", cpus=4, gpus=3), *WORKERS]
    seats = share_out(config, nodes)
    assert [seat.node for seat in seats.learners] == ["a", "a", "b", "b"]
    assert {seat.gpus for seat in seats.learners} == {1}
    assert placement(seats, nodes)["this machine"] == "2 of 4 learners and their GPUs; 8 CPUs are free"
    fewer = share_out(config, [node for node in nodes if node.id != "a"], before=seats)
    assert [seat.node for seat in fewer.learners] == ["b", "b"]  # 3 do not divide 4 slices
    with pytest.raises(UserError, match=r"learner.count is 4, .* 3 are free. Set learner.count=2"):
        share_out(config, [node for node in nodes if node.id != "a"])


def test_learners_without_gpus_sit_side_by_side_and_stay() -> None:
    config = config_of(CARTPOLE, "learner.device=cpu", "learner.slices=6", "learner.count=6")
    seats = share_out(config, [HEAD, *WORKERS])
    assert Counter(seat.node for seat in seats.learners) == {"head": 4, "w2": 2}
    busy = [replace(node, cpus=1) if node.id == "head" else node for node in (HEAD, *WORKERS)]
    assert [s.node for s in share_out(config, busy, before=seats).learners] == [s.node for s in seats.learners]
    assert len(share_out(config, [Node(cpus=2)]).learners) == 6  # on two cores, which is slow and right


def test_replays_are_beside_the_learner_unless_they_do_not_fit() -> None:
    config = config_of(DQN)  # two replays
    together = share_out(config, [HEAD, *WORKERS], int(6e9))
    assert {seat.node for seat in together.replays} == {together.learner.node} == {"head"}
    apart = share_out(config, [HEAD, *WORKERS], int(14e9))
    assert [seat.node == "head" for seat in apart.replays] == [True, False]
    with pytest.raises(UserError, match="fits on no node"):
        share_out(config, [HEAD, *WORKERS], int(80e9))


def test_who_has_a_seat_keeps_it() -> None:
    config = config_of(DQN)
    before = share_out(config, WORKERS, int(2e9))
    after = share_out(config, [HEAD, *WORKERS], int(2e9), before)
    assert (after.learner.node, after.replays) == (before.learner.node, before.replays)
    gone = share_out(config, [w for w in WORKERS if w.id != before.learner.node], int(2e9), before)
    assert gone.learner.node != before.learner.node


@pytest.mark.parametrize(
    ("runners", "cpus", "expected"),
    [("auto", 3, 3), ("auto", 40, 16), ("2..8", 1, 2), ("2..8", 5, 5), ("2..8", 40, 8), ("6", 2, 6), ("30", 40, 16)],
)
def test_how_many(runners: str, cpus: float, expected: int) -> None:
    config = config_of(CARTPOLE, "rollout.shards=16", f"cluster.runners={runners}")
    assert len(share_out(config, [Node(cpus=cpus)]).runners) == expected


def test_auto_takes_as_many_as_find_their_cpus() -> None:
    config = config_of(CARTPOLE, "rollout.shards=16", "cluster.cpus_per_runner=2")
    assert len(share_out(config, [Node(cpus=7)]).runners) == 3
    with pytest.raises(UserError, match=r"cluster\.runners=1 at cluster.cpus_per_runner=2 need 2 CPUs; 1 are free"):
        share_out(config, [Node(cpus=1)])


def test_what_cannot_be_had_is_refused_at_the_start_and_done_without_later() -> None:
    config = config_of(CARTPOLE, "rollout.shards=16", "cluster.runners=6", "cluster.cpus_per_runner=1")
    whole = share_out(config, WORKERS)
    with pytest.raises(UserError, match=r"cluster\.runners=6 .* 4 fit"):
        share_out(config, WORKERS[:1])
    assert len(share_out(config, WORKERS[:1], before=whole).runners) == 4
    few = config_of(CARTPOLE, "rollout.shards=2", "cluster.runners=6", "cluster.cpus_per_runner=1")
    assert len(share_out(few, WORKERS[:1]).runners) == 2  # the others would have nothing to roll
    with pytest.raises(UserError, match="No CPU is free"):
        share_out(config, [])
    with pytest.raises(UserError, match="smaller number first"):
        config_of(CARTPOLE, "cluster.runners=8..2")


def test_what_goes_where_is_told() -> None:
    nodes = [HEAD, Node("w", "10.0.0.7", cpus=2), Node("x", "10.0.0.7", cpus=0)]
    told = placement(share_out(config_of(DQN), nodes, int(1e9)), nodes)
    assert told == {
        "this machine (head)": "the learner, 2 replays, the evaluator, 2 runners of 1 CPUs; 4 CPUs are free",
        "10.0.0.7": "2 runners of 1 CPUs; 2 CPUs are free",
        "10.0.0.7 #2": "nothing; 0 CPUs are free",
    }


def test_nothing_is_put_on_a_head_without_cpus() -> None:
    nodes = [Node("head", cpus=0, head=True), Node("w", cpus=1)]
    seats = share_out(config_of(DQN, "cluster.runners=4"), nodes, int(1e6))
    assert {seat.node for seat in (*seats.runners, seats.learner, *seats.replays, seats.evaluator)} == {"w"}


def test_what_lacks_is_what_the_config_asks_for_and_no_node_has() -> None:
    words = ["rollout.shards=64", "cluster.runners=6..9", "cluster.cpus_per_runner=2"]
    asks, with_gpu = config_of(CARTPOLE, *words), config_of(CARTPOLE, *words, "learner.device=cuda")
    assert lacking(asks, []) == [{"CPU": 2.0}] * 6
    assert lacking(asks, WORKERS) == []  # two on each
    assert lacking(asks, WORKERS[:2]) == [{"CPU": 2.0}] * 2
    assert lacking(asks, [Node("w", cpus=3)] * 4) == [{"CPU": 2.0}] * 2  # CPUs of two machines make no runner
    assert lacking(with_gpu, WORKERS) == [{"GPU": 1.0}]
    assert lacking(with_gpu, [*WORKERS, Node("gpu", gpus=1)]) == []
    assert counted(lacking(with_gpu, WORKERS[1:])) == "4 CPUs and 1 GPU"
    makes_do = config_of(CARTPOLE, "cluster.runners=6")
    assert lacking(makes_do, [Node("w", cpus=0.5)]) == []
    assert lacking(makes_do, [Node("w", cpus=0)]) == [{"CPU": 1.0}]
