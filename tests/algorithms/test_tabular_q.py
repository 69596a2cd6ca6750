"""The update rules against plain loops of the book's pseudo-code, and what a user may get wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toys import layout_of, states

from distrl.acting.codings import Bins, Coding, Discrete, Product, Tiles
from distrl.acting.tables import TablePolicy
from distrl.algorithms.tabular_q import Settings, TabularQ, initial_weights, make, make_policy, mean_by_entry
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.seeding import stream
from distrl.settings import EnvSettings, RolloutSettings
from distrl.types import EnvInfo, Fragment, Weights
from distrl.workers.runner import Runner

STATES, ACTIONS = 6, 3
WIDTH = 2  # states in a tile
METHODS = ["q", "double_q", "sarsa", "expected_sarsa", "q_lambda"]


def settings_of(**kwargs: Any) -> Settings:
    return Settings(name="q", **{"gamma": 0.9, "lr": 0.3, "epsilon": 0.25, "trace": 0.8, **kwargs})


def fragments_of(seed: int, steps: int, copies: int, shards: int = 1, states: int = STATES) -> list[Fragment]:
    """Random transitions, some of which end in either way."""
    rng = np.random.default_rng(seed)
    fragments = []
    for shard in range(shards):
        ends = rng.random((steps, copies))
        terminated, truncated = ends < 0.15, ends > 0.85
        fragments.append(
            Fragment(
                shard=shard,
                iteration=0,
                version=0,
                obs=rng.integers(states, size=(steps + 1, copies)),
                action=rng.integers(ACTIONS, size=(steps, copies)),
                reward=rng.normal(size=(steps, copies)),
                terminated=terminated,
                truncated=truncated,
                final_obs=rng.integers(states, size=int((terminated | truncated).sum())),
                extras={},
            )
        )
    return fragments


def learner_of(settings: Settings, allowed: np.ndarray | None = None, coding: Coding | None = None) -> TabularQ:
    agent = TabularQ(settings, TablePolicy(states(STATES, ACTIONS, allowed), coding or Discrete(STATES), ACTIONS), 7)
    agent.tables[:] = np.random.default_rng(1).normal(size=agent.tables.shape)
    return agent


def overlapping(tilings: int) -> Tiles:
    """States as points on a line, `WIDTH` to a tile, so that neighbours share some tiles and others none."""
    return Tiles((STATES // WIDTH,), (0.0,), (float(STATES),), ("0",), tilings)


def on_the_line(fragment: Fragment) -> Fragment:
    return replace(fragment, obs=fragment.obs[..., None], final_obs=fragment.final_obs[..., None])


def tiles_of(z: int, tilings: int) -> list[int]:
    """The rows that state z is the sum of: tiling k is shifted by k / K tiles, and begins where the one before ends."""
    return [k * (STATES // WIDTH + 1) + math.floor(Fraction(z, WIDTH) + Fraction(k, tilings)) for k in range(tilings)]


def oracle(agent: TabularQ, fragments: list[Fragment], iteration: int) -> np.ndarray:
    """The tables after an update, by loops: last step first; in a step, targets first, then the updates one by one.

    Of a state with K tiles each takes the K-th part of every error, where it is met in several states of their mean.
    """
    s, tables, tilings = agent.settings, agent.tables.copy(), agent.tilings
    rows = [[z] if tilings == 1 else tiles_of(z, tilings) for z in range(STATES)]
    visits = agent.visits.copy()
    epsilon, lr = s.epsilon.start, s.lr.start
    mask = agent.mask_of(np.arange(STATES))
    allowed = np.ones((STATES, ACTIONS), bool) if mask is None else mask
    steps, copies = fragments[0].reward.shape
    coins = stream(agent.seed, "double", iteration).random((steps, copies * len(fragments)))
    finals: dict[tuple[int, int, int], int] = {}
    for i, f in enumerate(fragments):
        for (t, n), obs in zip(np.argwhere(f.ended).tolist(), f.final_obs.tolist(), strict=True):
            finals[i, t, n] = obs
    later: dict[tuple[int, int], float] = {}

    def q(table: int, z: int, a: int) -> float:
        return float(sum(tables[table, row, a] for row in rows[z]))

    def best(table: int, z: int) -> int:
        return max((a for a in range(ACTIONS) if allowed[z, a]), key=lambda a: q(table, z, a))

    def expected(z: int) -> float:
        choices = [a for a in range(ACTIONS) if allowed[z, a]]
        mean = sum(q(0, z, a) for a in choices) / len(choices)
        return (1 - epsilon) * q(0, z, best(0, z)) + epsilon * mean

    for t in reversed(range(steps)):
        errors: dict[tuple[int, int, int], list[float]] = {}
        for i, f in enumerate(fragments):
            for n in range(copies):
                z, a = int(f.obs[t, n]), int(f.action[t, n])
                after = finals[i, t, n] if f.ended[t, n] else int(f.obs[t + 1, n])
                known = t + 1 < steps and not f.ended[t, n]
                table = 0
                if s.method == "double_q":
                    table = int(coins[t, i * copies + n] < 0.5)
                    value = q(1 - table, after, best(table, after))
                elif s.method == "expected_sarsa":
                    value = expected(after)
                elif s.method == "sarsa":
                    value = q(0, after, int(f.action[t + 1, n])) if known else expected(after)
                else:
                    value = q(0, after, best(0, after))
                    if s.method == "q_lambda" and known and int(f.action[t + 1, n]) == best(0, after):
                        value = (1 - s.trace) * value + s.trace * later[i, n]
                target = f.reward[t, n] + (0.0 if f.terminated[t, n] else s.gamma * value)
                later[i, n] = target
                for row in rows[z]:
                    errors.setdefault((table, row, a), []).append(target - q(table, z, a))
        for (table, row, a), of_copies in errors.items():
            mean = sum(of_copies) / len(of_copies)
            by_lr = by_visits = 0.0  # how much of the mean error is made good
            for _ in of_copies:
                visits[table][row, a] += 1
                by_lr += lr * (mean - by_lr)
                if s.visit_power is not None:
                    by_visits += (1 - (1 - 1 / visits[table][row, a]) ** s.visit_power) * (mean - by_visits)
            tables[table, row, a] += max(by_lr, by_visits, key=abs) / tilings
    return tables


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("visit_power", [None, 1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_an_update_is_that_of_the_plain_loop(method: str, visit_power: float | None, masked: bool) -> None:
    allowed = np.random.default_rng(2).random((STATES, ACTIONS)) < 0.6 if masked else None
    if allowed is not None:
        allowed[:, 1] = True
    agent = learner_of(settings_of(method=method, visit_power=visit_power), allowed)
    for iteration in range(3):
        fragments = fragments_of(iteration, steps=12, copies=5, shards=3)
        expected = oracle(agent, fragments, iteration)
        before = agent.tables.copy()
        agent.update(fragments, iteration, 0.0)
        np.testing.assert_allclose(agent.tables, expected, rtol=1e-12, atol=1e-12)
        assert (before != agent.tables).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("visit_power", [None, 5])
@pytest.mark.parametrize("tilings", [2, 5, 16])
def test_an_update_of_tilings_is_that_of_the_plain_loop(method: str, visit_power: float | None, tilings: int) -> None:
    agent = learner_of(settings_of(method=method, visit_power=visit_power), coding=overlapping(tilings))
    for iteration in range(3):
        fragments = fragments_of(iteration, steps=12, copies=5, shards=3)
        expected = oracle(agent, fragments, iteration)
        agent.update([on_the_line(f) for f in fragments], iteration, 0.0)
        np.testing.assert_allclose(agent.tables, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tilings", [3, 16])
def test_a_greedy_action_never_cuts_the_trace(tilings: int) -> None:
    """With lambda 1 what is learnt of the first of greedy steps is their whole return, and nothing of the values between.

    Every state is met once and shares no tile; rewards are so high that what was greedy stays so when it is learnt.
    """
    steps, copies, lr = 10, 40, 0.5
    n = 2 * (steps + 1) * copies
    agent = learner_of(
        settings_of(method="q_lambda", trace=1, gamma=1, lr=lr),
        coding=Tiles((n,), (0.0,), (float(n),), ("0",), tilings),
    )
    obs = np.arange(0.0, n, 2).reshape(steps + 1, copies, 1)
    values = np.stack([agent.values(0, agent.numbers(x)) for x in obs])
    action = values[:-1].argmax(axis=-1)
    reward = np.random.default_rng(3).uniform(50, 60, size=action.shape)
    nothing = np.zeros(action.shape, bool)
    agent.update([Fragment(0, 0, 0, obs, action, reward, nothing, nothing, np.zeros((0, 1)), {})], 0, 0.0)
    learnt = agent.values(0, agent.numbers(obs[0]))[np.arange(copies), action[0]]
    expected = (1 - lr) * values[0].max(axis=-1) + lr * (reward.sum(axis=0) + values[-1].max(axis=-1))
    np.testing.assert_allclose(learnt, expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_one_copy_one_step_at_a_time_is_the_textbook(method: str) -> None:
    """Watkins 1989: Q(s, a) += lr (r + gamma max Q(s', .) - Q(s, a)); all methods agree where one action is left."""
    allowed = np.zeros((STATES, ACTIONS), bool)
    allowed[:, 2] = True
    agent = learner_of(settings_of(method=method), allowed)
    agent.tables[:] = agent.tables[0]
    q = agent.tables[0].copy()
    z, after = 1, 4
    step = Fragment(
        0, 0, 0, np.array([[z], [after]]), np.array([[2]]), np.array([[0.7]]),
        np.array([[False]]), np.array([[False]]), np.zeros(0, np.int64), {},
    )  # fmt: skip
    agent.update([step], 0, 0.0)
    expected = q[z, 2] + 0.3 * (0.7 + 0.9 * q[after, 2] - q[z, 2])
    assert expected in agent.tables[:, z, 2].tolist()


def test_a_visit_power_of_one_is_the_mean_of_all_targets() -> None:
    agent = learner_of(settings_of(visit_power=1, lr=0, gamma=0))
    fragments = [f for seed in range(4) for f in fragments_of(seed, 10, 4)]
    for i, fragment in enumerate(fragments):
        agent.update([fragment], i, 0.0)
    for z in range(STATES):
        for a in range(ACTIONS):
            rewards = [r for f in fragments for r in f.reward[(f.obs[:-1] == z) & (f.action == a)]]
            assert len(rewards) > 1
            assert agent.tables[0, z, a] == pytest.approx(np.mean(rewards), abs=1e-12)


@pytest.mark.parametrize("truncated", [False, True])
def test_the_time_limit_is_no_end_of_the_world(truncated: bool) -> None:
    """A truncated step bootstraps from the true last observation, a terminated one from nothing."""
    agent = learner_of(settings_of(lr=1))
    last, new_episode = 5, 3
    step = Fragment(
        0, 0, 0, np.array([[0], [new_episode]]), np.array([[1]]), np.array([[2.0]]),
        np.array([[not truncated]]), np.array([[truncated]]), np.array([last]), {},
    )  # fmt: skip
    worth = agent.tables[0, last].max()
    agent.update([step], 0, 0.0)
    assert agent.tables[0, 0, 1] == pytest.approx(2.0 + 0.9 * worth * truncated)


@pytest.mark.parametrize("method", METHODS)
def test_shards_side_by_side_or_as_one_are_the_same(method: str) -> None:
    fragments = fragments_of(0, 8, 4, shards=3)
    final = [iter(f.final_obs.tolist()) for f in fragments]
    beside = {
        name: np.concatenate([getattr(f, name) for f in fragments], axis=1)
        for name in ("obs", "action", "reward", "terminated", "truncated")
    }
    ended = np.argwhere(beside["terminated"] | beside["truncated"]).tolist()
    one = Fragment(0, 0, 0, final_obs=np.array([next(final[i // 4]) for _, i in ended]), extras={}, **beside)
    a, b = learner_of(settings_of(method=method)), learner_of(settings_of(method=method))
    a.update(fragments, 0, 0.0)
    b.update([one], 0, 0.0)
    assert (a.tables == b.tables).all()


def test_the_two_ways_to_add_up_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    entry, td = rng.integers(0, 50, 400), rng.normal(size=400)
    dense, sorted_ = mean_by_entry(entry, td, 60), mean_by_entry(entry, td, 10**9)
    for a, b in zip(dense, sorted_, strict=True):
        assert (a == b).all()


def test_tilings_learn_the_sum_of_their_rows() -> None:
    """With a rate of 1 a state that occurs once has its target exactly, and a far one is not touched."""
    coding = Tiles((4, 4), (0.0, 0.0), (1.0, 1.0), ("0", "1"), tilings=8)
    agent = TabularQ(settings_of(lr=1, initial=3.0), TablePolicy(layout_of(), coding, ACTIONS), 0)
    near, far = np.array([[0.2, 0.2]]), np.array([[0.9, 0.9]])
    assert agent.values(0, coding(near))[0].tolist() == pytest.approx([3.0] * 3)
    step = Fragment(
        0, 0, 0, np.stack([near, far]), np.array([[1]]), np.array([[2.0]]),
        np.array([[False]]), np.array([[False]]), np.zeros((0, 2)), {},
    )  # fmt: skip
    agent.update([step], 0, 0.0)
    assert agent.values(0, coding(near))[0].tolist() == pytest.approx([3.0, 2 + 0.9 * 3, 3.0])
    assert agent.values(0, coding(far))[0].tolist() == pytest.approx([3.0] * 3)
    halfway = agent.values(0, coding(near + 0.05))[0, 1]
    assert min(4.7, 3.0) < halfway < 4.7


def test_a_hashed_table_learns_what_a_dense_one_does() -> None:
    dense = TabularQ(settings_of(method="double_q", initial=0.5), TablePolicy(layout_of(), Discrete(1000), ACTIONS), 7)
    hashed = TabularQ(
        settings_of(method="double_q", initial=0.5), TablePolicy(layout_of(), Discrete(1000), ACTIONS, capacity=400), 7
    )
    policy = TablePolicy(layout_of(), Discrete(1000), ACTIONS, capacity=400)
    for iteration in range(3):
        fragments = fragments_of(iteration, 10, 10, states=1000)
        dense.update(fragments, iteration, 0.0)
        hashed.update(fragments, iteration, 0.0)
        again = TabularQ(hashed.settings, policy, 7)
        again.load_state(hashed.state())
        hashed = again
    policy.load(hashed.weights())
    assert 100 < len(hashed.keys) < 400
    everything = np.arange(1000)
    np.testing.assert_array_equal(policy.values(everything), dense.tables.mean(axis=0))
    unseen = np.setdiff1d(everything, hashed.keys)
    assert (policy.values(unseen) == 0.5).all()


def test_a_full_table_says_so() -> None:
    agent = TabularQ(settings_of(), TablePolicy(layout_of(), Discrete(1000), ACTIONS, capacity=20), 7)
    with pytest.raises(UserError, match=r"algorithm\.capacity=20"):
        agent.update(fragments_of(0, 10, 10, states=1000), 0, 0.0)


@pytest.mark.parametrize("order", ["uniform", "recent"])
def test_a_rehearsal_learns_again_from_what_was_seen(order: str) -> None:
    rehearsal = {"capacity": 100, "updates": 3, "batch": 20, "order": order}
    agent, bare = learner_of(settings_of(rehearsal=rehearsal)), learner_of(settings_of())
    past: list[tuple[int, int, float, int, float]] = []
    for iteration in range(5):  # 40 transitions each: the ring of 100 turns
        (fragment,) = fragments_of(iteration, 10, 4)
        final = iter(fragment.final_obs.tolist())
        nexts = fragment.obs[1:].copy()
        for t, n in np.argwhere(fragment.ended):
            nexts[t, n] = next(final)
        for t in range(10):
            for n in range(4):
                discount = 0.0 if fragment.terminated[t, n] else 0.9
                past.append((fragment.obs[t, n], fragment.action[t, n], fragment.reward[t, n], nexts[t, n], discount))
        past = past[-100:]
        ring = [past[i] for i in np.roll(np.arange(len(past)), (40 * (iteration + 1)) % 100 if len(past) == 100 else 0)]
        rng = stream(7, "replay", iteration)
        agent.update([fragment], iteration, 0.0)
        bare.update([fragment], iteration, 0.0)
        for number in range(3):
            if order == "uniform":
                batch = [ring[i] for i in rng.integers(0, len(ring), 20)]
            else:
                batch = past[::-1][20 * number : 20 * number + 20]
            if batch:
                columns = [np.array(column) for column in zip(*batch, strict=True)]
                bare.learn(columns[0], columns[1], columns[2], columns[3], columns[4])
        np.testing.assert_array_equal(agent.tables, bare.tables)


@pytest.mark.parametrize("method", ["q", "double_q", "expected_sarsa"])
def test_going_on_from_a_state_is_going_on(method: str) -> None:
    settings = settings_of(
        method=method,
        rehearsal={"capacity": 100},
        epsilon={"start": 1, "end": 0.1, "over": 200},
        lr={"start": 1, "end": 0.1, "over": 20, "unit": "episodes"},
    )
    one = learner_of(settings)
    one.update(fragments_of(0, 10, 4), 0, 0.0)
    two = learner_of(settings)
    two.load_state(one.state())
    for iteration in (1, 2, 3):
        metrics = [agent.update(fragments_of(iteration, 10, 4), iteration, 0.0) for agent in (one, two)]
        assert metrics[0] == metrics[1]
    assert (one.weights() == two.weights()).all()
    assert one.weights()[-1] == one.epsilon == pytest.approx(1 - 0.9 * 160 / 200)
    assert 0.1 <= one.lr < 1


@pytest.mark.parametrize("kwargs", [{"initial": 2.0, "method": "double_q"}, {"capacity": 50, "epsilon": 0.3}])
def test_the_first_weights_are_those_of_the_learner(kwargs: dict[str, Any]) -> None:
    settings = settings_of(**kwargs)
    policy = make_policy(settings, info_of(gym.spaces.Discrete(100)))
    weights = initial_weights(settings, policy, 1)
    policy.load(weights)
    assert (make(settings, policy, 1, None).weights() == weights).all()
    assert weights[-1] == settings.epsilon.start and (policy.values(np.arange(100)) == settings.initial).all()


def nim(**kwargs: Any) -> tuple[TablePolicy, TabularQ]:
    """What a table learns of thirty iterations of random play."""
    env = EnvSettings(id="teams:Nim", kwargs=kwargs)
    settings = settings_of(gamma=1.0, lr=1.0, epsilon=1.0)
    policy = make_policy(settings, describe_env(env))
    agent = make(settings, policy, 1, None)
    runner = Runner(env, RolloutSettings(shards=1, envs_per_shard=8, steps=32), 1, policy)
    for k in range(30):
        _, fragment = runner.rollout(0, k, Weights(k, agent.weights()), None if k == 0 else "live")
        agent.update([fragment], k, 0.0)
    policy.load(agent.weights())
    return policy, agent


def test_of_two_in_turns_a_table_learns_what_every_move_is_worth() -> None:
    """Who leaves a multiple of four wins, whatever the other does."""
    policy, _ = nim()
    layout = policy.obs_layout
    for agent, most in (("first", 9), ("second", 8)):  # the other has taken one at least
        for heap in range(1, most + 1):
            seen = {"observation": np.array([heap]), "action_mask": np.arange(1, 4) <= heap}
            values = policy.values(layout.pack(layout.seen_by(agent, seen)))
            for taken in range(1, min(3, heap) + 1):
                assert values[taken - 1] == (1 if (heap - taken) % 4 == 0 else -1), (agent, heap, taken)


def test_a_game_that_both_can_win_is_refused() -> None:
    with pytest.raises(UserError, match="rewards of a step do not sum to 0"):
        nim(generous=True)


def test_a_schedule_without_an_end_of_its_own_ends_with_the_run() -> None:
    settings = settings_of(epsilon={"start": 1, "end": 0}, lr={"start": 0.5, "end": 0.1})
    one, other = learner_of(settings), learner_of(settings)
    one.update(fragments_of(0, 10, 4), 0, 0.25)
    assert (one.epsilon, one.lr) == (0.75, pytest.approx(0.4))
    other.load_state(one.state())
    assert other.weights().tobytes() == one.weights().tobytes()
    assert (other.epsilon, other.lr, other.env_steps, other.episodes) == (0.75, one.lr, one.env_steps, one.episodes)


# --- what fits and what does not ----------------------------------------------------------------------------------


def info_of(obs: gym.Space[Any], action: gym.Space[Any] | None = None) -> EnvInfo:
    return EnvInfo("Env-v0", obs, action or gym.spaces.Discrete(2), None, None, (), 30)


def test_what_each_space_becomes() -> None:
    def coding(obs: gym.Space[Any], **kwargs: Any) -> Any:
        return make_policy(settings_of(**kwargs), info_of(obs)).coding

    assert coding(gym.spaces.Discrete(5, start=2)) == Discrete(5, 2)
    assert coding(gym.spaces.MultiDiscrete([2, 3], start=[1, 0])) == Product((2, 3), (1, 0))
    assert coding(gym.spaces.MultiBinary(3)) == Product((2, 2, 2), (0, 0, 0))
    box = gym.spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))
    bins = coding(box, coding={"kind": "bins", "n": [4, 5], "low": [-2, 0], "high": [2, 9]})
    assert bins == Bins((4, 5), (-2, 0), (2, 9), ("0", "1"))
    bounded = gym.spaces.Box(-1, 2, (2,))
    tiles = coding(bounded, coding={"kind": "tiles", "n": [4], "inputs": ["1-0"], "tilings": 3})
    assert tiles == Tiles((4,), (-3,), (3,), ("1-0",), 3)
    blackjack = make_policy(settings_of(), describe_env(load_config("configs/q_blackjack.yaml").env))
    assert blackjack.coding.size == 32 * 11 * 2


BOX = gym.spaces.Box(-np.inf, np.inf, (2,))


@pytest.mark.parametrize(
    ("obs", "action", "kwargs", "says"),
    [
        (gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (1,)), {}, ["A table has a column for every action", "ppo or a2c"]),
        (BOX, None, {}, ["algorithm.coding", "kind: bins"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3, 3]}}, ["no bounds", "algorithm.coding.low"]),
        (BOX, None, {"coding": {"kind": "tiles", "n": [3, 3], "low": [0, 0]}}, ["no bounds", "inf"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3], "low": [0, 0], "high": [1, 1]}}, ["1 counts for 2 inputs"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3, 3], "low": [0], "high": [1, 1]}}, ["1 numbers for 2 inputs"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3, 3], "low": [0, 1], "high": [1, 1]}}, ["not below"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3], "inputs": ["__import__('os')"]}}, ["__import__", "component of the 2"]),
        (BOX, None, {"coding": {"kind": "bins", "n": [3], "inputs": ["2"]}}, ["'2'", "component of the 2"]),
        (gym.spaces.Box(0, 1, (2, 2)), None, {"coding": {"kind": "bins", "n": [3]}}, ["one axis"]),
        (gym.spaces.Discrete(3), None, {"coding": {"kind": "bins", "n": [3]}}, ["is for Box"]),
        (gym.spaces.Text(5), None, {}, ["nothing else than text", "TransformObservation"]),
        (gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": BOX}), None, {}, ["discrete or Box"]),
        (gym.spaces.MultiDiscrete([10**4, 10**5]), None, {}, ["1,000,000,000 rows", "14.9 GiB", "algorithm.capacity"]),
        (gym.spaces.Discrete(10**6), None, {"capacity": 10**9}, ["Lower algorithm.capacity"]),
        (gym.spaces.MultiDiscrete([10**6] * 3), None, {"capacity": 100}, ["2^53"]),
    ],
)  # fmt: skip
def test_what_no_table_can_hold_is_told(
    obs: gym.Space[Any], action: gym.Space[Any] | None, kwargs: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        make_policy(settings_of(**kwargs), info_of(obs, action))
    assert all(words in str(caught.value) for words in says), str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["algorithm.method=sarsa", "algorithm.rehearsal={}"], "rehearsal"),
        (["algorithm.rehearsal.capacity=10"], "algorithm.rehearsal.capacity is 10"),
        (["algorithm.epsilon={start: 1, end: 0, shape: exponential}"], "never reaches 0"),
        (["algorithm.method=qq"], "algorithm.method"),
        (["algorithm.epsilon=1.5"], "algorithm.epsilon"),
        (["algorithm.coding={kind: tiles}", "algorithm.capacity=5"], "coding.memory"),
    ],
)
def test_settings_that_contradict_each_other_are_told(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config("configs/q_frozenlake.yaml", overrides)


def test_a_run_in_one_process_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from distrl import load_config, train
overrides = ["stop.env_steps=300000", "track.mlflow=false", "track.video=false", "run_dir={tmp_path}/run"]
train(load_config("configs/q_frozenlake.yaml", overrides), local=True, quiet=True)
assert "torch" not in sys.modules and "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("q_*.yaml")), ids=lambda p: p.stem)
def test_the_configs_fit_their_envs(path: Path) -> None:
    config = load_config(path)
    make_policy(config.algorithm, describe_env(config.env))  # type: ignore[arg-type]
