"""The sum-tree against plain cumulative sums."""

from __future__ import annotations

import numpy as np
import pytest

from distrl.types import Array
from distrl.workers.sumtree import SumTree


def find_slowly(priorities: Array, mass: float) -> int:
    """The first leaf at which the running sum exceeds `mass`."""
    running = 0.0
    for leaf, priority in enumerate(priorities.tolist()):
        running += priority
        if mass < running:
            return leaf
    raise AssertionError("beyond the total")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 100])
def test_it_finds_what_a_running_sum_finds(size: int) -> None:
    rng = np.random.default_rng(size)
    tree, priorities = SumTree(size), np.zeros(size)
    for _ in range(30):
        leaves = rng.integers(0, size, rng.integers(1, 2 * size + 1))
        values = rng.integers(0, 4, len(leaves)).astype(float)  # whole numbers: sums are exact, zeros are common
        tree.set(leaves, values)
        for leaf, value in zip(leaves.tolist(), values.tolist(), strict=True):  # the last of equal ones counts
            priorities[leaf] = value
        assert (tree.get(np.arange(size)) == priorities).all()
        assert tree.total == priorities.sum()
        if tree.total:
            mass = np.concatenate([np.arange(int(tree.total)), rng.random(50) * tree.total]).astype(float)
            assert tree.find(mass).tolist() == [find_slowly(priorities, m) for m in mass.tolist()]


def test_leaves_are_found_in_proportion_to_their_priorities() -> None:
    priorities = np.array([0.0, 1.0, 0.5, 0.0, 2.5])
    tree = SumTree(5)
    tree.set(np.arange(5), priorities)
    found = np.bincount(tree.find(np.random.default_rng(0).random(100_000) * tree.total), minlength=5) / 100_000
    assert np.abs(found - priorities / priorities.sum()).max() < 0.006
    assert found[0] == found[3] == 0


def test_rounding_never_finds_an_empty_leaf() -> None:
    """Sums of such numbers round; the largest mass may then lie beyond the last leaf's share."""
    rng = np.random.default_rng(1)
    for size in (3, 17, 1000):
        for _ in range(50):
            tree = SumTree(size)
            filled = rng.random(size) < 0.3
            filled[rng.integers(size)] = True
            tree.set(np.flatnonzero(filled), rng.random(filled.sum()) ** 9 + 1e-12)
            below = np.nextafter(tree.total, 0)
            assert filled[tree.find(np.array([0.0, below, tree.total]))].all()


def test_the_history_leaves_no_trace() -> None:
    rng = np.random.default_rng(2)
    used, fresh, final = SumTree(1000), SumTree(1000), rng.random(1000)
    for _ in range(20):
        used.set(rng.permutation(1000)[:300], rng.random(300) * 1e6)
    used.set(rng.permutation(1000), 0.0)
    order = rng.permutation(1000)
    used.set(order, final[order])
    fresh.set(np.arange(1000), final)
    assert used.sums.tobytes() == fresh.sums.tobytes()


def test_setting_nothing_changes_nothing() -> None:
    tree = SumTree(4)
    tree.set(np.array([], np.int64), np.array([]))
    assert tree.total == 0
    assert len(tree.find(np.array([]))) == 0
