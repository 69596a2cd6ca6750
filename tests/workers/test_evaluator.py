"""Evaluation: exactly the episodes asked for, none favoured, and the same ones for the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toys import BANDIT, DIE, categorical, same, settings, spec_of

from distrl.acting.policies import StochasticPolicy
from distrl.settings import EnvSettings
from distrl.types import Evaluation, Weights
from distrl.workers.evaluator import COPIES, Evaluator

CARTPOLE = settings("CartPole-v1", 200)
LUNAR = settings("LunarLander-v3", 60)
DICE, LAMPS = settings(DIE), settings(BANDIT)
SPACES = {CARTPOLE.id: (4, 2), LUNAR.id: (8, 4), DIE: (1, 2), BANDIT: (2, 2)}  # numbers seen, actions


def policy_for(inputs: int, actions: int) -> StochasticPolicy:
    return categorical(spec_of((inputs,), actions, hidden=()))


def evaluator(env: EnvSettings, seed: int = 1) -> Evaluator:
    return Evaluator(env, seed, policy_for(*SPACES[env.id]))


def random_weights(size: int, version: int = 0, scale: float = 1.0) -> Weights:
    return Weights(version, np.random.default_rng(version).normal(0, scale, size).astype(np.float32))


def seeing(confidence: float) -> Weights:
    """Of a bandit policy that names the lit lamp with this probability."""
    logit = math.log(confidence / (1 - confidence))
    return Weights(0, np.array([logit, 0, 0, logit, 0, 0], np.float32))


@pytest.mark.parametrize("episodes", [1, 2, COPIES - 1, COPIES, COPIES + 1, 2 * COPIES + 7])
def test_as_many_episodes_as_asked_for(episodes: int) -> None:
    result = evaluator(DICE).evaluate(random_weights(4), 0, episodes, True, 0)
    assert result.episodes == episodes
    assert {result.lengths.min, result.lengths.max} <= {1, 21}
    assert result.returns == result.lengths


def test_short_episodes_are_not_favoured() -> None:
    """The first 320 episodes to end would nearly all be short ones; the true mean is 11."""
    result = evaluator(DICE).evaluate(random_weights(4), 0, 320, True, 0)
    assert abs(result.mean - 11) < 3 * 10 / math.sqrt(320)
    assert result.returns.std == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(("env", "size"), [(CARTPOLE, 10), (LUNAR, 36)], ids=["native", "single"])
@pytest.mark.parametrize("greedy", [True, False])
def test_the_number_fixes_the_episodes(env: EnvSettings, size: int, greedy: bool) -> None:
    def evaluate(number: int, seed: int = 1, use: Evaluator | None = None) -> Evaluation:
        return (use or evaluator(env, seed)).evaluate(random_weights(size, 3, 0.3), 0, 20, greedy, number)

    one = evaluator(env)
    first = evaluate(0, use=one)
    second = evaluate(1, use=one)
    assert evaluate(0, use=one) == first == evaluate(0)
    assert evaluate(1) == second
    assert len({first, second, evaluate(0, seed=2)}) == 3


def test_a_result_names_its_weights_and_their_training() -> None:
    result = evaluator(CARTPOLE).evaluate(random_weights(10, version=17), 3400, 2, True, 0)
    assert (result.version, result.env_steps) == (17, 3400)
    other = evaluator(CARTPOLE).evaluate(random_weights(10, version=18), 3600, 2, True, 0)
    assert (other.version, other.env_steps) == (18, 3600)
    assert other.returns != result.returns


def test_greedy_takes_the_best_action_and_sampling_its_share() -> None:
    one = evaluator(LAMPS)
    greedy = one.evaluate(seeing(0.7), 0, 400, True, 0)
    sampled = one.evaluate(seeing(0.7), 0, 400, False, 0)
    assert greedy.mean == 1.0
    assert abs(sampled.mean - 0.7) < 3 * math.sqrt(0.21 / 400)
    assert one.evaluate(seeing(0.3), 0, 50, True, 0).mean == 0.0


def test_each_evaluation_uses_the_weights_it_is_given() -> None:
    one = evaluator(LAMPS)
    means = [one.evaluate(seeing(confidence), 0, 10, True, 0).mean for confidence in (0.9, 0.1, 0.9)]
    assert means == [1.0, 0.0, 1.0]


def test_returns_are_in_the_envs_own_units() -> None:
    result = evaluator(CARTPOLE).evaluate(random_weights(10), 0, 8, True, 0)
    assert result.returns == result.lengths
    assert result.lengths.max <= 200


def test_the_policy_of_others_is_left_alone() -> None:
    policy = policy_for(4, 2)
    vector = random_weights(10, 1).vector
    policy.load(vector)
    obs = np.ones((3, 4), np.float32)
    before = policy.network(obs)
    Evaluator(CARTPOLE, 1, policy).evaluate(random_weights(10, 2), 0, 2, True, 0)
    assert same(policy.network(obs), before)
