"""The maths of the algorithms: pure functions, in the papers' notation.

What runs backwards in time (`gae`) is NumPy: T small steps are cheapest there. What is differentiated is torch; losses come
with their gradients, as formulas.
Every function of several arrays raises ValueError where their shapes differ: [B] against [B, 1] would become [B, B].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distrl.types import Array

if TYPE_CHECKING:
    from torch import Tensor


def _check_alike(*arrays: Array | Tensor) -> None:
    """Raise ValueError where shapes differ."""
    first = arrays[0].shape
    for array in arrays:
        if array.shape != first:
            raise ValueError(f"shapes differ: {', '.join(str(tuple(x.shape)) for x in arrays)}")


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
    _check_alike(reward, value, next_value, ended)
    return discounted_sum(reward + gamma * next_value - value, gamma * gae_lambda * ~ended)


def discounted_sum(delta: Array, decay: Array) -> Array:
    """A_t = delta_t + decay_t A_{t+1} [T, ...], in float32."""
    delta, decay = delta.astype(np.float32), decay.astype(np.float32)
    advantage = np.empty_like(delta)
    running = np.zeros(delta.shape[1:], np.float32)
    for t in reversed(range(len(delta))):
        running = delta[t] + decay[t] * running
        advantage[t] = running
    return advantage


def vtrace(
    log_rho: Array,
    reward: Array,
    value: Array,
    next_value: Array,
    ended: Array,
    gamma: float,
    gae_lambda: float,
    learnt: Array | None = None,
) -> Array:
    """Advantages of steps that another policy made, by V-trace (Espeholt et al. 2018, arXiv:1802.01561, equation 1).

        rho_t = min(1, pi(a_t|s_t) / mu(a_t|s_t)),   c_t = lambda rho_t
        A_t   = rho_t delta_t + gamma c_t (1 - ended_t) A_{t+1}

    and V(s_t) + A_t is the target of the value. Of the policy's own steps (log_rho 0) these are the advantages of `gae`.

    Args:
        log_rho: [T, ...] log of the ratio of the policy that learns to the one that acted
        reward, value, next_value, ended: as of `gae`
        learnt: [T, ...] bool: the others are no steps, and what is behind one of them follows upon what is before it
    Returns:
        advantages [T, ...] float32
    """
    _check_alike(log_rho, reward, value, next_value, ended)
    rho = np.exp(np.minimum(log_rho, 0.0))
    delta, decay = rho * (reward + gamma * next_value - value), gamma * gae_lambda * rho * ~ended
    if learnt is not None:
        delta, decay = np.where(learnt, delta, 0.0), np.where(learnt, decay, 1.0)
    return discounted_sum(delta, decay)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """PPO's objective (Schulman et al. 2017, arXiv:1707.06347, equation 7) in each of B steps, [B]; the loss is -E[L].

        L = min(r A, clip(r, 1 - epsilon, 1 + epsilon) A),   r = pi(a|s) / pi_behaviour(a|s) = exp(log_ratio)

    And the gradient of the loss by log_ratio, or by log pi(a|s), [B]: -r A / B where r A is the smaller one, else 0.
    """
    _check_alike(log_ratio, advantage)
    ratio = log_ratio.exp()
    plain, clipped = ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage
    return plain.minimum(clipped), plain * (plain <= clipped) / -len(plain)


def policy_gradient(log_prob: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(a|s) A in each of B steps, [B]; the gradient of its mean is that of the expected return (Sutton et al. 2000).

    And the gradient of the loss, which is minus that mean, by log pi(a|s), [B].
    """
    _check_alike(log_prob, advantage)
    return log_prob * advantage, advantage / -len(advantage)


def normalised(advantage: Tensor, size: int) -> Tensor:
    """To mean 0 and deviation 1 in each minibatch of `size` steps, which lie one behind the other; [B], also fewer than `size`."""
    each = advantage.view(-1, min(size, len(advantage)))
    return ((each - each.mean(1, keepdim=True)) / (each.std(1, keepdim=True) + 1e-8)).flatten()


