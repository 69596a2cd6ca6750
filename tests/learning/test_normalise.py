"""Running statistics: what is seen and earned comes in order one, by numbers that belong to the model and to the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARTPOLE, config_of
from gymnasium.wrappers.utils import RunningMeanStd
from toys import WALK, same

from distrl.acting.make import initial_weights, make_policy
from distrl.acting.network import unflatten
from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.policies import from_description
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.fragments import unstacked
from distrl.learning.normalise import Normalised
from distrl.models.player import load_policy
from distrl.models.store import weights_sha256, write_model
from distrl.settings import Config
from distrl.types import Array, Arrays, Fragment, Policy, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner
from distrl.workers.runner import Runner

GAMMA = 0.9
PENDULUM: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "Pendulum-v1", "max_episode_steps": 40},
    "algorithm": {"name": "ppo", "minibatch_size": 64, "gamma": GAMMA, "hidden": [16]},
    "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 32},
    "schedule": {"lag": 0},
    "normalize": {"obs": True, "reward": True},
}


def walk(**kwargs: Any) -> Config:
    """A walk of other spaces, with normalised observations."""
    return config_of(PENDULUM | {"env": {"id": f"toys:{WALK}", "kwargs": kwargs}})


class Keeping:
    """An algorithm that keeps what it is shown; its weights say how often that was."""

    def __init__(self, size: int) -> None:
        self.shown: list[list[Fragment]] = []
        self.vector = np.zeros(size, np.float32)

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        self.shown.append(fragments)
        return {}

    def weights(self) -> Array:
        return self.vector + len(self.shown)

    def state(self) -> Arrays:
        return {"inner": np.array(len(self.shown))}

    def load_state(self, state: Arrays) -> None:
        self.shown = [[]] * int(state["inner"])


def policy_of(config: Config) -> Policy:
    return make_policy(config, describe_env(config.env))


def normalised(config: Config) -> tuple[Normalised, Keeping]:
    policy = policy_of(config)
    keeping = Keeping(len(initial_weights(config, without(policy))))
    return Normalised(config, policy, keeping), keeping


def rolled(config: Config, iterations: int, algorithm: Any = None) -> list[list[Fragment]]:
    """The fragments of some iterations, by the first weights or by an algorithm that learns from them."""
    policy = policy_of(config)
    runner, weights, found = Runner(config.env, config.rollout, 1, policy), initial_weights(config, policy), []
    for k in range(iterations):
        message, before = Weights(k, weights), "live" if k else None
        found.append([runner.rollout(s, k, message, before)[1] for s in range(config.rollout.shards)])  # type: ignore[arg-type]
        if algorithm is not None:
            algorithm.update(found[-1], k, 0.0)
            weights = algorithm.weights()
    return found


def statistics(algorithm: Normalised, policy: Policy) -> tuple[Array, Array]:
    arrays = unflatten(algorithm.weights(), policy.shapes())
    return arrays["obs.mean"], arrays["obs.scale"]


# --- observations -----------------------------------------------------------------------------------------------------


def test_the_statistics_are_those_of_all_observations_in_one_heap() -> None:
    config = config_of(PENDULUM)
    algorithm, _ = normalised(config)
    policy = policy_of(config)
    assert same(algorithm.weights(), np.concatenate([np.zeros(len(algorithm.weights()) - 3), np.ones(3)], dtype="f4"))
    fragments = rolled(config, 5, algorithm)
    heap = np.concatenate([f.obs[:-1].reshape(-1, 3) for each in fragments for f in each]).astype(np.float64)
    mean, scale = statistics(algorithm, policy)
    assert len(heap) == 5 * config.rollout.env_steps
    assert mean == pytest.approx(heap.mean(axis=0), rel=1e-6)
    assert scale == pytest.approx(1 / np.sqrt(heap.var(axis=0) + 1e-8), rel=1e-6)

    theirs = RunningMeanStd(shape=(3,))  # as VecNormalize's: it counts the copies' observations step by step
    for each in fragments:
        for t in range(config.rollout.steps):
            theirs.update(np.concatenate([f.obs[t] for f in each]))
    assert mean == pytest.approx(theirs.mean, abs=1e-5)
    assert scale == pytest.approx(1 / np.sqrt(theirs.var), rel=1e-5)


def test_a_number_that_lies_far_from_zero_keeps_its_small_deviation() -> None:
    config = config_of(PENDULUM, "normalize.reward=false")
    algorithm, _ = normalised(config)
    heap = 1e4 + np.random.default_rng(0).normal(0, 0.1, (9, 32, 4, 3))
    for rows in heap:
        fragment = rolled(config, 1)[0][0]
        algorithm.update([replace(fragment, obs=np.concatenate([rows, rows[:1]]))], 0, 0.0)
    assert algorithm.seen.scale == pytest.approx(1 / heap.reshape(-1, 3).std(axis=0), rel=1e-5)


def test_the_algorithm_is_shown_what_the_version_before_it_acted_by() -> None:
    """A true last observation, too; all of it clipped."""
    config = config_of(PENDULUM)
    algorithm, keeping = normalised(config)
    policy = policy_of(config)
    acted_by = []

    class Told:
        def update(self, fragments: list[Fragment], iteration: int, progress: float) -> None:
            acted_by.append(statistics(algorithm, policy))
            algorithm.update(fragments, iteration, progress)

        def weights(self) -> Array:
            return algorithm.weights()

    fragments = rolled(config, 3, Told())
    for (mean, scale), given, shown in zip(acted_by, fragments, keeping.shown, strict=True):
        for raw, seen in zip(given, shown, strict=True):
            assert seen.obs == pytest.approx(((raw.obs - mean) * scale).clip(-10, 10), abs=1e-6)
            assert seen.final_obs == pytest.approx(((raw.final_obs - mean) * scale).clip(-10, 10), abs=1e-6)
    assert sum(len(f.final_obs) for each in fragments for f in each) > 8
    assert len({mean.tobytes() for mean, _ in acted_by}) == 3


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_without_lag_the_policy_that_learns_is_the_one_that_acted(name: str) -> None:
    """Other statistics would show as a batch that is old."""
    own = {"ppo": {"minibatch_size": 64}, "a2c": {}}[name]
    config = config_of(PENDULUM | {"algorithm": {"name": name, "hidden": [16], "lr": 1e-2, **own}})
    policy = policy_of(config)
    learner = Learner(config, policy, None)
    runner = Runner(config.env, config.rollout, 1, policy)
    for k in range(4):
        weights, before = learner.weights(), "live" if k else None
        given = [runner.rollout(shard, k, weights, before)[1] for shard in range(2)]  # type: ignore[arg-type]
        _, metrics = learner.update(k, k * config.rollout.env_steps, *given)
        assert abs(metrics["staleness_kl"]) < 1e-6
        assert not same(learner.weights().vector[-6:], weights.vector[-6:])


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [({"obs": "dict"}, [("more", 1)]), ({"obs": "dict", "mask": "dict"}, [("seen", "more", 1)]), ({"mask": "info"}, [()])],
)  # fmt: skip
def test_nothing_but_floating_point_numbers_is_touched(kwargs: dict[str, Any], parts: list[tuple[Any, ...]]) -> None:
    config = walk(**kwargs)
    policy = policy_of(config)
    assert isinstance(policy, NormalisedPolicy)
    weights, rng = initial_weights(config, policy), np.random.default_rng(0)
    policy.load(policy.join(weights[: -2 * policy.size], rng.normal(size=policy.size), np.full(policy.size, 3)))
    layout = policy.obs_layout
    raw = rolled(config, 1)[0][0].obs
    before, shown = raw.copy(), policy.normalised(raw)
    assert same(raw, before)
    touched = [part for part in layout.parts if not same(part.of(shown), part.of(raw))]
    assert [part.path for part in touched] == parts or [part.path for part in touched] == [("mask", *p) for p in parts]
    start = 0
    for part in touched:
        mean = policy.mean[start : start + int(np.prod(part.shape))]
        assert part.of(shown) == pytest.approx((part.of(raw) - mean) * 3, abs=1e-5)
        start += int(np.prod(part.shape))
    assert start == policy.size
    if layout.mask is not None:
        assert same(layout.mask.of(shown), layout.mask.of(raw))


def test_stacks_of_frames_are_normalised_as_they_are_seen() -> None:
    config = config_of(PENDULUM, "normalize.reward=false")
    algorithm, keeping = normalised(config)
    rng = np.random.default_rng(0)
    fragment = rolled(config, 1)[0][0]
    frames = rng.normal(5, 3, (2 + 33, 4)).astype(np.float32)  # stacks of 3 frames, each a number
    final = rng.normal(size=len(fragment.final_obs)).astype(np.float32)
    stacked = replace(fragment, obs=frames, final_obs=final, stack=3)
    whole = unstacked(stacked)
    for _ in range(2):
        algorithm.update([stacked], 0, 0.0)
    mean, std = whole.obs[:-1].mean(axis=(0, 1)), whole.obs[:-1].std(axis=(0, 1))
    shown = keeping.shown[1][0]
    assert (shown.stack, shown.obs.shape) == (0, (33, 4, 3))
    assert shown.obs == pytest.approx((whole.obs - mean) / std, abs=1e-5)
    assert shown.final_obs == pytest.approx((whole.final_obs - mean) / std, abs=1e-5)


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_over_the_deviation_of_the_returns_of_every_copy() -> None:
    """The same by hand: every return is summed anew from its episode's beginning."""
    config = config_of(PENDULUM, "normalize.obs=false")
    algorithm, keeping = normalised(config)
    fragments = rolled(config, 4, Keeping(len(initial_weights(config, policy_of(config)))))
    returns: list[float] = []
    for k, given in enumerate(fragments):
        algorithm.update(given, k, 0.0)
        returns = []
        for shard in range(2):
            so_far = [each[shard] for each in fragments[: k + 1]]
            reward, ended = (np.concatenate([getattr(f, name) for f in so_far]) for name in ("reward", "ended"))
            for copy in range(4):
                first = 0
                for t in range(len(reward)):
                    returns.append(sum(GAMMA ** (t - i) * reward[i, copy] for i in range(first, t + 1)))
                    first = t + 1 if ended[t, copy] else first
        for raw, shown in zip(given, keeping.shown[k], strict=True):
            wanted = raw.reward / np.sqrt(np.var(returns) + 1e-8)
            assert shown.reward == pytest.approx(wanted.clip(-10, 10))
            assert same(shown.obs, raw.obs)
    theirs = RunningMeanStd()  # as in VecNormalize, which begins with a count of 1e-4
    theirs.update(np.array(returns))
    assert keeping.shown[-1][0].reward == pytest.approx(fragments[-1][0].reward / np.sqrt(theirs.var), rel=1e-5)
    assert sum(f.ended.sum() for each in fragments for f in each) > 8
    assert same(algorithm.weights()[:3], np.full(3, 4, np.float32))  # there are no statistics of observations


