"""A2C against sums by hand and torch's own pieces; what it shares with PPO is tested with PPO and in the conformance test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import CARTPOLE, config_of
from toys import BANDIT, settings

from distrl.algorithms.a2c import A2C, Settings, initial_weights, make, make_policy
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.learning.slices import Slices
from distrl.settings import RolloutSettings
from distrl.types import Fragment, Weights
from distrl.workers.runner import Runner

CPU = torch.device("cpu")
SHAPE = RolloutSettings(shards=2, envs_per_shard=8, steps=16)


def bandit(seed: int = 1, **changes: Any) -> tuple[A2C, Runner]:
    plain = {"name": "a2c", "lr": 1e-2, "hidden": [16]}
    options = Settings.model_validate(plain | changes)
    policy = make_policy(options, describe_env(settings(BANDIT)))
    policy.load(initial_weights(options, policy, seed))
    return make(options, policy, seed, CPU), Runner(settings(BANDIT), SHAPE, seed, policy)


def rolled(a2c: A2C, runner: Runner, k: int = 0) -> list[Fragment]:
    weights = Weights(k, a2c.weights())
    return [runner.rollout(shard, k, weights, "live" if k else None)[1] for shard in range(SHAPE.shards)]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bandit_is_learned(seed: int, optimizer: str) -> None:
    a2c, runner = bandit(seed, optimizer=optimizer)
    for k in range(40):
        fragments = rolled(a2c, runner, k)
        a2c.update(fragments, k, 0.0)
    assert np.mean([f.reward.mean() for f in fragments]) > 0.95


@pytest.mark.parametrize("slices", [1, 5])
def test_an_update_is_one_step_along_the_policy_gradient(slices: int) -> None:
    """In the bandit every episode is one step, so the advantage of a step is its reward minus the critic's value."""
    a2c, runner = bandit(value_coef=0.0, max_grad_norm=None, normalize_value=False)
    a2c.slices = Slices(slices)
    fragments = rolled(a2c, runner)
    obs = torch.tensor(np.concatenate([f.obs[:-1] for f in fragments], axis=1)).flatten(0, 1)
    action = torch.tensor(np.concatenate([f.action for f in fragments], axis=1)).flatten()
    reward = torch.tensor(np.concatenate([f.reward for f in fragments], axis=1)).flatten().float()
    before = a2c.parameters["actor"].vector.detach().clone()
    logits, value = a2c.actor(obs), a2c.critic(obs).squeeze(1).detach()
    chosen = torch.distributions.Categorical(logits=logits).log_prob(action)
    wanted = torch.nn.Parameter(before.clone())
    wanted.grad = torch.cat(
        [g.flatten() for g in torch.autograd.grad(-(chosen * (reward - value)).mean(), list(a2c.actor.parameters()))]
    )
    torch.optim.RMSprop([wanted], lr=1e-2, alpha=0.99, eps=1e-5).step()
    a2c.update(fragments, 0, 0.0)
    torch.testing.assert_close(a2c.parameters["actor"].vector.detach(), wanted.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(before, wanted.detach())


def test_the_rates_fall_to_zero_where_they_are_linear() -> None:
    a2c, runner = bandit(lr={"start": 1e-2, "end": 0})
    fragments = rolled(a2c, runner)
    before = a2c.weights()
    assert a2c.update(fragments, 0, 1.0)["learning_rate"] == 0
    assert (a2c.weights() == before).all()


def test_minibatches_that_do_not_divide_an_iteration_are_refused() -> None:
    base = CARTPOLE | {"algorithm": {"name": "a2c"}}
    with pytest.raises(UserError, match=r"minibatches is 7, which does not divide the 256 steps"):
        config_of(base, "algorithm.minibatches=7")


@pytest.mark.parametrize(("vtrace", "fits"), [(True, True), (False, False)])
def test_async_needs_the_correction(vtrace: bool, fits: bool) -> None:
    base = CARTPOLE | {"algorithm": {"name": "a2c"}}
    overrides = ("schedule={kind: async}", f"algorithm.vtrace={str(vtrace).lower()}")
    if fits:
        assert config_of(base, *overrides).schedule.kind == "async"
    else:
        with pytest.raises(UserError, match=r"algorithm\.vtrace=true"):
            config_of(base, *overrides)
