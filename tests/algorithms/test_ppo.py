"""PPO: that it goes the right way, stops where told, counts what it should, and goes on bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch.distributions import Categorical
from toys import BANDIT, TWIN, categorical, same, settings, spec_of

from distrl.acting.network import NetworkSpec
from distrl.acting.policies import StochasticPolicy
from distrl.algorithms.ppo import PPO, Settings, initial_weights, make, make_policy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.learning.schedules import Schedule
from distrl.learning.slices import Slices
from distrl.settings import RolloutSettings
from distrl.training.checkpoint import RunState, read_checkpoint, write_checkpoint
from distrl.types import Array, Arrays, Fragment, Weights
from distrl.workers.learner import Learner
from distrl.workers.runner import Runner

CPU = torch.device("cpu")
SPEC = spec_of((3,), 4, (16,))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_ppo(seed: int = 1, spec: NetworkSpec = SPEC, first_action: int = 0, **changes: Any) -> PPO:
    plain = {"name": "ppo", "minibatch_size": 16, "lr": 1e-3}
    policy = categorical(spec, first_action, changes.get("action_probs", ()))
    options = Settings.model_validate(plain | changes)
    policy.load(initial_weights(options, policy, seed))
    return make(options, policy, seed, CPU)


def acting(ppo: PPO) -> StochasticPolicy:
    policy = categorical(ppo.actor.spec, ppo.distribution.start)
    policy.load(ppo.weights())
    return policy


def roll(
    ppo: PPO,
    reward: Callable[[Array, Array], Array],
    steps: int = 8,
    copies: int = 4,
    seed: int = 0,
    shard: int = 0,
    ends: float = 1.0,
) -> Fragment:
    """Random states, the policy's own actions, and a reward for both; an end after each step with chance `ends`."""
    rng = np.random.default_rng((seed, shard))
    policy = acting(ppo)
    obs = rng.normal(size=(steps + 1, copies, *ppo.obs_shape)).astype(np.float32)
    taken = [policy.act(obs[t], rng.random(copies)) for t in range(steps)]
    action = np.stack([a for a, _ in taken])
    ended = rng.random((steps, copies)) < ends
    terminated = ended & (rng.random((steps, copies)) < (1.0 if ends == 1.0 else 0.5))
    return Fragment(
        shard=shard,
        iteration=0,
        version=0,
        obs=obs,
        action=action,
        reward=reward(obs[:-1], action).astype(np.float64),
        terminated=terminated,
        truncated=ended & ~terminated,
        final_obs=rng.normal(size=(int(ended.sum()), *ppo.obs_shape)).astype(np.float32),
        extras={"log_prob": np.stack([e["log_prob"] for _, e in taken])},
    )


def advantages(ppo: PPO, fragments: list[Fragment]) -> tuple[Array, Array]:
    """Values and advantages [T, S N], with the weights of now."""
    batch = ppo.batch(fragments)
    return batch.value, batch.advantage


def random_reward(obs: Array, action: Array) -> Array:
    return np.random.default_rng(5).normal(size=action.shape)


def likes(wanted: int) -> Callable[[Array, Array], Array]:
    return lambda obs, action: (action == wanted).astype(float)


def log_probs(ppo: PPO, obs: torch.Tensor) -> torch.Tensor:
    """[B, A]"""
    policy: Any = ppo.traced(obs)[0]
    return policy.log_probs.t()


def probability(ppo: PPO, action: int) -> float:
    """Of an action, on average over states."""
    obs = torch.randn(200, *ppo.obs_shape, generator=torch.Generator().manual_seed(0))
    return log_probs(ppo, obs).exp()[:, action].mean().item()


def mean_entropy(ppo: PPO, obs: torch.Tensor) -> float:
    policy = Categorical(probs=log_probs(ppo, obs).exp())
    return float(policy.entropy().mean())  # type: ignore[no-untyped-call]


def distance(left: Arrays, right: Arrays, name: str) -> float:
    return float(np.abs(left[name] - right[name]).max())