def test_a_reward_far_out_is_clipped() -> None:
    config = config_of(PENDULUM, "normalize.obs=false")
    algorithm, keeping = normalised(config)
    fragment = rolled(config, 1)[0][0]
    reward = np.random.default_rng(0).normal(size=(32, 4))
    reward[3, 2] = -1e6
    calm = replace(fragment, reward=reward.clip(-1, 1))
    for _ in range(200):
        algorithm.update([calm], 0, 0.0)
    algorithm.update([replace(calm, reward=reward)], 0, 0.0)
    assert keeping.shown[-1][0].reward[3, 2] == -10


# --- what holds them --------------------------------------------------------------------------------------------------


def test_a_state_goes_on_bit_for_bit() -> None:
    config = config_of(PENDULUM)
    algorithm, keeping = normalised(config)
    fragments = rolled(config, 5, Keeping(len(keeping.vector) + 6))
    for k in range(3):
        algorithm.update(fragments[k], k, 0.0)
    state = {name: array.copy() for name, array in algorithm.state().items()}
    again, others = normalised(config)
    again.load_state(state | {"more": np.zeros(1)})
    for k in (3, 4):
        algorithm.update(fragments[k], k, 0.0)
        again.update(fragments[k], k, 0.0)
        assert same(algorithm.weights(), again.weights())
        for shown, other in zip(keeping.shown[-1], others.shown[-1], strict=True):
            assert same(shown.obs, other.obs) and same(shown.reward, other.reward)
    assert state.keys() == algorithm.state().keys()


