"""Who goes on, who is stopped, and that it does not matter who was faster."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from distrl.runs.sweep_decisions import Decisions, Kind, Outcome, Piece
from distrl.runs.sweep_metrics import Metric

Score = Callable[[int, int, int], float | None]  # of trial, seed, rung
RETURN = Metric("evaluation/return_mean")


def simulate(
    kind: Kind,
    score: Score,
    workers: int,
    order: int,
    trials: int = 16,
    seeds: tuple[int, ...] = (1, 2, 3),
    rungs: int = 2,
) -> tuple[Decisions, list[Piece]]:
    """A sweep whose pieces end in an order of chance. A score of None is a failure."""
    decisions, shuffled = Decisions(kind, RETURN, trials, seeds, rungs, eta=2), random.Random(order)
    busy: list[Piece] = []
    done: list[Piece] = []
    while True:
        while len(busy) < workers and (piece := decisions.next(busy)) is not None:
            assert all(piece.run != other.run for other in busy), "a run is worked at twice"
            busy.append(piece)
        if not busy:
            return decisions, done
        piece = busy.pop(shuffled.randrange(len(busy)))
        value = score(piece.trial, piece.seed, piece.rung)
        end = "finished" if piece.rung == rungs else "paused"
        assert piece not in done
        decisions.tell(piece, Outcome("failed" if value is None else end, value, value))  # type: ignore[arg-type]
        done.append(piece)


def by_number(trial: int, seed: int, rung: int) -> float:
    return (trial * 7) % 16 + 0.1 * seed + rung


@pytest.mark.parametrize("kind", ["none", "halving"])
def test_it_does_not_matter_who_is_faster(kind: Kind) -> None:
    found = [simulate(kind, by_number, workers, order) for workers in (1, 2, 5, 16) for order in range(3)]
    assert len({frozenset(done) for _, done in found}) == 1
    assert len({decisions.leader() for decisions, _ in found}) == 1


def test_halving_keeps_the_better_half_at_each_rung_and_races_over_seeds() -> None:
    decisions, done = simulate("halving", by_number, 3, 0)
    ranking = sorted(range(16), key=lambda t: -((t * 7) % 16))
    for rung, kept in enumerate((16, 8, 4)):
        assert {p.trial for p in done if p.seed == 1 and p.rung == rung} == set(ranking[:kept])
    assert {p.trial for p in done if p.seed == 2} == set(ranking[:4]) and all(p.rung == 2 for p in done if p.seed > 1)
    assert {p.trial for p in done if p.seed == 3} == set(ranking[:2])
    assert decisions.leader() == ranking[0]


@pytest.mark.parametrize(("seeds", "ends"), [((1,), {1: 1}), ((1, 2, 3), {1: 2, 2: 2, 3: 1})])
def test_of_few_trials_halving_leaves_two_for_the_seeds_to_choose_from(
    seeds: tuple[int, ...], ends: dict[int, int]
) -> None:
    _, done = simulate("halving", by_number, 2, 0, trials=6, seeds=seeds, rungs=3)
    assert {seed: sum(p.seed == seed and p.rung == 3 for p in done) for seed in seeds} == ends
    assert [sum(p.seed == 1 and p.rung == rung for p in done) for rung in range(3)] == [6, 3, ends[1]]


def test_without_a_scheduler_all_run_to_the_end_and_half_of_them_on_the_next_seed() -> None:
    _, done = simulate("none", by_number, 4, 1)
    assert [sum(p.seed == seed for p in done) for seed in (1, 2, 3)] == [16, 8, 4]
    assert {p.rung for p in done} == {2}


@pytest.mark.parametrize("order", range(5))
def test_asha_promotes_only_from_the_best_half_of_what_it_has_seen_and_never_waits(order: int) -> None:
    decisions, done = simulate("asha", by_number, 3, order)
    for number, piece in enumerate(done):
        if piece.rung == 0 or piece.seed > 1:
            continue
        seen = [p for p in done[:number] if p.seed == 1 and p.rung == piece.rung - 1]
        before = sorted(seen, key=lambda p: -by_number(p.trial, 1, p.rung))
        # What came in between its promotion and its end may have pushed it down.
        assert piece.trial in {p.trial for p in before[: len(before) // 2 + 3]}
    assert {p.trial for p in done if p.rung == 0} == set(range(16)), "each is begun"
    full = sum(p.rung == 2 and p.seed == 1 for p in done)
    assert 2 <= full <= 8 and decisions.leader() is not None
    fresh = Decisions("asha", RETURN, 16, (1,), 2, eta=2)
    first = fresh.next([])
    assert first is not None
    for piece in (fresh.next([first]), fresh.next([first, Piece(1, 1, 0)])):
        assert piece is not None and piece.rung == 0, "a free worker begins another trial"


def test_what_fails_leads_nowhere_and_holds_up_nobody() -> None:
    def score(trial: int, seed: int, rung: int) -> float | None:
        return None if trial % 4 == 0 else by_number(trial, seed, rung)

    for kind in ("none", "halving", "asha"):
        decisions, done = simulate(kind, score, 3, 2)
        assert decisions.leader() is not None and decisions.leader() % 4 != 0  # type: ignore[operator]
        assert all(p.rung == (2 if kind == "none" else 0) and p.seed == 1 for p in done if p.trial % 4 == 0)
    decisions, _ = simulate("halving", lambda *_: None, 3, 2)
    assert decisions.leader() is None


def test_what_ends_before_a_rung_counts_there() -> None:
    decisions = Decisions("halving", RETURN, 2, (1,), 2, eta=2)
    decisions.tell(Piece(0, 1, 0), Outcome("finished", 500, 500))
    decisions.tell(Piece(1, 1, 0), Outcome("paused", 400, 400))
    assert decisions.next([]) is None and decisions.leader() == 0


def test_the_leader_is_the_best_mean_of_the_seeds_that_all_contenders_have() -> None:
    decisions = Decisions("none", RETURN, 4, (1, 2), 0, eta=2)
    for trial, score in enumerate((10, 9, 8, 7)):
        decisions.tell(Piece(trial, 1, 0), Outcome("finished", score, score))
    assert decisions.leader() == 0
    decisions.tell(Piece(0, 2, 0), Outcome("finished", 0, 0))
    assert decisions.leader([Piece(1, 2, 0)]) == 0, "the other has no second seed yet"
    decisions.tell(Piece(1, 2, 0), Outcome("finished", 9, 9))
    assert decisions.leader() == 1 and decisions.mean(1) == 9 and decisions.mean(0) == 5


def test_less_is_better_of_times_and_a_mark_that_was_not_reached_is_worst() -> None:
    decisions = Decisions("none", Metric("steps_to_threshold"), 3, (1,), 0, eta=2)
    for trial, steps in enumerate((None, 2000.0, 1000.0)):
        decisions.tell(Piece(trial, 1, 0), Outcome("finished", steps, 400.0))
    assert decisions.leader() == 2
