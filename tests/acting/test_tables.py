"""Codings and the policy that acts by a table."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from toys import layout_of, states

from distrl.acting.codings import Bins, Coding, Discrete, Keys, Product, Tiles
from distrl.acting.policies import from_description
from distrl.acting.tables import TablePolicy
from distrl.layouts import Layout, Part
from distrl.models.store import read_model, write_model


def test_every_state_of_discrete_parts_has_a_row_of_its_own() -> None:
    coding = Product((2, 3, 4), (0, 5, -1))
    states = np.array(list(itertools.product(range(2), range(5, 8), range(-1, 3))))
    assert coding(states).tolist() == list(range(coding.size)) == list(range(24))
    assert Discrete(3, 5)(np.array([5, 7])).tolist() == [0, 2]


def test_bins_are_equal_and_the_outer_ones_take_what_lies_outside() -> None:
    coding = Bins((4,), (-1.0,), (1.0,), ("0",))
    obs = np.array([[-9], [-1], [-0.51], [-0.5], [0.0], [0.49], [0.5], [1.0], [9]])
    assert coding(obs).tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3]


def test_inputs_are_components_and_differences() -> None:
    coding = Bins((10, 10), (0.0, -5.0), (10.0, 5.0), ("2", "0-1"))
    obs = np.array([[[3.5, 1.2, 7.1]], [[1.2, 3.5, 0.1]]])  # [2, 1, 3]
    assert coding(obs).tolist() == [[70 + 7], [2]]


def test_tiles_share_rows_with_their_neighbourhood_alone() -> None:
    coding = Tiles((5, 5), (0.0, 0.0), (1.0, 1.0), ("0", "1"), tilings=8)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 101), np.linspace(0, 1, 101), indexing="ij"), axis=-1)
    rows = coding(grid)
    assert rows.shape == (101, 101, 8) and rows.min() >= 0 and rows.max() < coding.size == 8 * 36
    assert all((rows[..., k] // 36 == k).all() for k in range(8))
    shared = (rows == rows[50, 50]).sum(axis=-1)
    assert shared[50, 50] == 8
    distance = np.abs(grid - 0.5).max(axis=-1)
    assert (shared[distance > 0.2001] == 0).all()
    assert (shared[distance < 0.024] >= 6).all() and (shared[(distance > 0.09) & (distance < 0.11)] < 8).all()
    # Moving along one axis, one tiling after the other changes, not all at once.
    changes = (np.diff(rows[:, 50], axis=0) != 0).sum(axis=1)
    assert changes.max() <= 2 and changes.sum() == 8 * 5


@pytest.mark.parametrize("memory", [None, 10**6])
def test_one_tiling_has_a_row_for_each_state(memory: int | None) -> None:
    tiles = Tiles((5, 4), (0.0, 0.0), (1.0, 1.0), ("0", "1"), tilings=1, memory=memory)
    obs = np.random.default_rng(0).random((3, 200, 2))
    rows, bins = tiles(obs), Bins((5, 4), (0.0, 0.0), (1.0, 1.0), ("0", "1"))(obs)
    assert rows.shape == (3, 200)
    pairs = set(zip(rows.ravel().tolist(), bins.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(rows)) == len(np.unique(bins)) == 20
    policy = TablePolicy(layout_of(), tiles, 2)
    assert policy.greedy(obs[0]).shape == (200,)


def test_hashed_tiles_spread_evenly_over_their_memory() -> None:
    coding = Tiles((20, 20, 20), (0.0,) * 3, (1.0,) * 3, ("0", "1", "2"), tilings=4, memory=1000)
    rows = coding(np.random.default_rng(0).random((20_000, 3)))
    counts = np.bincount(rows.ravel(), minlength=1000)
    assert coding.size == 1000 and rows.max() < 1000
    tiles = Tiles((20, 20, 20), (0.0,) * 3, (1.0,) * 3, ("0", "1", "2"), tilings=4)(np.zeros((1, 3)))
    assert tiles.shape == (1, 4)
    assert counts.min() > 20 and counts.max() < 220


def test_keys_find_what_they_hold() -> None:
    keys = Keys(np.array([7, 3, 2**52, 0]))
    assert keys.rows(np.array([[0, 3], [7, 2**52]]), 9).tolist() == [[3, 1], [0, 2]]
    assert keys.rows(np.array([1, 8, 2**53]), 9).tolist() == [9, 9, 9]
    assert Keys(np.zeros(0)).rows(np.array([1]), 9).tolist() == [9]


def policy_with(table: np.ndarray, epsilon: float, allowed: np.ndarray | None = None, first: int = 0) -> TablePolicy:
    policy = TablePolicy(states(len(table), table.shape[1], allowed), Discrete(len(table)), table.shape[1], first)
    policy.load(np.append(table.ravel(), epsilon))
    return policy


def test_epsilon_greedy_explores_as_often_as_it_says_and_evenly() -> None:
    table = np.array([[0.0, 1, 0, 0], [5, 1, 0, 9]])
    policy = policy_with(table, 0.4, first=2)
    noise = policy.draw(np.random.default_rng(0), 1, 100_000)[0]
    obs = np.arange(100_000) % 2
    action, extras = policy.act(obs, noise)
    assert extras == {}
    for state, best in ((0, 3), (1, 5)):
        share = np.bincount(action[obs == state] - 2, minlength=4) / 50_000
        expected = np.where(np.arange(4) + 2 == best, 0.6 + 0.1, 0.1)
        assert share == pytest.approx(expected, abs=0.01)
    assert policy.greedy(np.array([0, 1])).tolist() == [3, 5]


def test_what_is_not_allowed_is_never_done() -> None:
    allowed = np.array([[True, False, True, False], [False, False, False, True]])
    policy = policy_with(np.array([[0.0, 9, 1, 9], [5, 5, 5, 0]]), 0.9, allowed)
    noise = policy.draw(np.random.default_rng(0), 1, 1000)[0]
    action, _ = policy.act(np.arange(1000) % 2, noise)
    assert set(action[::2].tolist()) == {0, 2} and set(action[1::2].tolist()) == {3}
    assert policy.greedy(np.array([0, 1])).tolist() == [2, 3]


def test_large_tables_are_read_row_by_row_with_the_same_result() -> None:
    rng = np.random.default_rng(0)
    table, obs = rng.random((9000, 3)), rng.integers(0, 9000, 500)
    policy = policy_with(table, 0.0)
    assert policy._best is None
    assert (policy.greedy(obs) == table[obs].argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("coding", "capacity", "allowed"),
    [
        (Discrete(4, 1), None, np.array([[True, False]] * 4)),
        (Product((2, 3), (0, 5)), 4, None),
        (Bins((2, 3), (0.0, -1.0), (1.0, 1.0), ("0", "2-1")), None, None),
        (Tiles((2, 3), (0.0, -1.0), (1.0, 1.0), ("0", "2"), 4, 50), None, None),
    ],
)
def test_a_policy_comes_back_from_its_files(
    coding: Coding, capacity: int | None, allowed: np.ndarray | None, tmp_path: Path
) -> None:
    layout = states(4, 2, allowed, start=1) if isinstance(coding, Discrete) else layout_of((3,))
    if isinstance(coding, Product):
        layout = Layout((Part((), "discrete", (2,), "int64", (2, 3), (0, 5)),), (2,), "int64")
    policy = TablePolicy(layout, coding, 2, 3, capacity)
    vector = np.random.default_rng(0).random(policy.vector.size)
    if capacity is not None:
        vector[-5:-1] = [5, 1, 0, -1]
    policy.load(vector)
    write_model(tmp_path, policy, vector, {})
    again, _ = read_model(tmp_path)
    assert isinstance(again, TablePolicy)
    assert again.vector.dtype == np.float64 and (again.vector == vector).all()
    assert from_description(json.loads(json.dumps(policy.describe()))).describe() == policy.describe()
    obs = np.array([[1, 6, 2], [0, 5, 1]])
    obs = np.array([1, 4]) if isinstance(coding, Discrete) else obs[:, :2] if isinstance(coding, Product) else obs
    assert (again.rows(obs) == policy.rows(obs)).all() and (again.values(obs) == policy.values(obs)).all()
    assert (again.greedy(obs) == policy.greedy(obs)).all() and (again.greedy(obs) >= 3).all()


def test_states_that_a_hashed_table_does_not_hold_share_the_last_row() -> None:
    policy = TablePolicy(layout_of(), Discrete(100), 2, capacity=3)
    table = np.array([[1.0, 0], [0, 1], [0, 0], [0.5, 0.6]])
    policy.load(np.concatenate([table.ravel(), [40, 7, -1], [0.0]]))
    assert policy.values(np.array([7, 40, 41, 0])).tolist() == [[0, 1], [1, 0], [0.5, 0.6], [0.5, 0.6]]