def ready(seed: int = 0) -> tuple[Config, NormalisedPolicy, Array]:
    """A policy with statistics of its own."""
    config = config_of(PENDULUM, f"seed={seed}")
    policy = policy_of(config)
    assert isinstance(policy, NormalisedPolicy)
    rng, weights = np.random.default_rng(seed), initial_weights(config, policy)[:-6]
    vector = policy.join(weights * 30, rng.normal(size=3), rng.random(3) + 1)
    policy.load(vector)
    return config, policy, vector


def test_statistics_stand_still_in_evaluation() -> None:
    config, policy, vector = ready()
    before = vector.copy()
    evaluator = Evaluator(config.env, 1, policy)
    one, two = (evaluator.evaluate(Weights(3, vector), 0, 8, True, 0) for _ in range(2))
    assert one == two
    assert same(vector, before)
    assert same(evaluator.policy.arrays()["obs.mean"], vector[-6:-3])
    still = evaluator.evaluate(Weights(4, policy.join(vector[:-6], np.zeros(3), np.ones(3))), 0, 8, True, 0)
    assert still.returns != one.returns  # they are acted by


def test_statistics_are_of_the_model_and_its_checksum(tmp_path: Path) -> None:
    _, policy, vector = ready()
    write_model(tmp_path, policy, vector, {})
    player = load_policy(tmp_path)
    obs = np.random.default_rng(1).normal(0, 2, (50, 3)).astype(np.float32)
    shown = np.clip((obs - vector[-6:-3]) * vector[-3:], -10, 10)
    assert same(player.act(obs), without(policy).greedy(shown))
    assert not same(player.act(obs), without(policy).greedy(obs))
    assert weights_sha256(player.policy) == weights_sha256(policy)
    player.policy.load(np.concatenate([vector[:-1], vector[-1:] + 1]))
    assert weights_sha256(player.policy) != weights_sha256(policy)


