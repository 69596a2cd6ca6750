"""Environments whose transition table is known, run as one MDP in arrays: millions of steps a second.

Gymnasium's toy-text environments publish the table they step by: `env.unwrapped.P[state][action]` lists
(probability, next state, reward, terminated), and `initial_state_distrib` says where episodes start. `read_table` reads
both, and the time limit. Blackjack publishes none, but its rules are as finite; its table is built here.

A table is taken by itself (`env.vectorize: auto`) only for the environments that the tests hold against the real ones.
Others that publish a table may ask for it (`table`); they are first played for a while against what it says.
"""

from __future__ import annotations

import math

import numpy as np

from distrl.envs.make import close_env, make_env
from distrl.envs.mdp import KNOWN, read_table
from distrl.errors import UserError
from distrl.seeding import stream
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot, Step

BLOCK = 64  # steps whose random numbers are drawn at once


def fits(settings: EnvSettings) -> bool:
    """Whether the environment is one whose table is known to be all there is to it."""
    try:
        env = make_env(settings)
    except UserError:
        return False
    known = type(env.unwrapped) in KNOWN
    close_env(env, settings.id)
    if not known:
        return False
    try:
        read_table(settings)
    except UserError:
        return False
    return True


# --- Blackjack ----------------------------------------------------------------------------------------------------


# --- the shard ----------------------------------------------------------------------------------------------------


class TableShard:
    """N copies of a `Table`, stepped by a few array look-ups. `distrl.envs.shard.Shard`.

    A step's outcome is the first whose cumulative probability exceeds a uniform number, as in gymnasium's
    `categorical_sample`. Those numbers are a function of seed, shard and step, so the snapshot is three small arrays.
    """

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int) -> None:
        self.table, self.seed, self.shard, self.copies = read_table(settings), seed, shard, copies
        self.frame_stack, self.replays = 0, False
        self.active: Array | None = None
        t = self.table
        self.actions, self.outcomes = t.probability.shape[1:]
        cumulative = np.cumsum(t.probability, axis=2).reshape(-1, self.outcomes)
        # Outcome k or a later one where the uniform number is at least bounds[k - 1].
        self.bounds = [np.ascontiguousarray(cumulative[:, k]) for k in range(self.outcomes - 1)]
        self.next_state, self.reward, self.terminated = t.next_state.ravel(), t.reward.ravel(), t.terminated.ravel()
        self.starts = np.cumsum(t.start)
        self.starts[np.flatnonzero(t.start)[-1] :] = np.inf  # rounding shall not lead beyond the last one
        self.one_start = int(np.flatnonzero(t.start)[0]) if (t.start > 0).sum() == 1 else None
        self.plain = np.array_equal(t.obs, np.arange(len(t.obs)))  # a state is its own observation
        self.limit = np.iinfo(np.int64).max if t.time_limit is None else t.time_limit
        self.clock = 0  # steps taken
        self.elapsed = np.zeros(copies, np.int64)
        self.state = self._start(stream(seed, "table first", shard).random(copies))
        self.obs = self._seen(self.state)

    def step(self, action: Array) -> Step:
        row = self.clock % BLOCK
        if row == 0:
            self._draw()
        self.clock += 1
        at = self.state * self.actions
        at += action
        if self.table.first_action:
            at -= self.table.first_action
        if self.outcomes > 1:
            uniform = self._uniform[row]
            which = at * self.outcomes
            for bound in self.bounds:
                which += uniform >= bound[at]
            at = which
        state, terminated = self.next_state[at], self.terminated[at]
        self.elapsed += 1
        truncated = self.elapsed >= self.limit
        ended = terminated | truncated
        truncated &= ~terminated
        over = np.flatnonzero(ended)
        final_obs = self._seen(state[over])
        if len(over):
            state[over] = self._start(self._restart[row][over])
            self.elapsed[over] = 0
        self.state = state
        self.obs = self._seen(state)
        return Step(self.obs, self.reward[at], terminated, truncated, final_obs)

    def arrays(self) -> Arrays:
        return {"state": self.state.copy(), "elapsed": self.elapsed.copy(), "clock": np.array(self.clock)}

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        arrays = snapshot.env
        self.state, self.elapsed, self.clock = (
            arrays["state"].copy(),
            arrays["elapsed"].copy(),
            int(arrays["clock"]),
        )
        if self.clock % BLOCK:
            self._draw()
        self.obs = self._seen(self.state)
        return np.ones(self.copies, bool)

    def close(self) -> None:
        pass

    def _draw(self) -> None:
        """The random numbers of the block of steps that the clock is in, as far as they are needed."""
        block, shape = self.clock // BLOCK, (BLOCK, self.copies)
        if self.outcomes > 1:
            self._uniform = stream(self.seed, "table outcome", self.shard, block).random(shape)
        if self.one_start is None:
            self._restart = stream(self.seed, "table start", self.shard, block).random(shape)
        else:
            self._restart = np.zeros(shape)

    def _start(self, uniform: Array) -> Array:
        if self.one_start is not None:
            return np.full(len(uniform), self.one_start)
        return np.searchsorted(self.starts, uniform, side="right")

    def _seen(self, state: Array) -> Array:
        return state.copy() if self.plain else self.table.obs[state]
