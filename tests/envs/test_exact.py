"""Exact values against brute force and against play."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distrl.envs import exact
from distrl.envs.mdp import Table, read_table
from distrl.envs.table import TableShard
from distrl.settings import EnvSettings


def mean(table: Table, action: np.ndarray) -> float:
    return float(table.start @ np.where(table.start > 0, exact.evaluate(table, action), 0))


@pytest.mark.parametrize("limit", [3, 6, 30])
def test_the_best_policy_without_time_is_that_of_trying_all(limit: int) -> None:
    table = read_table(EnvSettings(id="FrozenLake-v1", kwargs={"desc": ["SF", "FG"]}, max_episode_steps=limit))
    all_values = [mean(table, np.array([*a, 0])) for a in itertools.product(range(4), repeat=3)]
    best = mean(table, exact.best_policy(table))
    assert best == pytest.approx(max(all_values), abs=1e-12)
    assert best <= exact._mean(table, exact.optimal_values(table)) + 1e-12
    assert min(all_values) < best - 0.1


def test_policy_evaluation_is_what_is_played() -> None:
    """Also where the time limit cuts off most episodes."""
    settings = EnvSettings(id="FrozenLake-v1", max_episode_steps=15)
    table = read_table(settings)
    action = exact.best_policy(table)
    shard, n = TableShard(settings, 0, 0, 4000), 0
    total, squares = 0.0, 0.0
    current = np.zeros(4000)
    for _ in range(60):
        step = shard.step(action[shard.obs])
        current += step.reward
        ended = step.terminated | step.truncated
        total, squares, n = total + current[ended].sum(), squares + (current[ended] ** 2).sum(), n + int(ended.sum())
        current[ended] = 0
    # Every copy plays at least four whole episodes; the unfinished ones are a bias below the tolerance.
    played = total / n
    assert played == pytest.approx(mean(table, action), abs=0.02)
    assert 0.05 < played < 0.4


def test_known_optima() -> None:
    """Numbers of the literature and of gymnasium's documentation."""

    def best(env_id: str, **kwargs: object) -> float:
        table = read_table(EnvSettings(id=env_id, **kwargs))  # type: ignore[arg-type]
        return mean(table, exact.best_policy(table))

    assert best("FrozenLake-v1") == pytest.approx(0.7402, abs=1e-4)
    assert best("FrozenLake8x8-v1") > 0.8857
    assert best("Taxi-v4") == pytest.approx(7.93, abs=1e-9)
    assert best("CliffWalking-v1") == -13
    assert best("Blackjack-v1") == pytest.approx(-0.0431, abs=1e-4)


def test_a_policy_that_never_ends_is_worth_nothing_finite() -> None:
    table = read_table(EnvSettings(id="CliffWalking-v1"))
    left = np.full(48, 3)
    assert mean(table, left) == -np.inf
    limited = read_table(EnvSettings(id="CliffWalking-v1", max_episode_steps=40))
    assert mean(limited, left) == -40


def test_what_the_report_says() -> None:
    table = read_table(EnvSettings(id="Taxi-v4"))

    class Acting:
        def __init__(self, action: np.ndarray) -> None:
            self.action = action

        def greedy(self, obs: np.ndarray) -> np.ndarray:
            best: np.ndarray = self.action[obs]
            return best

    action = exact.best_policy(table)
    found = exact.examine(table, Acting(action))  # type: ignore[arg-type]
    assert (found.starts, found.optimal_starts) == (300, 300)
    assert abs(found.gap) < 1e-12 and found.value == pytest.approx(7.93)
    start = int(np.flatnonzero(table.start)[7])
    action[start] = 5  # a drop of nobody costs 10 a step, until the limit
    found = exact.examine(table, Acting(action))  # type: ignore[arg-type]
    assert found.optimal_starts < 300 and found.gap == pytest.approx(7.93 - found.value) and found.gap > 1
