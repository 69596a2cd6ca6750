"""What every registered algorithm must keep, on every toy env that it takes. A new one is under test by being registered."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import config_of
from toys import ENVS, same

from distrl.acting.network import flatten, unflatten
from distrl.acting.policies import from_description
from distrl.envs.make import describe_env, make_env
from distrl.errors import UserError
from distrl.layouts import space_text
from distrl.learning.networks import make_network
from distrl.models.player import Player
from distrl.registry import ALGORITHMS, POLICIES, AlgorithmModule, algorithm_module
from distrl.seeding import stream
from distrl.settings import Config
from distrl.types import Array, Arrays, Batch, EnvInfo, Fragment, Policy, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay
from distrl.workers.runner import Before, Runner

ITERATIONS = 2
Given = tuple[Fragment, ...] | Batch  # what an update learns from


def config_for(name: str, env: str) -> Config:
    """The algorithm's own defaults, on little."""
    data: dict[str, Any] = {"env": ENVS[env].model_dump(), "algorithm": {"name": name}}
    data |= {"rollout": {"shards": 2, "envs_per_shard": 4, "steps": 64}, "stop": {"env_steps": 5120}}
    if algorithm_module(name).Settings(name=name).replayed is not None:
        data["replay"] = {"start": 128, "samples_per_insert": 1, "prioritized": True, "first_priority": "max"}
    return config_of(data)


def refusal(name: str, env: str) -> str | None:
    try:
        algorithm_module(name).make_policy(config_for(name, env).algorithm, describe_env(ENVS[env]))
    except UserError as error:
        return str(error)
    return None


NAMES = list(ALGORITHMS.names())
TAKEN = [(name, env) for name in NAMES for env in ENVS if refusal(name, env) is None]
every = pytest.mark.parametrize(("name", "env"), TAKEN)


@dataclass
class Case:
    """An algorithm and an env, and what its first policy did there."""

    config: Config
    module: AlgorithmModule
    info: EnvInfo
    policy: Policy
    first: Array  # the weights of version 0
    fragments: list[tuple[Fragment, ...]]  # by iteration
    given: list[Given]

    def learner(self) -> Learner:
        return Learner(self.config, self.policy, None)

    def update(self, learner: Learner, iteration: int) -> tuple[Array, dict[str, float]]:
        """One update by a part of `given`: the weights after it, and its metrics without the clock's."""
        steps, given = self.config.rollout.env_steps * iteration, self.given[iteration]
        if isinstance(given, Batch):
            _, metrics = learner.learn(iteration, steps, given)
        else:
            _, metrics = learner.update(iteration, steps, *given)
        return learner.weights().vector, {key: value for key, value in metrics.items() if key != "learn_s"}


def read_only(item: Any) -> Any:
    """Its arrays cannot be written, as those that come through shared memory."""
    for field in fields(item):
        value = getattr(item, field.name)
        for array in value.values() if isinstance(value, dict) else [value]:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return item


@cache
def case(name: str, env: str) -> Case:
    config, module, info = config_for(name, env), algorithm_module(name), describe_env(ENVS[env])
    policy = module.make_policy(config.algorithm, info)
    first = module.initial_weights(config.algorithm, policy, config.seed)
    runner = Runner(config.env, config.rollout, config.seed, policy)
    fragments: list[tuple[Fragment, ...]] = []
    given: list[Given] = []
    replay = None if config.replay is None else Replay(config, 0, None)
    for k in range(ITERATIONS):
        before: Before = "live" if k else None
        shards = range(config.rollout.shards)
        rolled = [read_only(runner.rollout(shard, k, Weights(0, first), before)[1]) for shard in shards]
        fragments.append(tuple(rolled))
        if replay is None:
            given.append(fragments[-1])
        else:
            replay.add(*rolled)
            given.append(read_only(replay.sample(k, config.rollout.env_steps * k)))
    return Case(config, module, info, policy, first, fragments, given)