# --- the right way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", range(4))
@pytest.mark.parametrize("shared", [False, True])
def test_the_action_that_pays_becomes_likelier(wanted: int, shared: bool) -> None:
    ppo = make_ppo(shared_body=shared)
    before = [probability(ppo, a) for a in range(4)]
    for k in range(3):
        metrics = ppo.update([roll(ppo, likes(wanted), steps=16, seed=k)], k, 0.0)
    after = [probability(ppo, a) for a in range(4)]
    assert after[wanted] > before[wanted] + 0.01
    assert all(after[a] < before[a] for a in range(4) if a != wanted)
    assert metrics["policy_loss"] < 0


def test_actions_are_counted_from_the_first() -> None:
    ppo = make_ppo(first_action=5)
    fragment = roll(ppo, likes(7))
    assert set(fragment.action.ravel().tolist()) <= {5, 6, 7, 8}
    before = probability(ppo, 2)
    ppo.update([fragment], 0, 0.0)
    assert probability(ppo, 2) > before


def test_the_acting_policy_is_the_one_that_learns() -> None:
    ppo = make_ppo()
    for k in range(3):
        ppo.update([roll(ppo, likes(1), seed=k)], k, 0.0)
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    action, extras = acting(ppo).act(obs, np.random.default_rng(1).random(20))
    wanted = log_probs(ppo, torch.tensor(obs))[torch.arange(20), torch.tensor(action)]
    np.testing.assert_allclose(extras["log_prob"], wanted.detach(), atol=1e-5)


def test_values_approach_the_returns() -> None:
    """The reward is a function of the state: the critic can explain nearly all of it."""
    ppo = make_ppo(lr=1e-2, max_grad_norm=None, minibatch_size=64)

    def reward(obs: Array, action: Array) -> Array:
        paid: Array = 3 * np.tanh(obs[..., 0]) - 1
        return paid

    metrics = [ppo.update([roll(ppo, reward, steps=32, seed=k)], k, 0.0) for k in range(25)]
    scores = [row["explained_variance"] for row in metrics]
    assert scores[0] < 0.5
    assert scores[-1] > 0.95
    obs = np.random.default_rng(99).normal(size=(500, 3)).astype(np.float32)
    assert np.abs(ppo.values(torch.tensor(obs)) - reward(obs, obs)).mean() < 0.3


def test_an_entropy_bonus_evens_the_policy_out() -> None:
    def entropy(coefficient: float) -> float:
        ppo = make_ppo(entropy_coef=coefficient, lr=1e-2)
        with torch.no_grad():
            ppo.actor.head.bias.add_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
        for k in range(5):
            ppo.update([roll(ppo, lambda obs, action: 0 * action, seed=k)], k, 0.0)
        return mean_entropy(ppo, torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))

    assert entropy(1.0) > entropy(0.0) + 0.1
    assert entropy(1.0) <= math.log(4) + 1e-6


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bandit_is_learned_in_a_few_iterations(seed: int) -> None:
    env, shape = settings(BANDIT), RolloutSettings(shards=2, envs_per_shard=8, steps=16)
    options = Settings(name="ppo", minibatch_size=64, lr=Schedule(start=1e-2), hidden=(16,))
    policy = make_policy(options, describe_env(env))
    policy.load(initial_weights(options, policy, seed))
    ppo = make(options, policy, seed, CPU)
    runner = Runner(env, shape, seed, policy)
    means = []
    for k in range(12):
        weights = Weights(k, ppo.weights())
        rolled = [runner.rollout(shard, k, weights, "live" if k else None) for shard in range(shape.shards)]
        means.append(float(np.mean([report.episodes.returns.mean() for report, _ in rolled])))
        ppo.update([fragment for _, fragment in rolled], k, 0.0)
    assert means[0] == pytest.approx(0.5, abs=0.15)
    assert means[-1] > 0.95


# --- metrics ----------------------------------------------------------------------------------------------------


