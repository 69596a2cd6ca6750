"""The maths, against slower or other ways to the same number, and against values known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from distrl.learning.losses import (
    approximate_kl,
    clipped_surrogate,
    explained_variance,
    gae,
    greedy_value,
    huber_loss,
    huber_slope,
    munchausen_bonus,
    normalised,
    policy_gradient,
    td_target,
    value_loss,
    vtrace,
)
from distrl.types import Array

# --- gae --------------------------------------------------------------------------------------------------------


def advantage_by_definition(
    reward: Array, value: Array, final: Array, terminated: Array, ended: Array, gamma: float, lam: float
) -> Array:
    """One column, [T]: the exponentially weighted average of the n-step advantages of each step's episode (equation 16).

    `value` is [T + 1], of the states that were acted in; `final` [T] of the last states of episodes.
    """
    advantage = np.zeros(len(reward))
    for t in range(len(reward)):
        last = next((i for i in range(t, len(reward)) if ended[i]), len(reward) - 1)  # of this episode, in this batch
        n_step = []
        for end in range(t, last + 1):
            if terminated[end]:
                after = 0.0
            elif ended[end]:
                after = final[end]
            else:
                after = value[end + 1]
            rewards = sum(gamma ** (i - t) * reward[i] for i in range(t, end + 1))
            n_step.append(rewards + gamma ** (end - t + 1) * after - value[t])
        # (1 - lambda)(A1 + lambda A2 + ...): all weight that is left falls on the longest one
        weights = [(1 - lam) * lam**n for n in range(len(n_step))]
        weights[-1] = lam ** (len(n_step) - 1)
        advantage[t] = sum(w * a for w, a in zip(weights, n_step, strict=True))
    return advantage


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_gae_is_the_weighted_average_of_n_step_advantages(gamma: float, lam: float) -> None:
    rng = np.random.default_rng(round(10 * gamma + 100 * lam))
    steps, copies = 23, 12
    reward = rng.normal(size=(steps, copies))
    value = rng.normal(size=(steps + 1, copies)).astype(np.float32)
    final = rng.normal(size=(steps, copies)).astype(np.float32)
    chance = np.linspace(0, 1, copies)  # from no end at all to an end in each step
    ended = rng.random((steps, copies)) < chance
    terminated = ended & (rng.random((steps, copies)) < 0.5)
    next_value = value[1:].copy()
    next_value[ended] = final[ended]
    next_value[terminated] = 0

    found = gae(reward, value[:-1], next_value, ended, gamma, lam)

    assert found.dtype == np.float32
    assert (terminated.sum() > 20) and (ended & ~terminated).sum() > 20
    for i in range(copies):
        wanted = advantage_by_definition(
            reward[:, i], value[:, i], final[:, i], terminated[:, i], ended[:, i], gamma, lam
        )
        np.testing.assert_allclose(found[:, i], wanted, rtol=1e-5, atol=1e-5)


def test_gae_with_lambda_1_is_the_discounted_return_minus_the_value() -> None:
    steps, gamma = 10, 0.9
    value = np.linspace(-1, 1, steps).astype(np.float32)[:, None]
    ended = np.zeros((steps, 1), bool)
    ended[-1] = True
    next_value = np.append(value[1:], [[0.0]], axis=0)  # terminated at the end
    found = gae(np.ones((steps, 1)), value, next_value, ended, gamma, 1.0)
    returns = (1 - gamma ** np.arange(steps, 0, -1)) / (1 - gamma)  # a geometric sum
    np.testing.assert_allclose(found[:, 0], returns - value[:, 0], rtol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_a_cut_in_an_endless_stream_of_rewards_gives_no_advantage_to_the_true_value(lam: float) -> None:
    gamma, reward = 0.99, 2.0
    true = np.full((8, 3), reward / (1 - gamma))
    ended = np.zeros((8, 3), bool)
    ended[3, 0] = ended[7, 1] = True  # truncated: next_value stays the true value
    found = gae(np.full((8, 3), reward), true, true, ended, gamma, lam)
    np.testing.assert_allclose(found, 0, atol=1e-4)


def test_nothing_flows_back_over_an_end() -> None:
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 9, 2))
    ended = np.zeros((9, 2), bool)
    ended[4, 0] = True
    before = gae(reward, value, next_value, ended, 0.99, 0.95)
    reward[6, :] += 100
    changed = gae(reward, value, next_value, ended, 0.99, 0.95) != before
    assert changed[:, 0].tolist() == [False] * 5 + [True] * 2 + [False] * 2
    assert changed[:, 1].tolist() == [True] * 7 + [False] * 2


# --- vtrace -----------------------------------------------------------------------------------------------------


def test_vtrace_of_the_policys_own_steps_is_gae() -> None:
    rng = np.random.default_rng(3)
    reward, value, next_value = rng.normal(size=(3, 12, 4))
    ended = rng.random((12, 4)) < 0.2
    found = vtrace(np.zeros((12, 4)), reward, value, next_value, ended, 0.97, 0.9)
    assert (found == gae(reward, value, next_value, ended, 0.97, 0.9)).all()


def test_vtrace_is_the_sum_of_the_paper() -> None:
    """v_s = V(x_s) + sum_t gamma^(t-s) (c_s ... c_{t-1}) rho_t delta_t, term by term; episodes end where they do."""
    rng = np.random.default_rng(4)
    steps, gamma, lam = 9, 0.95, 0.8
    log_rho, reward, value, next_value = rng.normal(size=(4, steps))
    ended = np.zeros(steps, bool)
    ended[5] = True
    rho = [min(1.0, math.exp(x)) for x in log_rho]
    found = vtrace(*(x[:, None] for x in (log_rho, reward, value, next_value, ended)), gamma, lam)[:, 0]  # type: ignore[arg-type]
    for s in range(steps):
        wanted, product = 0.0, 1.0
        for t in range(s, steps):
            wanted += product * rho[t] * (reward[t] + gamma * next_value[t] - value[t])
            if ended[t]:
                break
            product *= gamma * lam * rho[t]
        assert found[s] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


# --- the clipped surrogate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 1.0, -1.1, -1.1),  # inside the range
        (1.5, 1.0, -1.2, 0.0),  # already likelier by enough: no more
        (0.5, 1.0, -0.5, -0.5),  # less likely, though better: back, unclipped
        (1.5, -1.0, 1.5, 1.5),  # likelier, though worse: back, unclipped
        (0.5, -1.0, 0.8, 0.0),  # already less likely by enough
        (7.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_and_its_gradient_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    found, slope = clipped_surrogate(torch.tensor([math.log(ratio)]), torch.tensor([advantage]), 0.2)
    assert -found.item() == pytest.approx(loss, abs=1e-6)
    assert slope.item() == pytest.approx(gradient, abs=1e-6)


def test_clipped_surrogate_is_never_better_than_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantage = torch.randn(2, 500, generator=generator)
    plain = log_ratio.exp() * advantage
    assert (clipped_surrogate(log_ratio, advantage, 0.1)[0] <= plain + 1e-6).all()
    torch.testing.assert_close(clipped_surrogate(log_ratio, advantage, 1e9)[0], plain)


@pytest.mark.parametrize("size", [2, 8, 24, 100])
def test_advantages_are_normalised_in_each_minibatch(size: int) -> None:
    advantage = torch.randn(24, generator=torch.Generator().manual_seed(1)) * 3 + 5
    wanted = []
    for part in advantage.split(size):
        values = part.tolist()
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
        wanted += [(x - mean) / (deviation + 1e-8) for x in values]
    assert normalised(advantage, size).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


# --- the value loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "old", "clip", "loss", "gradient"),
    [
        (3.0, 1.0, 0.0, None, 2.0, 2.0),
        (3.0, 1.0, 0.0, 0.5, 2.0, 2.0),  # clipped: 0.5, which is nearer; the larger error counts
        (3.0, 5.0, 2.5, 0.25, 2.53125, 0.0),  # clipped: 2.75, error 2.25: it went far enough
        (3.0, 5.0, 2.9, 0.25, 2.0, -2.0),  # inside the range
        (1.0, 1.0, 1.0, 0.1, 0.0, 0.0),
    ],
)
def test_value_loss_and_its_gradient_by_hand(
    value: float, target: float, old: float, clip: float | None, loss: float, gradient: float
) -> None:
    found, slope = value_loss(torch.tensor([value]), torch.tensor([target]), torch.tensor([old]), clip)
    assert 0.5 * found.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)


# --- gradients of losses ----------------------------------------------------------------------------------------


def mean_of(weight: float, each: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss that a gradient is of, which is made of what each step has."""
    return weight * each.mean(), gradient


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, _: mean_of(-1, *clipped_surrogate(x, y, 0.2)),
        lambda x, y, _: mean_of(-1, *policy_gradient(x, y)),
        lambda x, y, z: mean_of(0.5, *value_loss(x, y, z, None)),
        lambda x, y, z: mean_of(0.5, *value_loss(x, y, z, 0.3)),
        lambda x, y, _: (huber_loss(x, y, None).sum(), huber_slope(x, y, None)),
        lambda x, y, _: (huber_loss(x, y, 0.7).sum(), huber_slope(x, y, 0.7)),
    ],
)
def test_gradients_are_those_of_autograd(loss: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    x, y, z = torch.randn(3, 400, generator=torch.Generator().manual_seed(3)).double()
    found, gradient = loss(x.requires_grad_(), y, z)
    (wanted,) = torch.autograd.grad(found, x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-15)
    assert wanted.std() > 0


@pytest.mark.parametrize("delta", [0.3, 1.0, None])
def test_huber_loss_is_that_of_torch(delta: float | None) -> None:
    q, target = torch.randn(2, 100, generator=torch.Generator().manual_seed(4))
    mse = 0.5 * functional.mse_loss(q, target, reduction="none")
    wanted = mse if delta is None else functional.huber_loss(q, target, reduction="none", delta=delta)
    torch.testing.assert_close(huber_loss(q, target, delta), wanted)


# --- KL, explained variance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_approximate_kl_is_positive_and_right_on_average(seed: int) -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)).double()
    behaviour, policy = Categorical(logits=logits[0]), Categorical(logits=logits[1])
    actions = torch.arange(6)
    log_ratio = policy.log_prob(actions) - behaviour.log_prob(actions)  # type: ignore[no-untyped-call]
    samples = torch.stack([approximate_kl(r[None]) for r in log_ratio])
    assert (samples >= 0).all()
    assert (behaviour.probs * samples).sum().item() == pytest.approx(kl_divergence(behaviour, policy).item())
    assert approximate_kl(log_ratio).item() == pytest.approx(samples.mean().item())
    assert approximate_kl(torch.zeros(3)).item() == 0


def test_explained_variance() -> None:
    target = np.random.default_rng(0).normal(3, 2, (16, 8)).astype(np.float32)
    assert explained_variance(target, target) == 1
    assert explained_variance(target + 5, target) == pytest.approx(1)  # a constant error explains all that varies
    assert explained_variance(np.full_like(target, 9), target) == pytest.approx(0, abs=1e-5)
    assert explained_variance(-target, target) == pytest.approx(-3)  # the error is twice the target
    assert explained_variance(target / 2, target) == pytest.approx(0.75)
    assert math.isnan(explained_variance(target, np.ones_like(target)))


# --- shapes -----------------------------------------------------------------------------------------------------

B, COLUMN = torch.zeros(4), torch.zeros(4, 1)
Q = torch.zeros(4, 3)
TN, T1 = np.zeros((4, 2)), np.zeros((4, 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: gae(TN, TN, T1, TN.astype(bool), 0.9, 0.9),
        lambda: gae(TN, TN, TN, T1.astype(bool), 0.9, 0.9),
        lambda: clipped_surrogate(B, COLUMN, 0.2),
        lambda: clipped_surrogate(COLUMN, B, 0.2),
        lambda: value_loss(COLUMN, B, B, None),
        lambda: value_loss(B, COLUMN, B, None),
        lambda: value_loss(B, B, COLUMN, 0.2),
        lambda: policy_gradient(B, COLUMN),
        lambda: huber_loss(B, COLUMN, None),
        lambda: explained_variance(TN, T1),
        lambda: td_target(B, B, COLUMN),
        lambda: td_target(B, COLUMN, B),
        lambda: greedy_value(Q, Q[:3]),
        lambda: munchausen_bonus(Q, torch.zeros(3, dtype=torch.int64), 0.9, 0.2, -1.0),
        lambda: munchausen_bonus(Q, torch.zeros(4, 1, dtype=torch.int64), 0.9, 0.2, -1.0),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        call()
