"""Both halves of every distribution of actions, against torch.distributions, by sampling, and against each other."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import distributions as oracle
from toys import same

from distrl.acting.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
    describe,
    from_description,
)
from distrl.learning.distributions import bind
from distrl.types import Array

CATEGORICAL = Categorical(5, start=-2)
MULTI = MultiCategorical((3, 2, 6), (0, 4, -1), (3,))
EVEN = MultiCategorical((3, 3, 3, 3), (0, 1, 2, 3), (2, 2), "int32")
BITS = Bernoulli((4,))
GAUSSIAN = DiagonalGaussian((3,), (-2.0, None, 0.0), (2.0, None, None), log_std_init=-0.5)
WIDE = DiagonalGaussian((2, 2), (-1.0, 0.0, -3.0, 10.0), (1.0, 1.0, 5.0, 90.0), "float64", state_dependent=True)
SQUASHED = DiagonalGaussian((2,), (-1.0, 0.0), (1.0, 10.0), squash=True)
PRODUCT = Product((GAUSSIAN, CATEGORICAL, BITS, MULTI, WIDE))
WHOLE = Product((MULTI, CATEGORICAL))
CASES: dict[str, Distribution] = {
    "categorical": CATEGORICAL,
    "multi": MULTI,
    "even": EVEN,
    "bits": BITS,
    "gaussian": GAUSSIAN,
    "wide": WIDE,
    "squashed": SQUASHED,
    "product": PRODUCT,
    "whole": WHOLE,
}
MASKED = {name: CASES[name] for name in ("categorical", "multi", "even", "product", "whole")}
every = pytest.mark.parametrize("name", CASES)
every_and_masked = pytest.mark.parametrize(
    ("name", "masked"), [*((name, False) for name in CASES), *((name, True) for name in MASKED)]
)


def rows(distribution: Distribution, count: int, seed: int = 0) -> Array:
    """Rows of parameters: what is free is the same in each of them."""
    rng = np.random.default_rng(seed)
    params = rng.normal(size=(count, distribution.outputs + distribution.free)).astype(np.float32)
    params[:, distribution.outputs :] = params[0, distribution.outputs :]
    return params


def masks(distribution: Distribution, count: int, seed: int = 0) -> Array:
    """Random masks in which every group has a choice."""
    rng = np.random.default_rng(seed)
    columns = []
    for size in distribution.choices:
        allowed = rng.random((count, size)) < 0.5
        allowed[np.arange(count), rng.integers(size, size=count)] = True
        columns.append(allowed)
    return np.concatenate(columns, axis=1)


def sample(distribution: Distribution, params: Array, seed: int = 1, mask: Array | None = None) -> tuple[Array, Array]:
    noise = distribution.draw(np.random.default_rng(seed), 1, len(params))[0]
    return distribution.sample(params.copy(), noise, mask)


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(array)


def parts_of(distribution: Distribution) -> list[Distribution]:
    return list(distribution.parts) if isinstance(distribution, Product) else [distribution]


def oracles(distribution: Distribution, params: Array, mask: Array | None = None) -> list[Any]:
    """torch.distributions for each component of a raw action, made by hand from the meaning of a row."""
    found: list[Any] = []
    head, free, masked = 0, distribution.outputs, 0
    for part in parts_of(distribution):
        own = np.concatenate([params[:, head : head + part.outputs], params[:, free : free + part.free]], axis=1)
        head, free = head + part.outputs, free + part.free
        if isinstance(part, Bernoulli):
            found += [oracle.Bernoulli(logits=tensor(own[:, d])) for d in range(own.shape[1])]
        elif isinstance(part, DiagonalGaussian):
            for d in range(part.size):
                log_std = tensor(own[:, part.size + d])
                mean, std = tensor(own[:, d]), log_std.clamp(max=2.0 if part.state_dependent else 99.0).exp()
                normal = oracle.Normal(mean, std)
                tanh = oracle.TanhTransform(cache_size=1)
                found.append(oracle.TransformedDistribution(normal, [tanh]) if part.squash else normal)
        else:
            at = 0
            for size in part.choices:
                probs = tensor(own[:, at : at + size]).softmax(1)
                if mask is not None:
                    probs = probs * tensor(mask[:, masked : masked + size])
                found.append(oracle.Categorical(probs=probs / probs.sum(1, keepdim=True)))
                at, masked = at + size, masked + size
    return found


def seen(distribution: Distribution, raw: Array) -> list[torch.Tensor]:
    """The raw action's components, as the oracles count them."""
    columns = raw.reshape(len(raw), -1).T
    found, at = [], 0
    for part in parts_of(distribution):
        width = int(np.prod(part.raw[0]))
        own = tensor(columns[at : at + width].copy())
        at += width
        if isinstance(part, Categorical | MultiCategorical):
            own = (own - torch.tensor(part.start).reshape(-1, 1)).long()
        elif isinstance(part, DiagonalGaussian) and part.squash:
            own = own.double().tanh()
        found += list(own.float() if own.dtype in (torch.int8, torch.float32) else own)
    return found