def bytes_of(item: Any) -> list[bytes]:
    found = []
    for field in fields(item):
        value = getattr(item, field.name)
        arrays = value.values() if isinstance(value, dict) else [value]
        found += [array.tobytes() for array in arrays if isinstance(array, np.ndarray)]
    return found


# --- what it takes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_some_envs_and_names_what_it_cannot_take(name: str) -> None:
    reasons = {env: refusal(name, env) for env in ENVS}
    assert None in reasons.values()
    for env, reason in reasons.items():
        space = describe_env(ENVS[env])
        assert (
            reason is None or space_text(space.action_space) in reason or space_text(space.observation_space) in reason
        )


def test_the_envs_end_in_both_ways_and_inside_fragments() -> None:
    """Else much of what follows would say little."""
    for name, env in TAKEN:
        parts = [fragment for fragments in case(name, env).fragments for fragment in fragments]
        assert all(part.terminated.any() and part.truncated.any() for part in parts)


# --- what acts ----------------------------------------------------------------------------------------------------


@every
def test_what_acts_and_what_learns_agree_in_every_weight(name: str, env: str) -> None:
    c = case(name, env)
    shapes = c.policy.shapes()
    assert c.first.shape == (sum(prod(shape) for shape in shapes.values()),)
    assert same(c.learner().weights().vector, c.first)
    c.policy.load(c.first)
    assert {key: array.shape for key, array in c.policy.arrays().items()} == shapes
    assert same(flatten(c.policy.arrays(), shapes), c.first)
    assert all(same(unflatten(c.first, shapes)[key], array) for key, array in c.policy.arrays().items())


@every
def test_every_action_is_one_of_the_env(name: str, env: str) -> None:
    c = case(name, env)
    for fragment in (fragment for fragments in c.fragments for fragment in fragments):
        layout = c.info.action_layout
        actions = fragment.action.reshape(-1, *layout.shape)
        c.policy.load(c.first)
        for action in (*actions, *c.policy.greedy(fragment.obs[0])):
            assert c.info.action_space.contains(layout.unpack(action))


@every
def test_acting_depends_on_observation_noise_and_weights_alone(name: str, env: str) -> None:
    """And what was drawn for a fragment, not the generator of the policy, is the noise."""
    c = case(name, env)
    fragment, rollout = c.fragments[0][0], c.config.rollout
    one, other = (c.module.make_policy(c.config.algorithm, c.info) for _ in range(2))
    noise = one.draw(stream(c.config.seed, "action", 0, 0), rollout.steps, rollout.envs_per_shard)
    one.load(c.first)
    other.load(c.first.copy())
    for t in (3, 1):
        other.act(fragment.obs[0], noise[0])
        action, extras = one.act(fragment.obs[t], noise[t])
        again, others = other.act(fragment.obs[t].copy(), noise[t].copy())
        assert same(action, again)
        assert same(action, fragment.action[t])
        assert extras.keys() == others.keys() == fragment.extras.keys()
        assert all(same(extras[key], others[key]) and same(extras[key], fragment.extras[key][t]) for key in extras)


@every
def test_a_policy_is_made_again_from_its_description(name: str, env: str) -> None:
    c = case(name, env)
    text = json.dumps(c.policy.describe(), allow_nan=False)
    assert json.loads(text)["type"] in POLICIES.names()
    again = from_description(json.loads(text))
    assert type(again) is type(c.policy)
    assert json.dumps(again.describe()) == text
    learner = c.learner()
    c.update(learner, 0)
    weights = learner.weights().vector
    c.policy.load(weights)
    again.load(weights)
    obs = c.fragments[0][0].obs[1]
    noise = c.policy.draw(np.random.default_rng(0), 1, len(obs))[0]
    (action, extras), (other, others) = c.policy.act(obs, noise), again.act(obs, noise)
    assert same(action, other)
    assert extras.keys() == others.keys()
    assert all(same(extras[key], others[key]) for key in extras)
    assert same(c.policy.greedy(obs), again.greedy(obs))


