"""What acts: how often it does what, and that it can be told as JSON and made again."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toys import categorical, layout_of, same, spec_of, states

from distrl.acting.network import flatten, single_threaded
from distrl.acting.policies import EpsilonGreedyPolicy, StochasticPolicy, from_description
from distrl.acting.recurrent import RecurrentPolicy
from distrl.acting.spaces import action_distribution, network_spec, stochastic_policy
from distrl.types import EnvInfo, Policy


@pytest.fixture(autouse=True)
def _single_threaded() -> None:
    single_threaded()


BOX, IMAGE = gym.spaces.Box(-4, 4, (2,), np.float32), gym.spaces.Box(0, 255, (9, 9, 1), np.uint8)
THREE = gym.spaces.Discrete(3, start=2)
MASKED = gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(3), "box": BOX})


def info_of(obs: gym.Space[Any], action: gym.Space[Any]) -> EnvInfo:
    return EnvInfo("Env-v0", obs, action, None, None, (), 30)


def stochastic(obs: gym.Space[Any], action: gym.Space[Any], **options: bool) -> StochasticPolicy:
    info = info_of(obs, action)
    return stochastic_policy(info, action_distribution(info, **options))


def epsilon_greedy(obs: gym.Space[Any], **options: bool) -> EpsilonGreedyPolicy:
    info = info_of(obs, THREE)
    spec = network_spec(info, 3, hidden=(8, 5), activation="relu", **options)
    return EpsilonGreedyPolicy(spec, info.obs_layout, 2, (0.1, 0.2, 0.7), 7.0)


KINDS: dict[str, Policy] = {
    "categorical": categorical(spec_of((2, 3), 4), first_action=-2),
    "pixels": categorical(spec_of((4, 40, 57), 5, (64,), ((8, 8, 4), (16, 4, 2)), "relu", 1 / 255, True)),
    "parts": stochastic(
        gym.spaces.Dict({"photo": IMAGE, "more": gym.spaces.Tuple([BOX, THREE])}),
        gym.spaces.Tuple([THREE, BOX]),
        squash=True,
    ),
    "several": stochastic(THREE, gym.spaces.MultiDiscrete([3, 2])),
    "masked": stochastic(MASKED, THREE),
    "recurrent": RecurrentPolicy.of(stochastic(MASKED, gym.spaces.Tuple([THREE, BOX])), 5, "gru"),
    "epsilon": epsilon_greedy(BOX, dueling=True, layer_norm=True),
    "epsilon, masked": epsilon_greedy(MASKED),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_policy_is_told_as_json_and_made_again(name: str) -> None:
    policy = KINDS[name]
    text = json.dumps(policy.describe(), allow_nan=False)
    again = from_description(json.loads(text))
    assert type(again) is type(policy)
    assert json.dumps(again.describe()) == text
    rng = np.random.default_rng(0)
    vector = rng.random(sum(prod(shape) for shape in policy.shapes().values())).astype(np.float32)
    policy.load(vector)
    again.load(flatten(policy.arrays(), again.shapes()))
    seen = np.zeros((64, *policy.obs_layout.shape), policy.obs_layout.dtype)
    for part in policy.obs_layout.parts:  # a view of it
        part.of(seen)[...] = rng.integers(0, 2, (64, *part.shape)) + np.reshape(part.start or 0, ())
    if policy.obs_layout.mask is not None:
        policy.obs_layout.mask.of(seen)[:, 1:] = 1
    noise = policy.draw(rng, 1, 64)[0]
    (action, extras), (other, others) = policy.act(seen, noise), again.act(seen, noise)
    assert len(np.unique(action, axis=0)) > 1
    assert same(action, other) and same(policy.greedy(seen), again.greedy(seen))
    assert extras.keys() == others.keys() and all(same(extras[key], others[key]) for key in extras)


# --- drawing from a softmax ---------------------------------------------------------------------------------------

LOGITS = (0.0, 1.0, -1.0, 2.0, -3.0, 0.5)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()


def biased(*logits: float, first_action: int = 0) -> StochasticPolicy:
    """A policy with these logits in every state."""
    spec = spec_of((1,), len(logits), hidden=())
    policy = categorical(spec, first_action)
    policy.load(np.array([0.0] * len(logits) + list(logits), np.float32))
    return policy


def test_actions_are_as_frequent_as_the_softmax_says() -> None:
    policy, count = biased(*LOGITS), 30_000
    noise = policy.draw(np.random.default_rng(0), 1, count)[0]
    action, _ = policy.act(np.zeros((count, 1), np.float32), noise)
    expected = count * SOFTMAX
    chi_square = ((np.bincount(action, minlength=6) - expected) ** 2 / expected).sum()
    assert chi_square < 20.5  # 5 degrees of freedom: the 0.999 quantile


def test_each_action_takes_its_probability_of_the_noise() -> None:
    count = 100_000
    action, _ = biased(*LOGITS).act(np.zeros((count, 1), np.float32), (np.arange(count) + 0.5) / count)
    shares = np.bincount(action, minlength=6) / count
    np.testing.assert_allclose(shares, SOFTMAX, atol=2 / count)
    assert (np.diff(action) >= 0).all()


def test_actions_are_numbered_from_the_first() -> None:
    obs, noise = np.zeros((50, 1), np.float32), np.linspace(0, 0.99, 50)
    plain, shifted = biased(*LOGITS), biased(*LOGITS, first_action=-7)
    (left, one), (right, other) = plain.act(obs, noise), shifted.act(obs, noise)
    assert (left - 7).tolist() == right.tolist()
    assert same(one["log_prob"], other["log_prob"])
    assert shifted.greedy(obs).tolist() == [3 - 7] * 50
    assert np.issubdtype(right.dtype, np.integer)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 0.5, 1 - 1e-12, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("first_action", [0, 3])
def test_extreme_logits_give_possible_actions_of_finite_log_prob(noise: float, first_action: int) -> None:
    possible = {
        (-1e4, 1e4, -1e4): {1},
        (1e4, -1e4, -1e4): {0},
        (-1e4, -1e4, 1e4): {2},
        (1e4, -1e4, 1e4): {0, 2},
        (-1e4, 1e4, 1e4): {1, 2},
        (1e4, 1e4, -1e4): {0, 1},
        (1e4, 1e4, 1e4): {0, 1, 2},
    }
    for logits, actions in possible.items():
        policy = biased(*logits, first_action=first_action)
        action, extras = policy.act(np.zeros((1, 1), np.float32), np.array([noise]))
        assert action[0] - first_action in actions
        assert extras["log_prob"][0] == pytest.approx(-np.log(len(actions)))


def test_no_action_is_out_of_range_where_rounding_could_make_it_so() -> None:
    rng = np.random.default_rng(0)
    noise = np.full(1, np.nextafter(1.0, 0.0))
    for _ in range(300):
        action, extras = biased(*rng.normal(0, 5, 18)).act(np.zeros((1, 1), np.float32), noise)
        assert 0 <= action[0] < 18
        assert -np.inf < extras["log_prob"][0] <= 0


# --- the best, and sometimes another ---------------------------------------------------------------------------


def policy_with(epsilon: float, **changes: Any) -> EpsilonGreedyPolicy:
    """Q = (0, 2, 1) in every state."""
    policy = EpsilonGreedyPolicy(spec_of((1,), 3, hidden=()), layout_of((1,)), **changes)
    policy.load(np.array([0, 0, 0, 0, 2, 1, epsilon], np.float32))
    return policy


@pytest.mark.parametrize("probs", [(), (0.7, 0.1, 0.2), (0.0, 0.0, 1.0)])
def test_it_explores_as_often_and_in_the_way_it_was_told(probs: tuple[float, ...]) -> None:
    policy = policy_with(0.4, action_probs=probs, first_action=1)
    obs = np.zeros((20_000, 1), np.float32)
    action, extras = policy.act(obs, policy.draw(np.random.default_rng(0), 1, 20_000)[0])
    expected = 0.4 * np.array(probs or [1 / 3] * 3) + 0.6 * np.array([0, 1, 0])
    assert np.bincount(action - 1, minlength=3) / 20_000 == pytest.approx(expected, abs=0.012)
    assert (extras["q"] == np.array([0, 2, 1])[action - 1]).all()
    assert (extras["value"] == 2).all()
    assert (policy.greedy(obs) == 2).all()


def test_exploring_keeps_to_what_is_allowed_and_to_its_own_odds_there() -> None:
    masks = np.array([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1]], bool)
    policy = EpsilonGreedyPolicy(spec_of((), 4, hidden=()), states(4, 4, masks), 2, (0.5, 0.3, 0.0, 0.2))
    policy.load(np.array([0, 0, 0, 0, 9, 8, 7, 6, 1], np.float32))  # always exploring
    obs = np.arange(40_000) % 4
    action, extras = policy.act(obs, policy.draw(np.random.default_rng(0), 1, len(obs))[0])
    shares = [np.bincount(action[obs == z] - 2, minlength=4) / 10_000 for z in range(4)]
    wanted = [[0.5, 0.3, 0, 0.2], [0, 1, 0, 0], [5 / 7, 0, 0, 2 / 7], [0, 0, 0, 1]]
    assert np.abs(np.array(shares) - wanted).max() < 0.02
    assert (policy.greedy(np.arange(4)) - 2).tolist() == [0, 1, 0, 3]
    assert set(extras["value"].tolist()) == {9.0, 8.0, 6.0}


def test_epsilon_at_its_ends() -> None:
    obs = np.zeros((1000, 1), np.float32)
    for epsilon, expected in ((0.0, {1}), (1.0, {0})):
        policy = policy_with(epsilon, action_probs=(1.0, 0.0, 0.0))
        assert set(policy.act(obs, policy.draw(np.random.default_rng(0), 1, 1000)[0])[0]) == expected


def test_a_ladder_gives_every_copy_its_own_rate() -> None:
    """From epsilon to epsilon^(1 + ladder) in equal steps of the exponent."""
    policy = policy_with(2.0**-4, ladder=3.0)
    assert policy.epsilon(5) == pytest.approx([2.0**-4, 2.0**-7, 2.0**-10, 2.0**-13, 2.0**-16])
    assert policy.epsilon(3) == pytest.approx([2.0**-4, 2.0**-10, 2.0**-16])
    assert policy.epsilon(1) == pytest.approx([2.0**-4])
    assert policy_with(0.4).epsilon(8) == pytest.approx([0.4] * 8)


def test_copies_explore_by_their_rung() -> None:
    policy = policy_with(0.5, ladder=2.0, action_probs=(1.0, 0.0, 0.0))
    noise = policy.draw(np.random.default_rng(0), 20_000, 3)
    explored = np.mean([policy.act(np.zeros((3, 1), np.float32), row)[0] == 0 for row in noise], axis=0)
    assert explored == pytest.approx([0.5, 0.25, 0.125], abs=0.012)