# --- log_prob, entropy, KL --------------------------------------------------------------------------------------


@every_and_masked
def test_log_prob_is_that_of_torch_in_both_halves(name: str, masked: bool) -> None:
    distribution = CASES[name]
    params = rows(distribution, 200)
    mask = masks(distribution, 200) if masked else None
    raw, log_prob = sample(distribution, params, mask=mask)
    assert (raw.shape[1:], str(raw.dtype)) == distribution.raw
    components = zip(oracles(distribution, params, mask), seen(distribution, raw), strict=True)
    wanted = sum(d.log_prob(x).double() for d, x in components).numpy()
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(log_prob, wanted, rtol=1e-5, atol=2e-5)
    bound = bind(distribution, tensor(params), None if mask is None else tensor(mask))
    np.testing.assert_allclose(bound.log_prob(tensor(raw)), wanted, rtol=1e-5, atol=2e-5)
    assert log_prob.dtype == np.float32
    assert bound.log_prob(tensor(raw)).dtype == bound.gradient(tensor(raw), torch.ones(200), 0.1).dtype == torch.float32


@every_and_masked
def test_entropy_and_kl_are_those_of_torch(name: str, masked: bool) -> None:
    distribution = CASES[name]
    left, right = rows(distribution, 50), rows(distribution, 50, seed=7)
    mask = masks(distribution, 50) if masked else None
    allowed = None if mask is None else tensor(mask)
    one, other = bind(distribution, tensor(left), allowed), bind(distribution, tensor(right), allowed)
    pairs = list(zip(oracles(distribution, left, mask), oracles(distribution, right, mask), strict=True))
    if name == "squashed":
        pairs = [(p.base_dist, q.base_dist) for p, q in pairs]  # KL is the same for u and tanh(u)
    else:
        entropy = sum(p.entropy() for p, _ in pairs)
        torch.testing.assert_close(one.entropy(), entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.kl(other), sum(oracle.kl_divergence(p, q) for p, q in pairs), rtol=1e-4, atol=1e-5)
    assert one.kl(one).abs().max() < 1e-6


def test_the_entropy_of_a_squashed_gaussian_is_that_of_its_samples() -> None:
    for log_std in (-1.5, -0.5, 0.5):
        row = np.array([[0.3, -1.0, log_std, log_std]], np.float32)
        _, log_prob = sample(SQUASHED, np.repeat(row, 200_000, axis=0))
        assert bind(SQUASHED, tensor(row)).entropy().item() == pytest.approx(-log_prob.mean(), abs=0.015)


@every
def test_log_prob_is_a_density(name: str) -> None:
    """E[q(a) / p(a)] = 1 for a ~ p and any q: checks normalisation and sampling at once."""
    distribution = CASES[name]
    row, other = rows(distribution, 1), rows(distribution, 1)
    other[:, : distribution.outputs] += 0.3 * rows(distribution, 1, seed=3)[:, : distribution.outputs]
    count = 100_000
    raw, log_prob = sample(distribution, np.repeat(row, count, axis=0))
    likelihood = bind(distribution, tensor(other).expand(count, -1)).log_prob(tensor(raw)).numpy()
    ratio = np.exp(likelihood.astype(np.float64) - log_prob)
    assert ratio.std() > 0.01
    assert ratio.mean() == pytest.approx(1.0, abs=5 * ratio.std() / count**0.5)


# --- sampling ---------------------------------------------------------------------------------------------------


@every
def test_samples_have_the_moments_of_torchs(name: str) -> None:
    distribution = CASES[name]
    row, count = rows(distribution, 1, seed=4), 100_000
    raw, _ = sample(distribution, np.repeat(row, count, axis=0))
    for d, x in zip(oracles(distribution, row), seen(distribution, raw), strict=True):
        if isinstance(d, oracle.Categorical):
            expected = count * d.probs[0].numpy()
            found = np.bincount(x, minlength=len(expected))
            assert (
                (found - expected) ** 2 / expected
            ).sum() < 22  # up to 5 degrees of freedom: beyond the 0.999 quantile
        else:
            drawn = d.sample((count,)).double()
            error = (x.double().var() / count + drawn.var() / count).sqrt().item()
            assert x.double().mean().item() == pytest.approx(drawn.mean().item(), abs=4 * error)
            assert x.double().std().item() == pytest.approx(drawn.std().item(), rel=0.02)