@every
def test_it_is_evaluated_and_plays_on_the_envs_own_observations(name: str, env: str) -> None:
    """The env itself refuses what is no action, or a forbidden one."""
    c = case(name, env)
    learner = c.learner()
    c.update(learner, 0)
    weights = learner.weights()
    for greedy in (True, False):
        evaluation = Evaluator(c.config.env, 1, c.policy).evaluate(weights, 0, 4, greedy, 0)
        assert 1 <= evaluation.lengths.mean <= 12
    c.policy.load(weights.vector)
    player, game = Player(c.policy, {}), make_env(c.config.env)
    for episode in range(4):
        obs, info = game.reset(seed=episode)
        ended = False
        while not ended:
            action = player.act(obs, greedy=episode % 2 == 0, action_mask=info.get("action_mask"))
            obs, _, terminated, truncated, info = game.step(action)
            ended = terminated or truncated
    game.close()


@pytest.mark.parametrize(("name", "env"), [case for case in TAKEN if algorithm_module(case[0]).NEEDS_TORCH])
def test_the_network_that_acts_is_the_one_that_learns(name: str, env: str) -> None:
    c = case(name, env)
    network = c.policy.network  # type: ignore[attr-defined]
    c.policy.load(c.first + np.random.default_rng(0).normal(0, 0.05, c.first.shape).astype(np.float32))
    obs = np.concatenate([f.obs.reshape(-1, *c.info.obs_layout.shape)[:50] for f in c.fragments[0]])
    found = network(obs)
    wanted = make_network(network.spec, network.vector)(torch.tensor(obs)).detach().numpy()
    assert found.dtype == np.float32
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


# --- what learns --------------------------------------------------------------------------------------------------


@every
def test_weights_are_a_copy(name: str, env: str) -> None:
    c = case(name, env)
    learner = c.learner()
    c.update(learner, 0)
    weights = learner.weights().vector
    before = weights.copy()
    c.update(learner, 1)
    assert same(weights, before)
    newest = learner.weights().vector
    assert not same(newest, before)  # it learns
    newest[:] = 0
    assert not same(learner.weights().vector, newest)


@every
def test_the_same_updates_give_the_same_bits_and_leave_what_they_learn_from_as_it_was(name: str, env: str) -> None:
    """It is the same memory for everybody on a machine."""
    c = case(name, env)
    items = [item for given in c.given for item in (given if isinstance(given, tuple) else [given])]
    before = [bytes_of(item) for item in items]
    one, other = c.learner(), c.learner()
    for k in range(ITERATIONS):
        (weights, metrics), (again, others) = c.update(one, k), c.update(other, k)
        assert same(weights, again)
        assert metrics == others
        assert all(type(value) is float for value in metrics.values())
    assert [bytes_of(item) for item in items] == before


@every
def test_the_state_is_all_that_is_needed_to_go_on(name: str, env: str) -> None:
    """Through a file; for one that was just made, and for one that went on and goes back."""
    c = case(name, env)
    learner = c.learner()
    c.update(learner, 0)
    state = learner.algorithm.state()
    kept = safetensors.numpy.save({key: np.asarray(array, order="C") for key, array in state.items()})
    ahead = [c.update(learner, k)[0] for k in (1, 0)]
    assert not same(ahead[0], ahead[1])
    assert all(same(array, state[key]) for key, array in safetensors.numpy.load(kept).items())  # a copy
    for other in (c.learner(), learner):
        loaded: Arrays = safetensors.numpy.load(kept)
        other.algorithm.load_state(loaded)
        for array in loaded.values():  # nothing of it may live on
            array.fill(0)
        for k, weights in zip((1, 0), ahead, strict=True):
            assert same(c.update(other, k)[0], weights)