def value_loss(value: Tensor, target: Tensor, old_value: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """(V - R)^2 in each of B steps, [B]; the loss is half the mean. With `clip`, V's change is clipped as PPO clips the ratio.

    The clipped form is the one of the PPO reference code: max((V - R)^2, (V_old + clip(V - V_old) - R)^2).
    And the gradient of the loss by V, [B]: (V - R) / B where the former is the larger one, else 0.
    """
    _check_alike(value, target, old_value)
    error = value - target
    squares, gradient = error.square(), error / len(error)
    if clip is not None:
        clipped = (old_value + (value - old_value).clamp(-clip, clip) - target).square()
        squares, gradient = squares.maximum(clipped), gradient * (squares >= clipped)
    return squares, gradient


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """KL(pi_old || pi) from samples of pi_old, r = pi / pi_old: E[(r - 1) - log r] >= 0 (Schulman 2020, "k3"); a scalar."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def explained_variance(prediction: Array, target: Array) -> float:
    """1 - Var(target - prediction) / Var(target): 1 is perfect, 0 is no better than a constant; NaN where Var is 0."""
    _check_alike(prediction, target)
    variance = float(np.var(target))
    return float("nan") if variance == 0 else 1 - float(np.var(target - prediction)) / variance


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = r_0 + gamma r_1 + ... + gamma^(m-1) r_{m-1} + gamma^m V(s_m)   (Sutton 1988; Watkins 1989); all [B].

    `reward` is the sum of the m <= n rewards, `discount` gamma^m, or 0 where the episode terminated on the way. Where
    it was truncated s_m is its true last state, of which the value counts.
    """
    _check_alike(reward, discount, next_value)
    return reward + discount * next_value


def huber_loss(q: Tensor, target: Tensor, delta: float | None) -> Tensor:
    """Of each sample: (Q - y)^2 / 2 where |Q - y| <= delta, linear beyond (Huber 1964); None: nowhere linear; [B]."""
    slope = huber_slope(q, target, delta)
    return slope * (q - target - 0.5 * slope)


def huber_slope(q: Tensor, target: Tensor, delta: float | None) -> Tensor:
    """The gradient of the former by Q: Q - y, within [-delta, delta]; [B]."""
    _check_alike(q, target)
    return q - target if delta is None else (q - target).clamp(-delta, delta)


def together(value: Tensor, size: int) -> Tensor:
    """Q_tot(s, a) = sum_i Q_i(s_i, a_i): what all agents do is worth (VDN, Sunehag et al. 2018, arXiv:1706.05296); [B].

    Args:
        value: [B A, ...] of each of the A agents in each of `size` B steps; of an agent alone it is its own
    """
    return value.view(size, -1).sum(1) if value.numel() > size else value.view(size)


def greedy_value(target_q: Tensor, chooser_q: Tensor) -> Tensor:
    """V(s) = Q_target(s, argmax_a Q_chooser(s, a)), [B] for [B, A] each.

    The target network as its own chooser is DQN (Mnih et al. 2015); the online network as chooser is double DQN (van
    Hasselt et al. 2016, arXiv:1509.06461).
    """
    _check_alike(target_q, chooser_q)
    return target_q.gather(1, chooser_q.argmax(1, keepdim=True)).squeeze(1)


def soft_value(target_q: Tensor, temperature: float) -> Tensor:
    """V(s) = sum_a pi(a|s) (Q(s, a) - tau log pi(a|s)) = tau log sum_a exp(Q(s, a) / tau), pi = softmax(Q / tau); [B].

    Of Munchausen DQN (Vieillard et al. 2020, arXiv:2007.14430, equation 1).
    """
    return temperature * (target_q / temperature).logsumexp(1)


def munchausen_bonus(target_q: Tensor, action: Tensor, alpha: float, temperature: float, floor: float) -> Tensor:
    """alpha max(tau log pi(a|s), floor), pi = softmax(Q / tau): what Munchausen DQN adds to the reward; [B].

    With n-step returns it is added for the first step alone, the one whose action is learnt.
    """
    _check_alike(target_q[:, 0], action)
    log_prob = (target_q / temperature).log_softmax(1).gather(1, action[:, None]).squeeze(1)
    return alpha * (temperature * log_prob).clamp(floor, 0.0)
