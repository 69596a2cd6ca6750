"""Table MDPs against the real environments: step by step with the same random outcomes, and table against rules."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toys import Played

from distrl.acting.codings import Product
from distrl.acting.spaces import CodingSettings, make_coding
from distrl.envs.make import describe_env, make_env
from distrl.envs.mdp import read_table
from distrl.envs.shard import make_shard
from distrl.envs.single import SingleShard
from distrl.envs.table import BLOCK, TableShard, fits
from distrl.errors import UserError
from distrl.seeding import stream
from distrl.settings import EnvSettings

MAP = ["SFF", "FHF", "SFG"]  # two starts


class Dice:
    """A generator that gives the numbers it was given."""

    def __init__(self) -> None:
        self.next = 0.5

    def random(self) -> float:
        return self.next


@pytest.mark.parametrize(
    "settings",
    [
        EnvSettings(id="FrozenLake-v1"),
        EnvSettings(id="FrozenLake-v1", max_episode_steps=7, kwargs={"desc": MAP, "success_rate": 0.6}),
        EnvSettings(id="FrozenLake8x8-v1", kwargs={"is_slippery": False, "reward_schedule": [5, -1, 0.5]}),
        EnvSettings(id="Taxi-v4", max_episode_steps=30),
        EnvSettings(id="Taxi-v4", kwargs={"is_rainy": True}),
        EnvSettings(id="CliffWalking-v1", max_episode_steps=50),
        EnvSettings(id="CliffWalkingSlippery-v1"),
    ],
    ids=lambda s: f"{s.id} {s.kwargs or ''}",
)
def test_the_table_does_what_the_real_environment_does_with_the_same_random_numbers(settings: EnvSettings) -> None:
    copies, seed, number, steps = 20, 3, 5, 3 * BLOCK
    shard = TableShard(settings, seed, number, copies)
    envs: list[Any] = [make_env(settings) for _ in range(copies)]
    dice = [Dice() for _ in envs]
    first = stream(seed, "table first", number).random(copies)
    for i, env in enumerate(envs):
        env.unwrapped.np_random, dice[i].next = dice[i], first[i]
        assert env.reset()[0] == shard.obs[i]
    rng = np.random.default_rng(0)
    ends, random = set(), {}
    for t in range(steps):
        if t % BLOCK == 0:
            for purpose in ("table outcome", "table start"):
                random[purpose] = stream(seed, purpose, number, t // BLOCK).random((BLOCK, copies))
        action = rng.integers(envs[0].action_space.n, size=copies)
        step = shard.step(action)
        final = iter(step.final_obs)
        for i, env in enumerate(envs):
            dice[i].next = random["table outcome"][t % BLOCK, i]
            obs, reward, terminated, truncated, _ = env.step(int(action[i]))
            assert reward == step.reward[i] and terminated == step.terminated[i]
            assert (truncated and not terminated) == step.truncated[i]
            if terminated or truncated:
                ends.add("terminated" if terminated else "truncated")
                assert next(final) == obs
                dice[i].next = random["table start"][t % BLOCK, i]
                obs, _ = env.reset()
            assert obs == step.obs[i]
    assert ends or settings.id == "CliffWalkingSlippery-v1"


class NoCardLeft(Exception):
    pass


class Deck:
    """A generator that deals given cards."""

    def __init__(self, cards: list[int]) -> None:
        self.cards = list(cards)

    def choice(self, deck: list[int]) -> int:
        if not self.cards:
            raise NoCardLeft
        return self.cards.pop(0)


def outcomes_of_blackjack(env: Any, player: list[int], dealer: int, action: int) -> dict[Any, float]:
    """Probability of all (obs, reward, terminated), by dealing all cards there are to the real environment."""
    found: dict[Any, float] = defaultdict(float)
    todo: list[tuple[list[int], float]] = [([], 1.0)]
    while todo:
        cards, p = todo.pop()
        deck = Deck(cards)
        env.np_random, env.player = deck, list(player)
        try:
            hidden = deck.choice([])
            env.dealer = [dealer, hidden]
            obs, reward, terminated, _, _ = env.step(action)
            found[obs, reward, terminated] += p
        except NoCardLeft:
            todo += [([*cards, card], p * (4 if card == 10 else 1) / 13) for card in range(1, 11)]
    return found


@pytest.mark.parametrize("kwargs", [{}, {"sab": False, "natural": True}, {"sab": False}])
@pytest.mark.parametrize(
    ("player", "dealer"),
    [
        ([10, 1], 10),
        ([10, 1], 7),
        ([7, 3, 1], 10),
        ([6, 5], 9),
        ([1, 1], 8),
        ([10, 6], 10),
        ([9, 8], 1),
        ([1, 5, 9], 9),
    ],
)
@pytest.mark.parametrize("action", [0, 1])
def test_blackjack_has_the_outcomes_of_the_real_environment(
    player: list[int], dealer: int, action: int, kwargs: dict[str, Any]
) -> None:
    env: Any = gym.make("Blackjack-v1", **kwargs).unwrapped
    table = read_table(EnvSettings(id="Blackjack-v1", kwargs=kwargs))
    real = outcomes_of_blackjack(env, player, dealer, action)
    env.player, env.dealer = list(player), [dealer, 5]
    looks = np.flatnonzero((table.obs == np.array(env._get_obs())).all(axis=1))
    natural = sorted(player) == [1, 10]
    state = looks[-1] if natural else looks[0]
    ours: dict[Any, float] = defaultdict(float)
    for p, after, reward, terminated in zip(
        table.probability[state, action],
        table.next_state[state, action],
        table.reward[state, action],
        table.terminated[state, action],
        strict=True,
    ):
        if p > 0:
            ours[tuple(table.obs[after].tolist()), reward, bool(terminated)] += p
    assert ours.keys() == real.keys()
    for key, p in real.items():
        assert ours[key] == pytest.approx(p, abs=1e-12)


def test_blackjack_starts_as_the_real_environment() -> None:
    table = read_table(EnvSettings(id="Blackjack-v1"))
    exact: dict[Any, float] = defaultdict(float)
    for obs, p in zip(map(tuple, table.obs.tolist()), table.start, strict=True):
        exact[obs] += p
    env, n = gym.make("Blackjack-v1"), 20_000
    seen: dict[Any, int] = defaultdict(int)
    env.reset(seed=0)
    for _ in range(n):
        seen[env.reset()[0]] += 1
    assert sum(exact.values()) == pytest.approx(1)
    assert set(seen) <= {obs for obs, p in exact.items() if p > 0}
    chi2 = sum((seen[obs] - n * p) ** 2 / (n * p) for obs, p in exact.items() if p > 0)
    cells = sum(p > 0 for p in exact.values())
    assert abs(chi2 - (cells - 1)) < 5 * np.sqrt(2 * cells)


def test_a_used_shard_takes_up_the_snapshot_of_another_and_goes_on_like_it() -> None:
    settings = EnvSettings(id="FrozenLake-v1", kwargs={"desc": MAP})
    rng = np.random.default_rng(0)
    for used in (0, 1, BLOCK - 1, BLOCK, BLOCK + 5):
        one, two = TableShard(settings, 1, 2, 16), TableShard(settings, 1, 2, 16)
        played = Played(one)
        played.play(rng.integers(4, size=(used, 16)))
        two.step(rng.integers(4, size=16))
        assert two.restore(played.snapshot()).all()
        assert (one.obs == two.obs).all()
        for _ in range(2 * BLOCK):
            action = rng.integers(4, size=16)
            a, b = one.step(action), two.step(action)
            assert (a.obs == b.obs).all() and (a.reward == b.reward).all() and (a.truncated == b.truncated).all()


def test_shards_differ_and_copies_differ() -> None:
    settings = EnvSettings(id="Taxi-v4")
    first = TableShard(settings, 1, 0, 50).obs
    assert len(set(first.tolist())) > 20
    assert (first != TableShard(settings, 1, 1, 50).obs).any() and (first != TableShard(settings, 2, 0, 50).obs).any()


def test_auto_takes_the_table_where_it_is_known_to_tell_all() -> None:
    assert isinstance(make_shard(EnvSettings(id="Taxi-v4"), 1, 0, 2), TableShard)
    assert isinstance(make_shard(EnvSettings(id="Taxi-v4", vectorize="single"), 1, 0, 2), SingleShard)
    fickle = EnvSettings(id="Taxi-v4", kwargs={"fickle_passenger": True})
    assert isinstance(make_shard(fickle, 1, 0, 2), SingleShard)
    assert not fits(EnvSettings(id="CartPole-v1")) and not fits(EnvSettings(id="Corridor-v0"))


class Corridor(gym.Env[Any, Any]):
    """Right to the end, with a table that is right, or not."""

    observation_space: gym.Space[Any] = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)
    lies = False

    def __init__(self) -> None:
        self.P = {s: {a: [(1.0, min(3, max(0, s + 2 * a - 1)), -1.0, s + a == 3)] for a in (0, 1)} for s in range(4)}
        self.initial_state_distrib = [1.0, 0, 0, 0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.s = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        _, s, reward, end = self.P[self.s][action][0]
        self.s = s
        return s, reward - self.lies, end, False, {}


class Liar(Corridor):
    lies = True


gym.register("Corridor-v0", lambda **_: Corridor(), max_episode_steps=20)
gym.register("Liar-v0", lambda **_: Liar(), max_episode_steps=20)


def test_other_environments_may_ask_for_their_table() -> None:
    settings = EnvSettings(id="Corridor-v0", vectorize="table")
    shard = make_shard(settings, 1, 0, 3)
    steps = [shard.step(np.ones(3, np.int64)) for _ in range(4)]
    assert [step.obs[0] for step in steps] == [1, 2, 0, 1]
    assert steps[2].terminated.all() and (np.array(steps[2].final_obs) == 3).all()
    assert isinstance(make_shard(EnvSettings(id="Corridor-v0"), 1, 0, 3), SingleShard)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (EnvSettings(id="Liar-v0"), "never does"),
        (EnvSettings(id="CartPole-v1"), "publishes no P"),
        (EnvSettings(id="Taxi-v4", kwargs={"fickle_passenger": True}), "fickle"),
    ],
)
def test_a_table_that_does_not_tell_all_is_refused(settings: EnvSettings, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_table(settings)
    assert "env.vectorize" in str(caught.value)


class Parts(Corridor):
    observation_space = gym.spaces.Dict(
        {"b": gym.spaces.Discrete(3, start=5), "a": gym.spaces.Tuple((gym.spaces.MultiDiscrete([2, 4]),))}
    )

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return {"b": 6, "a": (np.array([1, 3]),)}, {}


gym.register("Parts-v0", lambda **_: Parts())


def test_tuples_and_dicts_of_discrete_parts_are_one_array() -> None:
    settings = EnvSettings(id="Parts-v0")
    assert make_coding(CodingSettings(), describe_env(settings)) == Product((2, 4, 3), (0, 0, 5))
    shard = SingleShard(settings, 1, 0, 2)
    assert shard.obs.dtype == np.int64
    assert shard.obs.tolist() == [[1, 3, 6]] * 2


def test_taxi_says_what_does_nothing() -> None:
    mask = describe_env(EnvSettings(id="Taxi-v4")).action_mask
    assert mask is not None and mask.shape == (500, 6)
    env: Any = gym.make("Taxi-v4")
    for seed in range(20):
        obs, info = env.reset(seed=seed)
        assert (mask[obs] == info["action_mask"]).all()
    assert describe_env(EnvSettings(id="FrozenLake-v1")).action_mask is None