def test_without_learning_the_ratio_is_one() -> None:
    ppo = make_ppo(lr=1e-20, epochs=2)
    before = ppo.weights()
    fragment = roll(ppo, random_reward)
    metrics = ppo.update([fragment], 0, 0.0)
    np.testing.assert_allclose(ppo.weights(), before, atol=1e-15)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-6)  # the mean of normalised advantages
    wanted = mean_entropy(ppo, torch.tensor(fragment.obs[:-1]).flatten(0, 1))
    assert metrics["entropy"] == pytest.approx(wanted, abs=1e-5)
    assert metrics["minibatches"] == 2 * 32 / 16


def test_old_fragments_are_weighed_against_the_policy_that_acted() -> None:
    ppo = make_ppo(lr=1e-20)
    fragment = roll(ppo, random_reward)
    fragment.extras["log_prob"] = fragment.extras["log_prob"] + np.float32(math.log(2))  # it was twice as sure
    metrics = ppo.update([fragment], 0, 0.0)
    assert metrics["clip_fraction"] == 1
    assert metrics["staleness_kl"] == pytest.approx(0.5 - 1 + math.log(2), abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)  # the update itself changed nothing


@pytest.mark.parametrize(("slices", "shared"), [(1, False), (5, False), (5, True)])
def test_the_gradient_is_that_of_the_papers_loss(slices: int, shared: bool) -> None:
    """By autograd, of a whole minibatch at once; its advantages normalised before it is cut."""
    options = {
        "minibatch_size": 32,
        "epochs": 1,
        "normalize_value": False,
        "max_grad_norm": None,
        "shared_body": shared,
    }
    ppo = make_ppo(**options, entropy_coef=0.1, value_coef=0.7)
    ppo.slices = Slices(slices)
    fragment = roll(ppo, random_reward, ends=0.3)
    noise = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32)
    fragment.extras["log_prob"] = fragment.extras["log_prob"] + 0.3 * noise  # so that some ratios are clipped
    batch = ppo.batch([fragment])
    adv, target = (torch.tensor(x).flatten().float() for x in (batch.advantage, batch.target))
    policy = Categorical(logits=ppo.actor(batch.obs))
    ratio = (policy.log_prob(batch.action) - batch.acted).exp()
    adv = (adv - adv.mean()) / adv.std()
    features = (ppo.actor if shared else ppo.critic).body(batch.obs)
    value = ppo.critic.head(features).squeeze(1)
    loss = -torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
    loss = loss + 0.7 * 0.5 * (value - target).square().mean() - 0.1 * policy.entropy().mean()  # type: ignore[no-untyped-call]
    parts = [*ppo.actor.parameters(), *(ppo.critic.head if shared else ppo.critic).parameters()]
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parts)])
    ppo.update([fragment], 0, 0.0)
    found = (
        np.concatenate([ppo.optimizer.state()[f"{name}.m"] for name in ppo.parameters]) / 0.1
    )  # of Adam's first step
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_all_metrics_are_plain_finite_numbers() -> None:
    ppo = make_ppo()
    metrics = ppo.update([roll(ppo, random_reward, shard=s) for s in range(2)], 0, 0.0)
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())


# --- truth about episodes ---------------------------------------------------------------------------------------


def columns(left: Array, right: Array) -> list[int]:
    """The columns in which two arrays [T, N] differ."""
    return np.flatnonzero((left != right).any(axis=0)).tolist()


def test_a_cut_episode_goes_on_in_the_value_of_its_last_observation() -> None:
    ppo = make_ppo()
    fragment = roll(ppo, random_reward, ends=0.0)
    steps, copies = fragment.reward.shape
    fragment.truncated[3, 1] = fragment.terminated[5, 2] = True
    fragment.final_obs = np.zeros((2, 3), np.float32)  # of copy 1, then of copy 2
    value, before = advantages(ppo, [fragment])

    cut = replace(fragment, final_obs=np.array([[9, 9, 9], [0, 0, 0]], np.float32))
    after = advantages(ppo, [cut])[1]
    changed = after != before
    assert changed[:, 1].tolist() == [True] * 4 + [False] * (steps - 4)  # the steps of that episode, none after it
    assert columns(after, before) == [1]

    ended = replace(fragment, final_obs=np.array([[0, 0, 0], [9, 9, 9]], np.float32))
    assert same(advantages(ppo, [ended])[1], before)
    assert value.shape == before.shape == (steps, copies)


