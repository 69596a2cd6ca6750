"""Journals: the actions of the episodes under way before any fragment, whatever was forgotten or resumed on the way."""

from __future__ import annotations

import numpy as np
import pytest
from toys import same

from distrl.envs.journal import Journal, compact
from distrl.types import Array, Snapshot


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("seed", range(8))
def test_snapshots_hold_the_actions_since_each_episode_began(seed: int, shape: tuple[int, ...]) -> None:
    """The oracle is a list of actions for each env copy, emptied where an episode ends."""
    rng = np.random.default_rng(seed)
    copies, ends = int(rng.integers(1, 6)), rng.choice([0.0, 0.02, 0.2, 1.0])
    journal = Journal(None)
    under_way: list[list[Array]] = [[] for _ in range(copies)]
    wanted: dict[int, tuple[Array, list[int]]] = {}
    oldest = 0
    for k in range(1, 40):
        actions = rng.integers(0, 5, (int(rng.integers(1, 9)), copies, *shape)).astype(np.uint8)
        for row in actions:
            for copy, action in enumerate(row):
                under_way[copy] = [] if rng.random() < ends else [*under_way[copy], action]
        lengths = [len(taken) for taken in under_way]
        whole = np.array([action for taken in under_way for action in taken], np.uint8).reshape(-1, *shape)
        wanted[k] = whole, lengths
        after = Snapshot(k, np.zeros(copies), np.array(lengths), {"episode": np.array(k)})
        journal.add(after, actions)
        if rng.random() < 0.5:
            oldest = int(rng.integers(oldest, k + 1))
            journal.forget(oldest)
        if rng.random() < 0.1:  # resumed from a checkpoint
            journal, oldest = Journal(journal.before(k)), k
        for number in range(max(1, oldest), k + 1):
            snapshot = journal.before(number)
            assert snapshot is not None
            assert (snapshot.iteration, snapshot.env["episode"]) == (number, number)
            assert same(snapshot.env["action"], wanted[number][0])
            assert snapshot.lengths.tolist() == wanted[number][1]


def test_the_beginning_of_a_shard_is_no_snapshot() -> None:
    assert Journal(None).before(0) is None


def test_of_a_shard_in_arrays_the_newest_arrays_are_the_snapshot() -> None:
    journal = Journal(None)
    for k in (1, 2):
        journal.add(Snapshot(k, np.zeros(2), np.array([9, k]), {"x": np.array(k)}), None)
        journal.forget(k)
    snapshot = journal.before(2)
    assert snapshot is not None
    assert snapshot.env == {"x": np.array(2)}


def test_what_no_episode_under_way_needs_is_forgotten() -> None:
    journal = Journal(None)
    for k in range(1, 200):
        journal.add(Snapshot(k, np.zeros(4), np.full(4, k % 10 * 8), {}), np.zeros((8, 4), np.uint8))
        journal.forget(k)
        assert sum(len(chunk) for _, chunk in journal._actions) <= k % 10 * 8 + 8


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 3, "uint8"), (0, 255, "uint8"), (-1, 1, "int8"), (0, 256, "uint16"), (-200, 255, "int16"),
        (0, 70_000, "uint32"), (-1, 2**40, "int64"),
    ],
)  # fmt: skip
def test_whole_numbers_are_kept_in_the_smallest_type(low: int, high: int, dtype: str) -> None:
    actions = np.array([[low, high]])
    assert compact(actions).dtype == dtype
    assert compact(actions).tolist() == actions.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_other_actions_stay_as_they_are(dtype: str) -> None:
    actions = np.array([[0.1, 0.7]]).astype(dtype)
    assert same(compact(actions), actions)
