"""The maths of the algorithms: pure functions, in the papers' notation. Floor 1.

What runs backwards in time (`gae`) is NumPy: T small steps are cheapest there. What is differentiated is torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distrl.types import Array

if TYPE_CHECKING:
    from torch import Tensor


def gae(reward: Array, value: Array, next_value: Array, ended: Array, gamma: float, gae_lambda: float) -> Array:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equations 11 and 16).

        delta_t = r_t + gamma V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lambda (1 - ended_t) A_{t+1}

    s'_t is the *true* next observation: `next_value` must be 0 where the step terminated, the value of the final
    observation where it was truncated, and the value of the next observation elsewhere. An end of either kind
    stops the sum, since the next row belongs to another episode.

    Args:
        reward, value, next_value: [T, ...] float
        ended: [T, ...] bool, terminated or truncated
    Returns:
        advantages [T, ...] float32
    """
    if not reward.shape == value.shape == next_value.shape == ended.shape:
        raise ValueError(f"shapes differ: {reward.shape}, {value.shape}, {next_value.shape}, {ended.shape}")
    delta = (reward + gamma * next_value - value).astype(np.float32)
    decay = (gamma * gae_lambda * ~ended).astype(np.float32)
    advantage = np.empty_like(delta)
    running = np.zeros(delta.shape[1:], np.float32)
    for t in reversed(range(len(delta))):
        running = delta[t] + decay[t] * running
        advantage[t] = running
    return advantage


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's policy loss (Schulman et al. 2017, arXiv:1707.06347, equation 7), to be minimised; a scalar.

    L = -E[ min(r A, clip(r, 1 - epsilon, 1 + epsilon) A) ],   r = pi(a|s) / pi_behaviour(a|s) = exp(log_ratio)
    """
    ratio = log_ratio.exp()
    return -(ratio * advantage).minimum(ratio.clamp(1 - epsilon, 1 + epsilon) * advantage).mean()


def value_loss(value: Tensor, target: Tensor, old_value: Tensor, clip: float | None) -> Tensor:
    """Half the mean squared error of V; with `clip`, V's change is clipped as PPO clips the ratio; a scalar.

    The clipped form is the one of the PPO reference code: E[max((V - R)^2, (V_old + clip(V - V_old) - R)^2)] / 2.
    """
    error = (value - target).square()
    if clip is not None:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = error.maximum((clipped - target).square())
    return 0.5 * error.mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(pi_behaviour || pi) from samples of pi_behaviour: E[(r - 1) - log r] >= 0 (Schulman 2020, "k3"); a scalar."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def explained_variance(prediction: Array, target: Array) -> float:
    """1 - Var(target - prediction) / Var(target): 1 is perfect, 0 is no better than a constant; NaN where Var is 0."""
    variance = float(np.var(target))
    return float("nan") if variance == 0 else 1 - float(np.var(target - prediction)) / variance