def test_a_description_makes_it_again() -> None:
    _, policy, vector = ready()
    again = from_description(json.loads(json.dumps(policy.describe(), allow_nan=False)))
    again.load(vector)
    assert again.describe() == policy.describe()
    obs, noise = np.ones((4, 3), np.float32), policy.draw(np.random.default_rng(0), 1, 4)[0]
    (action, extras), (other, others) = policy.act(obs, noise), again.act(obs, noise)
    assert same(action, other) and all(same(extras[name], others[name]) for name in extras)
    assert {name: array.shape for name, array in policy.arrays().items()} == policy.shapes()


def test_off_there_is_nothing_of_it() -> None:
    config = config_of(PENDULUM, "normalize={}")
    policy = policy_of(config)
    assert policy.describe()["type"] == "stochastic"
    assert not isinstance(Learner(config, policy, None).algorithm, Normalised)


@pytest.mark.parametrize("kwargs", [{"obs": "grid"}, {"obs": "discrete", "mask": "dict"}])
def test_where_no_numbers_are_it_is_refused_with_the_remedy(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"normalize.obs is true, but .* Set normalize.obs=false.$"):
        policy_of(walk(**kwargs))
    policy_of(walk(**kwargs).model_copy(update={"normalize": config_of(PENDULUM, "normalize.obs=false").normalize}))