def test_a_cut_and_an_end_differ_by_the_value_that_is_left() -> None:
    ppo = make_ppo(gamma=0.9)
    fragment = roll(ppo, random_reward, ends=0.0)
    fragment.truncated[3, 1] = True
    fragment.final_obs = np.full((1, 3), 2.0, np.float32)
    cut = advantages(ppo, [fragment])[1]
    ended = advantages(ppo, [replace(fragment, terminated=fragment.truncated, truncated=fragment.terminated)])[1]
    left = ppo.values(torch.full((1, 3), 2.0))[0]
    assert abs(left) > 0.1
    assert cut[3, 1] - ended[3, 1] == pytest.approx(0.9 * left, rel=1e-4)


def test_what_came_after_an_end_is_not_what_the_end_led_to() -> None:
    """The first observation of the next episode has no part in the one before."""
    ppo = make_ppo()
    fragment = roll(ppo, random_reward, ends=0.0)
    fragment.truncated[3, 1] = True
    fragment.final_obs = np.zeros((1, 3), np.float32)
    before = advantages(ppo, [fragment])[1]
    fragment.obs[4, 1] += 5
    changed = advantages(ppo, [fragment])[1] != before
    assert not changed[:4, 1].any()
    assert changed[4, 1]


def test_shards_stand_side_by_side_and_do_not_mix() -> None:
    ppo = make_ppo()
    fragments = [roll(ppo, random_reward, shard=s, ends=0.3) for s in range(3)]
    value, advantage = advantages(ppo, fragments)
    for i, fragment in enumerate(fragments):
        one_value, one_advantage = advantages(ppo, [fragment])
        np.testing.assert_allclose(value[:, 4 * i : 4 * i + 4], one_value, atol=1e-6)
        np.testing.assert_allclose(advantage[:, 4 * i : 4 * i + 4], one_advantage, atol=1e-5)


def test_values_are_the_same_in_slices() -> None:
    ppo = make_ppo()
    obs = np.random.default_rng(0).normal(size=(10_001, 2, 3)).astype(np.float32)
    value = ppo.values(torch.tensor(obs))
    assert value.shape == (10_001, 2)
    np.testing.assert_allclose(value[4000:4100], ppo.values(torch.tensor(obs[4000:4100])), atol=1e-5)
    assert ppo.values(torch.tensor(obs[:0])).shape == (0, 2)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_body_learns_from_the_value_too(shared: bool) -> None:
    def update(value_coef: float) -> Arrays:
        ppo = make_ppo(shared_body=shared, value_coef=value_coef, max_grad_norm=None)
        ppo.update([roll(ppo, random_reward)], 0, 0.0)
        return ppo.state()

    without, with_value = update(0.0), update(1.0)
    assert (distance(without, with_value, "actor.parameters") > 1e-5) == shared
    assert distance(without, with_value, "critic.parameters") > 1e-5
    critic = without["critic.parameters"].size
    assert critic == (17 if shared else without["actor.parameters"].size - 3 * 17)


@pytest.mark.parametrize(("lr", "critic_lr"), [(1e-2, 1e-20), (1e-20, 1e-2), (1e-2, None)])
def test_actor_and_critic_have_learning_rates_of_their_own(lr: float, critic_lr: float | None) -> None:
    ppo = make_ppo(lr=lr, critic_lr=critic_lr)
    before = ppo.state()
    ppo.update([roll(ppo, random_reward)], 0, 0.0)
    after = ppo.state()
    assert (distance(before, after, "actor.parameters") > 1e-3) == (lr > 1e-3)
    assert (distance(before, after, "critic.parameters") > 1e-3) == ((critic_lr or lr) > 1e-3)


