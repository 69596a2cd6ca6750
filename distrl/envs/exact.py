"""What an agent is worth, and what the best one would be: exactly, where the transition table is known.

With V_0 = 0 and everything undiscounted, as returns are reported,

    V_k(s) = sum over outcomes of p (r + V_(k-1)(s'))         policy evaluation: the action is the policy's
    V_k(s) = max over a of the same                           value iteration

is the return of k steps; for a time limit L the value is V_L, averaged over the starts. Without a limit k grows until
nothing changes. (Sutton and Barto 2018, sections 4.1 and 4.4.)

A greedy policy cannot see the time, so against a limit there are two optima: that of policies that may use the time
left, which value iteration gives, and that of policies that do not. The second has no simple solution: it is searched
for, from the optimal policies of many discounts, by changing actions as long as that helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distrl.envs.mdp import Table
from distrl.types import Array, Policy

ENOUGH = 20_000  # steps without a limit after which a policy is said never to end
TOLERANCE = 1e-12
DISCOUNTS = (1.0, 0.9999, 0.999, 0.998, 0.997, 0.996, 0.995, 0.994, 0.993, 0.992, 0.99, 0.97, 0.95, 0.9)


@dataclass(frozen=True)
class Exact:
    """Exact values, averaged over the starts; undiscounted."""

    value: float  # of the policy; -inf where it never ends
    optimum: float  # of the best policy found that does not see the time
    bound: float  # of the best policy that may use the time left
    starts: int  # states that episodes start in
    optimal_starts: int  # of these, where the policy gets all that a policy without time can be known to get

    @property
    def gap(self) -> float:
        return self.optimum - self.value


def examine(table: Table, policy: Policy) -> Exact:
    """A policy's greedy actions against the best ones."""
    action = policy.greedy(table.obs) - table.first_action
    value = evaluate(table, action)
    bound = optimal_values(table)
    best = evaluate(table, best_policy(table))
    starts = table.start > 0
    return Exact(
        value=_mean(table, value),
        optimum=max(_mean(table, best), _mean(table, value)),
        bound=_mean(table, bound),
        starts=int(starts.sum()),
        optimal_starts=int((value[starts] >= np.minimum(best, bound)[starts] - 1e-9).sum()),
    )


def evaluate(table: Table, action: Array) -> Array:
    """V [Z] of taking action[z] in state z; -inf where that goes on for ever at a cost."""
    at = np.arange(len(action)), action
    p, state, gain = table.probability[at], table.next_state[at], _gains(table)[at]
    p = np.where(table.terminated[at], 0.0, p)
    v: Array = np.zeros(len(action))
    for _ in range(table.time_limit or ENOUGH):
        new: Array = gain + (p * v[state]).sum(axis=1)
        if table.time_limit is None and np.abs(new - v).max(initial=0.0, where=np.isfinite(new)) < TOLERANCE:
            return new
        v = new
    if table.time_limit is None:
        moving = np.abs(gain + (p * v[state]).sum(axis=1) - v) > 1e-6
        v[moving] = -np.inf
    return v


def optimal_values(table: Table) -> Array:
    """V [Z] of the best policy, which may use the time left."""
    v: Array = np.zeros(len(table.start))
    for _ in range(table.time_limit or ENOUGH):
        new: Array = _action_values(table, v, 1.0).max(axis=1)
        if table.time_limit is None and np.abs(new - v).max() < TOLERANCE:
            return new
        v = new
    return v


def best_policy(table: Table) -> Array:
    """Actions [Z] of the best policy found that does not see the time."""
    candidates = [_optimal_policy(table, discount) for discount in DISCOUNTS]
    best = max(candidates, key=lambda action: _mean(table, evaluate(table, action)))
    if table.time_limit is None or len(table.start) > 1000:
        return best
    value, bound = _mean(table, evaluate(table, best)), optimal_values(table)
    if _mean(table, bound) - value < TOLERANCE:
        return best
    while True:
        before = value
        for z in np.flatnonzero(bound).tolist():
            for a in range(table.probability.shape[1]):
                changed = best.copy()
                changed[z] = a
                if a != best[z] and (v := _mean(table, evaluate(table, changed))) > value + TOLERANCE:
                    best, value = changed, v
        if value == before:
            return best


def _optimal_policy(table: Table, discount: float) -> Array:
    v = np.zeros(len(table.start))
    for _ in range(ENOUGH):
        new = _action_values(table, v, discount).max(axis=1)
        done = np.abs(new - v).max() < 1e-10
        v = new
        if done:
            break
    best: Array = _action_values(table, v, discount).argmax(axis=1)
    return best


def _action_values(table: Table, v: Array, discount: float) -> Array:
    after = np.where(table.terminated, 0.0, v[table.next_state])
    q: Array = (table.probability * (table.reward + discount * after)).sum(axis=2)
    return q


def _gains(table: Table) -> Array:
    gains: Array = (table.probability * table.reward).sum(axis=2)
    return gains


def _mean(table: Table, values: Array) -> float:
    starts = table.start > 0
    return float(table.start[starts] @ values[starts])