@every
def test_components_are_drawn_independently(name: str) -> None:
    distribution = CASES[name]
    raw, _ = sample(distribution, np.repeat(rows(distribution, 1), 50_000, axis=0))
    columns = raw.reshape(len(raw), -1).T
    if len(columns) > 1:
        correlation = np.corrcoef(columns.astype(np.float64)) - np.eye(len(columns))
        assert np.abs(correlation).max() < 0.03


@every
def test_noise_is_drawn_for_a_whole_fragment_and_rows_do_not_mix(name: str) -> None:
    distribution = CASES[name]
    noise = distribution.draw(np.random.default_rng(0), 3, 7)
    assert noise.shape == (3, 7, *distribution.raw[0])
    params = rows(distribution, 7)
    raw, log_prob = distribution.sample(params.copy(), noise[2])
    alone, alone_log_prob = distribution.sample(params[3:4].copy(), noise[2, 3:4])
    assert same(alone[0], raw[3])
    np.testing.assert_allclose(alone_log_prob[0], log_prob[3], rtol=1e-6)


@every
def test_the_mode_is_where_torch_has_its_own(name: str) -> None:
    distribution = CASES[name]
    params = rows(distribution, 100)
    mode = distribution.mode(params.copy())
    assert (mode.shape[1:], str(mode.dtype)) == distribution.raw
    for d, x in zip(oracles(distribution, params), seen(distribution, mode), strict=True):
        wanted = d.base_dist.mode.tanh() if isinstance(d, oracle.TransformedDistribution) else d.mode
        np.testing.assert_allclose(x, wanted, atol=1e-6)


def test_an_untrained_row_has_the_probabilities_and_deviations_asked_for() -> None:
    row = Categorical(3, probs=(0.7, 0.2, 0.1)).initial()[None].astype(np.float32)
    np.testing.assert_allclose(bind(Categorical(3), tensor(row)).log_prob(torch.tensor([0])).exp(), 0.7, rtol=1e-5)
    for gaussian in (GAUSSIAN, replace(GAUSSIAN, state_dependent=True)):
        assert gaussian.initial().tolist() == [0, 0, 0, -0.5, -0.5, -0.5]
    assert PRODUCT.initial()[PRODUCT.outputs :].tolist() == [-0.5] * 3
    assert len(PRODUCT.initial()) == PRODUCT.outputs + PRODUCT.free


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 1e-9, np.nextafter(1.0, 0.0)])
def test_what_is_forbidden_is_never_done(name: str, noise: float) -> None:
    distribution = MASKED[name]
    params, mask = 30 * rows(distribution, 500), masks(distribution, 500)
    drawn = np.full((500, *distribution.raw[0]), noise)
    for raw in (distribution.sample(params.copy(), drawn, mask)[0], distribution.mode(params.copy(), mask)):
        chosen = [x for x in seen(distribution, raw) if x.dtype == torch.int64]
        groups = np.split(mask, np.cumsum(distribution.choices)[:-1], axis=1)
        assert len(chosen) == len(groups)
        for x, group in zip(chosen, groups, strict=True):
            assert group[np.arange(500), x].all()


@every_and_masked
@pytest.mark.parametrize("by_entropy", [0.0, -0.3])
def test_the_gradient_is_that_of_autograd(name: str, masked: bool, by_entropy: float) -> None:
    distribution = CASES[name]
    params = tensor(2 * rows(distribution, 60)).double().requires_grad_()
    mask = masks(distribution, 60) if masked else None
    raw = tensor(sample(distribution, params.detach().float().numpy(), mask=mask)[0])
    bound = bind(distribution, params, None if mask is None else tensor(mask))
    by_log_prob = torch.randn(60, generator=torch.Generator().manual_seed(1)).double()
    loss = (by_log_prob * bound.log_prob(raw)).sum() + by_entropy * bound.entropy().sum()
    (wanted,) = torch.autograd.grad(loss, params)
    found = bound.gradient(raw, by_log_prob, by_entropy)
    assert found.shape == params.shape
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert found.std() > 0