def test_the_epochs_stop_beyond_the_target_kl() -> None:
    def minibatches(target: float | None) -> float:
        ppo = make_ppo(epochs=10, lr=3e-2, target_kl=target)
        return ppo.update([roll(ppo, random_reward)], 0, 0.0)["minibatches"]

    assert minibatches(None) == 20
    assert minibatches(1e6) == 20
    assert minibatches(1e-6) == 2  # one epoch is always run
    assert 2 < minibatches(0.01) < 20


def stale(ppo: PPO, seed: int = 0) -> Fragment:
    """Rolled by a policy that was far from the learner's of now."""
    return roll(make_ppo(seed=99, action_probs=(8, 1, 1, 1)), random_reward, seed=seed)


def test_only_the_update_counts_towards_the_target_kl_not_how_stale_the_batch_is() -> None:
    ppo = make_ppo(epochs=10, lr=1e-20, target_kl=1e-6)
    metrics = ppo.update([stale(ppo)], 0, 0.0)
    assert metrics["staleness_kl"] > 0.1
    assert metrics["minibatches"] == 20


@pytest.mark.parametrize("normalize", [False, True])
def test_a_value_is_clipped_from_where_the_critic_began(normalize: bool) -> None:
    """A single step starts where nothing has changed yet: however narrow the clip range, it is the step without one."""

    def critic(clip: float | None) -> Array:
        ppo = make_ppo(value_clip=clip, normalize_value=normalize, minibatch_size=32, epochs=1, lr=1e-2)
        for k in range(3):
            ppo.update([roll(ppo, lambda obs, action: 50 + 20 * obs[..., 0], seed=k)], k, 0.0)
        return ppo.state()["critic.parameters"]

    np.testing.assert_allclose(critic(1e-3), critic(None), atol=1e-6)


def test_an_adaptive_learning_rate_answers_to_the_kl() -> None:
    def rates(lr: float, wanted: float) -> list[float]:
        ppo = make_ppo(adaptive_kl=wanted, lr=lr)
        return [ppo.update([roll(ppo, random_reward, seed=k)], k, 0.0)["learning_rate"] for k in range(4)]

    falling, rising = rates(1e-3, 1e-9), rates(1e-5, 10.0)
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    assert falling[-1] < 0.5 * falling[0]
    assert rising[-1] > 2 * rising[0]


def test_a_stale_batch_does_not_lower_an_adaptive_learning_rate() -> None:
    ppo = make_ppo(adaptive_kl=0.01, lr=1e-6)
    rates = [ppo.update([stale(ppo, k)], k, 0.0)["learning_rate"] for k in range(4)]
    assert rates == sorted(rates)
    assert rates[-1] > 2 * rates[0]


@pytest.mark.parametrize(("progress", "left"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (1.5, 0.0)])
def test_linear_schedules_run_out_with_the_run(progress: float, left: float) -> None:
    ppo = make_ppo(lr={"start": 1e-3, "end": 0}, clip={"start": 0.2, "end": 0})
    before = ppo.weights()
    metrics = ppo.update([roll(ppo, random_reward)], 0, progress)
    assert metrics["learning_rate"] == pytest.approx(1e-3 * left)
    assert metrics["clip_range"] == pytest.approx(0.2 * left)
    assert same(ppo.weights(), before) == (left == 0)


def test_a_schedule_may_end_before_the_run() -> None:
    ppo = make_ppo(lr={"start": 1e-3, "end": 2e-4, "over": 64}, critic_lr={"start": 1e-3, "end": 0, "over": 32})
    rates, critics = [], []
    for k in range(4):  # of 32 steps each
        before = ppo.state()
        rates.append(ppo.update([roll(ppo, random_reward)], k, 0.1 * k)["learning_rate"])
        critics.append(distance(before, ppo.state(), "critic.parameters") > 0)
    assert rates == pytest.approx([1e-3, 6e-4, 2e-4, 2e-4])
    assert critics == [True, False, False, False]


