"""Finite MDPs in arrays: the transition tables of environments that publish one, and Blackjack's.

Gymnasium's toy-text environments publish the table they step by: `env.unwrapped.P[state][action]` lists
(probability, next state, reward, terminated), and `initial_state_distrib` says where episodes start. `read_table` reads
both, and the time limit. Blackjack publishes none, but its rules are as finite; its table is built here.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv

from distrl.envs.make import closed_after, make_env
from distrl.errors import UserError
from distrl.settings import EnvSettings
from distrl.types import Array

KNOWN = (FrozenLakeEnv, CliffWalkingEnv, TaxiEnv, BlackjackEnv)


TRIAL = 2000  # steps for which an environment that is not known must do as its table says


@dataclass(frozen=True)
class Table:
    """A finite MDP. Z states, A actions; K outcomes of each, of which those beyond the real ones have probability 0."""

    probability: Array  # [Z, A, K] float64
    next_state: Array  # [Z, A, K] int64
    reward: Array  # [Z, A, K] float64
    terminated: Array  # [Z, A, K] bool
    start: Array  # [Z] float64, probability that an episode starts there
    obs: Array  # [Z, ...] what is seen of a state
    first_action: int
    time_limit: int | None


def read_table(settings: EnvSettings) -> Table:
    """The table of an environment. Raises `UserError` where there is none, or where it does not tell all."""
    return _read(settings.model_dump_json())


@functools.lru_cache(maxsize=8)
def _read(text: str) -> Table:
    settings = EnvSettings.model_validate_json(text)
    if settings.wrappers:
        raise _refusal(settings, "env.wrappers may change what its table says")
    env = make_env(settings)
    with closed_after(env, settings.id):
        limit = _time_limit(env, settings)
        bare: Any = env.unwrapped
        if isinstance(bare, TaxiEnv) and bare.fickle_passenger:
            raise _refusal(settings, "a fickle passenger changes the destination beside the table")
        if isinstance(bare, BlackjackEnv):
            return _blackjack(bare, limit)
        if not (hasattr(bare, "P") and hasattr(bare, "initial_state_distrib")):
            raise _refusal(settings, "it publishes no P and initial_state_distrib")
        table = _published(bare, limit, settings)
        if type(bare) not in KNOWN:
            _try(env, table, settings)
        return table


def _refusal(settings: EnvSettings, reason: str) -> UserError:
    return UserError(
        f"The transition table of {settings.id} cannot be used: {reason}. Set env.vectorize to 'auto' or 'single', and leave "
        "out --exact."
    )


def _time_limit(env: gym.Env[Any, Any], settings: EnvSettings) -> int | None:
    limit: int | None = None
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            limit = min(env._max_episode_steps, limit or env._max_episode_steps)
        elif not isinstance(env, gym.wrappers.OrderEnforcing | gym.wrappers.PassiveEnvChecker):
            raise _refusal(settings, f"the wrapper {type(env).__name__} may change what its table says")
        env = env.env
    return limit


def _published(bare: Any, limit: int | None, settings: EnvSettings) -> Table:
    obs, action = bare.observation_space, bare.action_space
    if not (isinstance(obs, gym.spaces.Discrete) and isinstance(action, gym.spaces.Discrete)):
        raise _refusal(settings, f"its spaces are {obs} and {action}, not both Discrete")
    states, actions = int(obs.n), int(action.n)
    try:
        rows = [[list(bare.P[z][a]) for a in range(actions)] for z in range(states)]
        table = _pack(rows, np.asarray(bare.initial_state_distrib, np.float64), limit)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _refusal(settings, f"its P does not list (probability, state, reward, terminated): {error!r}") from None
    sums = table.probability.sum(axis=2)
    if table.start.shape != (states,) or not np.allclose(sums, 1) or not np.isclose(table.start.sum(), 1):
        raise _refusal(settings, "its probabilities do not sum to 1")
    return Table(
        **{**table.__dict__, "obs": np.arange(states) + int(obs.start), "first_action": int(action.start)},
    )


def _pack(rows: list[list[list[tuple[float, int, float, bool]]]], start: Array, limit: int | None) -> Table:
    """Lists of outcomes to arrays: short lists are filled up with their last outcome at probability 0."""
    width = max(len(outcomes) for row in rows for outcomes in row)
    full = [[o + [(0.0, *o[-1][1:])] * (width - len(o)) for o in row] for row in rows]
    probability, state, reward, terminated = (
        np.array([[[outcome[i] for outcome in outcomes] for outcomes in row] for row in full]) for i in range(4)
    )
    return Table(
        probability.astype(np.float64),
        state.astype(np.int64),
        reward.astype(np.float64),
        terminated.astype(bool),
        start,
        np.arange(len(rows)),
        0,
        limit,
    )


def _try(env: gym.Env[Any, Any], table: Table, settings: EnvSettings) -> None:
    """Play an unknown environment, and refuse it where it does what its table calls impossible."""
    rng, actions = np.random.default_rng(0), table.probability.shape[1]
    obs, _ = env.reset(seed=0)
    offset = int(table.obs[0])
    if table.start[obs - offset] == 0:
        raise _refusal(settings, f"it started in {obs}, which its table says it never does")
    for _ in range(TRIAL):
        state, a = int(obs) - offset, int(rng.integers(actions))
        obs, reward, terminated, truncated, _ = env.step(a + table.first_action)
        agrees = (
            (table.probability[state, a] > 0)
            & (table.next_state[state, a] == obs - offset)
            & (table.reward[state, a] == reward)
            & (table.terminated[state, a] == terminated)
        )
        if not agrees.any():
            raise _refusal(settings, f"from state {state}, action {a} did what its table says it never does")
        if terminated or truncated:
            obs, _ = env.reset()


CARDS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}  # of an endless deck


def _blackjack(env: BlackjackEnv, limit: int | None) -> Table:
    """The rules of gymnasium's Blackjack as a table.

    What is seen (player's sum, dealer's card, usable ace) leaves out whether a 21 was dealt (a natural), on which the
    reward may depend; so naturals are states of their own that look like any other soft 21.
    """
    hands = [(total, ace, False) for ace in (0, 1) for total in range(12 if ace else 4, 22)] + [(21, 1, True)]
    bust = [(total, 0, False) for total in range(22, 32)]
    states = {(hand, dealer): i for i, (dealer, hand) in enumerate(itertools.product(CARDS, hands + bust))}
    start = np.zeros(len(states))
    for (a, p), (b, q), (dealer, r) in itertools.product(CARDS.items(), repeat=3):
        total, ace = _add(0, 0, a)
        total, ace = _add(total, ace, b)
        start[states[(total, ace, {a, b} == {1, 10}), dealer]] += p * q * r
    rows = []
    for (hand, dealer), i in states.items():
        total, ace, natural = hand
        if total > 21:
            rows.append([[(1.0, i, 0.0, True)]] * 2)
            continue
        stick = [(p, i, reward, True) for reward, p in sorted(_showdown(env, total, natural, dealer).items())]
        hit = []
        for card, p in CARDS.items():
            after, soft = _add(total, ace, card)
            hit.append((p, states[(after, soft, False), dealer], -1.0 if after > 21 else 0.0, after > 21))
        rows.append([stick, hit])
    table = _pack(rows, start, limit)
    obs = np.array([(total, dealer, ace) for (total, ace, _), dealer in states], np.int64)
    return Table(**{**table.__dict__, "obs": obs})


def _add(total: int, ace: int, card: int) -> tuple[int, int]:
    """Sum and usable ace (an ace that counts 11) of a hand with one more card."""
    hard, any_ace = total - 10 * ace + card, bool(ace) or card == 1
    soft = int(any_ace and hard + 10 <= 21)
    return hard + 10 * soft, soft


def _showdown(env: BlackjackEnv, total: int, natural: bool, dealer: int) -> dict[float, float]:
    """Probability of every reward after sticking."""
    rewards: dict[float, float] = defaultdict(float)
    for (score, dealer_natural), p in _dealer(dealer).items():
        reward = float(total > score) - float(total < score)
        if env.sab and natural and not dealer_natural:
            reward = 1.0
        elif not env.sab and env.natural and natural and reward == 1.0:
            reward = 1.5
        rewards[reward] += p
    return rewards


@functools.cache
def _dealer(card: int) -> dict[tuple[int, bool], float]:
    """Probability of every (score, natural) that the dealer ends with; the score of a bust is 0."""
    ends: dict[tuple[int, bool], float] = defaultdict(float)
    for hidden, p in CARDS.items():
        for score, q in _draw_on(*_add(*_add(0, 0, card), hidden)).items():
            ends[score, {card, hidden} == {1, 10}] += p * q
    return ends


@functools.cache
def _draw_on(total: int, ace: int) -> dict[int, float]:
    """Probability of every score of a dealer who has this so far, and draws below 17."""
    if total >= 17:
        return {total if total <= 21 else 0: 1.0}
    scores: dict[int, float] = defaultdict(float)
    for card, p in CARDS.items():
        for score, q in _draw_on(*_add(total, ace, card)).items():
            scores[score] += p * q
    return scores