@pytest.mark.parametrize("name", MASKED)
def test_forbidden_choices_get_no_gradient_and_nothing_becomes_infinite(name: str) -> None:
    distribution = MASKED[name]
    params = tensor(rows(distribution, 20)).requires_grad_()
    mask = masks(distribution, 20)
    raw, _ = sample(distribution, params.detach().numpy(), mask=mask)
    bound = bind(distribution, params, tensor(mask))
    (
        bound.log_prob(tensor(raw)) + bound.entropy() + bound.kl(bind(distribution, params.detach() + 0.1))
    ).sum().backward()
    assert params.grad is not None
    assert torch.isfinite(params.grad).all()
    if name == "categorical":
        assert (params.grad[~tensor(mask)] == 0).all()
        assert (params.grad != 0).any()


def test_one_allowed_choice_is_certain() -> None:
    mask = np.zeros((1, 5), bool)
    mask[0, 3] = True
    raw, log_prob = sample(CATEGORICAL, rows(CATEGORICAL, 1), mask=mask)
    assert raw.tolist() == [3 - 2]
    assert log_prob.tolist() == [0.0]
    assert bind(CATEGORICAL, tensor(rows(CATEGORICAL, 1)), tensor(mask)).entropy().item() == 0


# --- what the env gets ------------------------------------------------------------------------------------------


def box(distribution: DiagonalGaussian) -> gym.spaces.Box:
    low = [-np.inf if x is None else x for x in distribution.low]
    high = [np.inf if x is None else x for x in distribution.high]
    dtype = np.dtype(distribution.dtype).type
    return gym.spaces.Box(
        np.array(low, dtype).reshape(distribution.shape), np.array(high, dtype).reshape(distribution.shape), dtype=dtype
    )


SPACES = {
    "categorical": [gym.spaces.Discrete(5, start=-2)],
    "multi": [gym.spaces.MultiDiscrete([3, 2, 6], start=[0, 4, -1])],
    "even": [gym.spaces.MultiDiscrete([[3, 3], [3, 3]], start=[[0, 1], [2, 3]], dtype=np.int32)],
    "bits": [gym.spaces.MultiBinary(4)],
    "gaussian": [box(GAUSSIAN)],
    "wide": [box(WIDE)],
    "squashed": [box(SQUASHED)],
}
SPACES["product"] = [SPACES[name][0] for name in ("gaussian", "categorical", "bits", "multi", "wide")]
SPACES["whole"] = [SPACES[name][0] for name in ("multi", "categorical")]


@every
def test_the_env_gets_actions_of_its_space(name: str) -> None:
    distribution = CASES[name]
    params = rows(distribution, 300)
    params[:, : distribution.outputs] *= 5
    raw, _ = sample(distribution, params)
    kept = raw.copy()
    for space, actions in zip(SPACES[name], distribution.env_actions(raw), strict=True):
        assert actions.dtype == space.dtype
        for action in actions:
            assert space.contains(action if action.ndim else np.int64(action)), action
    assert same(raw, kept)


def test_a_gaussian_counts_bounded_components_in_halves_of_their_range() -> None:
    raw = np.array([[0, 0, 0], [1, 1, 1], [-0.5, -3, 2], [9, 9, -9]], np.float32)
    (found,) = GAUSSIAN.env_actions(raw)
    np.testing.assert_allclose(found, [[0, 0, 0], [2, 1, 1], [-1, -3, 2], [2, 9, 0]])
    (squashed,) = SQUASHED.env_actions(np.array([[0, 0], [20, -20], [0.5, 0.5]], np.float32))
    np.testing.assert_allclose(squashed, [[0, 5], [1, 0], [np.tanh(0.5), 5 + 5 * np.tanh(0.5)]], rtol=1e-6)
    steps = DiagonalGaussian((1,), (0.0,), (4.0,), "int64")
    assert steps.env_actions(np.array([[-5], [0.2], [0.3], [7]], np.float32))[0].ravel().tolist() == [0, 2, 3, 4]


def test_an_action_that_needs_no_change_is_handed_on_as_it_is() -> None:
    for name in ("categorical", "multi", "bits"):
        raw, _ = sample(CASES[name], rows(CASES[name], 3))
        assert CASES[name].env_actions(raw)[0] is raw


# --- description ------------------------------------------------------------------------------------------------


@every
def test_a_distribution_survives_its_description_in_json(name: str) -> None:
    distribution = CASES[name]
    again = from_description(json.loads(json.dumps(describe(distribution), allow_nan=False)))
    assert again == distribution
    params = rows(distribution, 5)
    for left, right in zip(sample(distribution, params), sample(again, params), strict=True):
        assert same(left, right)