def test_schedules_do_not_add_up() -> None:
    ppo = make_ppo(lr={"start": 1e-3, "end": 0})
    rates = [ppo.update([roll(ppo, random_reward)], k, 0.5)["learning_rate"] for k in range(3)]
    assert rates == [5e-4] * 3


def test_the_clip_range_holds_the_policy_back() -> None:
    def moved(clip: float) -> float:
        ppo = make_ppo(clip=clip, lr=1e-2, epochs=20, max_grad_norm=None)
        return ppo.update([roll(ppo, likes(0))], 0, 0.0)["approx_kl"]

    assert moved(0.05) < 0.5 * moved(10.0)


# --- bit for bit ------------------------------------------------------------------------------------------------


def in_memory(state: Arrays, path: Path) -> Arrays:
    return state


def through_safetensors(state: Arrays, path: Path) -> Arrays:
    found: Arrays = load(save(state))
    return found


def through_a_checkpoint(state: Arrays, path: Path) -> Arrays:
    run = RunState.beginning(np.zeros(SPEC.parameters, np.float32), shards=1)
    run.learner = state
    write_checkpoint(path / "1", run, categorical(SPEC), {}, "")
    return read_checkpoint(path / "1", shards=1).learner


@pytest.mark.parametrize("road", [in_memory, through_safetensors, through_a_checkpoint])
@pytest.mark.parametrize("updates", [0, 2])
@pytest.mark.parametrize("changes", [{}, {"shared_body": True}, {"adaptive_kl": 1e-9, "critic_lr": 1e-2}], ids=str)
def test_a_state_goes_on_bit_for_bit(
    road: Callable[[Arrays, Path], Arrays], updates: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    ppo = make_ppo(**changes)
    for k in range(updates):
        ppo.update([roll(ppo, random_reward, seed=k)], k, 0.0)
    state = ppo.state()
    kept = {key: array.copy() for key, array in state.items()}

    again = make_ppo(**changes)
    again.update([roll(again, likes(3), seed=9)], 7, 0.0)  # it has been elsewhere
    again.load_state(road(state, tmp_path))

    assert again.state().keys() == state.keys()
    assert [key for key, array in again.state().items() if not same(array, state[key])] == []
    for k in range(updates, updates + 2):
        fragments = [roll(ppo, random_reward, seed=k)]
        assert ppo.update(fragments, k, 0.0) == again.update(fragments, k, 0.0)
        assert same(ppo.weights(), again.weights())
    assert [key for key, array in again.state().items() if not same(array, ppo.state()[key])] == []
    assert [key for key in kept if not same(state[key], kept[key])] == []  # a state is no view of what goes on
    assert not same(state["actor.parameters"], ppo.state()["actor.parameters"])


def test_a_learner_goes_on_bit_for_bit_from_a_checkpoint(tmp_path: Path) -> None:
    config = load_config(
        {
            "env": {"id": "CartPole-v1"},
            "algorithm": {"name": "ppo", "minibatch_size": 16, "hidden": [16]},
            "rollout": {"shards": 1, "envs_per_shard": 4, "steps": 8},
            "stop": {"env_steps": 320},
        }
    )
    policy = make_policy(Settings(name="ppo", hidden=(16,)), describe_env(config.env))
    learner = Learner(config, policy, None)
    ppo = make_ppo(spec=policy.network.spec)
    fragments = [roll(ppo, random_reward, seed=k) for k in range(4)]
    for k in range(2):
        learner.update(k, 32 * k, fragments[k])

    again = Learner(config, policy, through_a_checkpoint(learner.state(), tmp_path))

    assert (again.version, again.weights().version) == (2, 2)
    for k in range(2, 4):
        left, right = learner.update(k, 32 * k, fragments[k]), again.update(k, 32 * k, fragments[k])
        assert left[0].version == right[0].version == k + 1
        assert same(left[0].vector, right[0].vector)
        assert {**left[1], "learn_s": 0.0} == {**right[1], "learn_s": 0.0}


def test_an_update_is_a_function_of_seed_and_iteration_alone() -> None:
    def update(seed: int = 1, iteration: int = 0, around: int = 0) -> bytes:
        torch.manual_seed(around)
        np.random.seed(around)  # noqa: NPY002
        start = make_ppo()
        ppo = make_ppo(seed)
        ppo.load_state(start.state())
        ppo.update([roll(start, random_reward)], iteration, 0.0)
        return ppo.weights().tobytes()

    assert update() == update(around=99)
    assert len({update(), update(seed=2), update(iteration=1)}) == 3


def test_the_seed_makes_the_first_weights() -> None:
    assert same(make_ppo(1).weights(), make_ppo(1).weights())
    assert not same(make_ppo(1).weights(), make_ppo(2).weights())
    assert np.abs(probability(make_ppo(1), 0) - 0.25) < 0.01  # nearly even at the start


def test_fragments_may_be_read_only_and_are_left_as_they_were() -> None:
    ppo, other = make_ppo(), make_ppo()
    fragment = roll(ppo, random_reward, ends=0.3)
    arrays = [*(v for v in vars(fragment).values() if isinstance(v, np.ndarray)), *fragment.extras.values()]
    kept = [array.copy() for array in arrays]
    other.update([fragment], 0, 0.0)
    assert all(same(a, b) for a, b in zip(arrays, kept, strict=True))
    for array in arrays:
        array.flags.writeable = False
    ppo.update([fragment], 0, 0.0)
    assert same(ppo.weights(), other.weights())


def test_weights_that_were_handed_out_do_not_change() -> None:
    ppo = make_ppo()
    weights = ppo.weights()
    kept = weights.copy()
    ppo.update([roll(ppo, random_reward)], 0, 0.0)
    assert same(weights, kept)
    assert not same(ppo.weights(), kept)
    assert weights.dtype == np.float32


# --- spaces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spaces", "changes", "parts"),
    [
        ({"obs": "text"}, {}, [TWIN, "Text", "gymnasium.wrappers.TransformObservation"]),
        ({"action": "text"}, {}, [TWIN, "Text", "gymnasium.wrappers.TransformAction"]),
        ({}, {"body": "cnn"}, ["algorithm.body is 'cnn'", "[2]", "algorithm.body=auto"]),
        ({"obs": "small image"}, {"body": "cnn"}, ["at least 36 pixels", "[3, 20, 84]"]),
        ({"action": "box"}, {"action_probs": [0.5, 0.5]}, ["algorithm.action_probs", TWIN, "Leave it out"]),
        ({}, {"action_probs": [0.5, 0.2, 0.3]}, ["algorithm.action_probs has 3 numbers", "2 actions"]),
        ({"action": "unbounded"}, {"squash": True}, ["algorithm.squash", TWIN, "algorithm.squash=false"]),
    ],
)
def test_spaces_that_ppo_cannot_take_are_refused(
    spaces: dict[str, Any], changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        make_policy(Settings.model_validate({"name": "ppo", **changes}), describe_env(settings(TWIN, **spaces)))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_the_network_fits_the_spaces() -> None:
    plain = make_policy(Settings(name="ppo", hidden=(5,), activation="relu"), describe_env(settings("LunarLander-v3")))
    assert plain.network.spec == spec_of((8,), 4, (5,), (), "relu", 1.0)
    pixels = make_policy(Settings(name="ppo", hidden=(512,)), describe_env(settings(TWIN, obs="image")))
    assert len(pixels.network.spec.encoders[0].conv) == 3
    assert pixels.network.spec.encoders[0].scale == pytest.approx(1 / 255)
    assert pixels.network.spec.parameters == 1_685_154  # of Mnih et al. 2015, for 2 actions
    flat = make_policy(Settings(name="ppo", body="mlp"), describe_env(settings(TWIN, obs="image")))
    assert flat.network.spec.encoders[0].conv == ()


def test_images_are_learned_from_through_convolutions() -> None:
    spec = spec_of((1, 12, 12), 2, (8,), ((4, 4, 2),), "relu", 1 / 255)
    ppo = make_ppo(spec=spec, lr=3e-3, minibatch_size=32)

    def bright(obs: Array, action: Array) -> Array:
        paid: Array = (action == (obs.mean(axis=(2, 3, 4)) > 127)).astype(float)
        return paid

    rng = np.random.default_rng(0)
    scores = []
    for k in range(30):
        policy = acting(ppo)
        level = rng.choice([20, 220], size=(9, 8, 1, 1, 1))
        obs = (level + rng.integers(0, 30, (9, 8, 1, 12, 12))).astype(np.uint8)
        taken = [policy.act(obs[t], rng.random(8)) for t in range(8)]
        action = np.stack([a for a, _ in taken])
        reward = bright(obs[:-1].astype(np.float64), action)
        scores.append(reward.mean())
        everywhere = np.ones((8, 8), bool)
        log_prob = np.stack([e["log_prob"] for _, e in taken])
        final = np.zeros((64, 1, 12, 12), np.uint8)
        fragment = Fragment(0, k, k, obs, action, reward, everywhere, ~everywhere, final, {"log_prob": log_prob})
        ppo.update([fragment], k, 0.0)
    assert np.mean(scores[-3:]) > 0.9


def test_a_central_critic_sees_the_state_and_the_actor_does_not() -> None:
    """Values change with the state alone; log-probabilities and the weights that travel know nothing of it."""
    env = {"id": "mpe2/simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 9}}
    config = load_config({"env": env, "algorithm": {"name": "ppo", "critic": "central", "hidden": [16], "epochs": 2}})
    info = describe_env(config.env)
    policy = make_policy(config.algorithm, info)
    central, own = policy.obs_layout.central, load_config({"env": env, "algorithm": {"name": "ppo", "hidden": [16]}})
    assert central is not None and central.shape == (24,)
    assert policy.shapes() == make_policy(own.algorithm, info).shapes()
    policy.load(initial_weights(config.algorithm, policy, 1))
    runner = Runner(config.env, RolloutSettings(shards=1, envs_per_shard=3, steps=20), 1, policy)
    _, fragment = runner.rollout(0, 0, Weights(0, initial_weights(config.algorithm, policy, 1)), None)
    both = fragment.obs.reshape(21, 3, 2, -1)
    seen = next(part for part in policy.obs_layout.parts if part.path == ("observation",)).of(both)
    assert (central.of(both) == seen.reshape(21, 3, 1, 24)).all()  # mpe2's state is what all see, side by side
    ends = central.of(fragment.final_obs).reshape(-1, 2, 24)
    assert len(ends) == 6 and (ends[:, 0] == ends[:, 1]).all()
    learner = PPO(config.algorithm, policy, 1, CPU)
    other = fragment.obs.copy()
    central.of(other)[...] += 1
    action = torch.tensor(fragment.raw_action).flatten()
    before, after = (torch.tensor(obs[:-1]).flatten(0, 1) for obs in (fragment.obs, other))
    assert (learner.values(torch.tensor(fragment.obs)) != learner.values(torch.tensor(other))).all()
    assert (learner.log_prob(before, action) == learner.log_prob(after, action)).all()
    metrics = learner.update([fragment], 0, 0.0)
    assert math.isfinite(metrics["value_loss"])


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ("classic/tictactoe_v3", {}, "tells none: its state"),
        ("CartPole-v1", {}, "needs a state of all agents"),
        ("mpe2/simple_spread_v3", {"shared_body": True}, "set algorithm.shared_body=false"),
        ("mpe2/simple_spread_v3", {"network": "own_nets:Small"}, "set algorithm.network=null"),
    ],
)
def test_a_central_critic_that_cannot_be(env: str, changes: dict[str, Any], message: str) -> None:
    def planned() -> None:
        config = load_config({"env": {"id": env}, "algorithm": {"name": "ppo", "critic": "central", **changes}})
        make_policy(config.algorithm, describe_env(config.env))

    with pytest.raises(UserError, match=message):
        planned()
