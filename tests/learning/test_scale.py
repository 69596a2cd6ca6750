"""Value targets of any size become numbers of order one, and come back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distrl.learning.scale import Scale


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (5000, 1), (-1e5, 3), (0, 1e-4), (1e-3, 1e-5), (0, 1e6)])
def test_the_critic_learns_targets_of_order_one_whatever_the_size_of_returns(mean: float, deviation: float) -> None:
    scale, rng = Scale(), np.random.default_rng(0)
    for _ in range(100):
        target = rng.normal(mean, deviation, (32, 16))
        scale.update(target)
    scaled = scale.apply(target)
    assert scaled.dtype == np.float32
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=0.2), pytest.approx(1, rel=0.1))
    assert np.abs(scale.undo(scaled) - target).max() < 1e-5 * deviation


def test_the_scale_is_that_of_the_exponentially_weighted_targets() -> None:
    """Of all of them in one heap, where a target of n iterations ago counts (1 - RATE)^n times."""
    scale, rng = Scale(), np.random.default_rng(0)
    heap = [rng.normal(rng.normal(), rng.random(), 50) for _ in range(30)]
    for target in heap:
        scale.update(target)
    weights = np.repeat((1 - Scale.RATE) ** np.arange(len(heap))[::-1], 50)
    mean = np.average(np.concatenate(heap), weights=weights)
    variance = np.average((np.concatenate(heap) - mean) ** 2, weights=weights)
    zero, one = scale.undo(np.array([0.0, 1.0], np.float32))
    assert zero == pytest.approx(mean)
    assert one - zero == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("constant", [0.0, 1e-6, -5000.0])
def test_targets_that_never_differ_are_scaled_to_zero_and_back(constant: float) -> None:
    scale = Scale()
    for _ in range(100):
        scale.update(np.full((4, 4), constant))
    assert (scale.apply(np.full(3, constant)) == 0).all()
    assert scale.undo(np.zeros(3, np.float32)) == pytest.approx(constant)
    assert np.isfinite(scale.apply(np.full(3, constant + 1))).all()
    scale.update(np.array([constant - 1, constant + 1]))  # and at once there is something to tell apart
    assert scale.undo(np.ones(1, np.float32)) - scale.undo(np.zeros(1, np.float32)) == pytest.approx(
        0.05**0.5, rel=0.01
    )
