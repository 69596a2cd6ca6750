"""PettingZoo's `connect_four_v3` in arrays: the boards of all env copies, stepped at once; and somebody to play against.

The stones of a player are bits of a number: column c has the bits 7 c (its lowest square) to 7 c + 5, and bit 7 c + 6 is never
set, so that no line goes over the edge of the board. Who is not to move goes on seeing what it saw last, as it does where
PettingZoo is stepped itself (`distrl.envs.team`).
"""

from __future__ import annotations

import math

import numpy as np

from distrl.envs.multi import describe_team
from distrl.layouts import AGENT, OBSERVATION, Layout
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot, Step

ID = "classic/connect_four_v3"
ROWS, COLUMNS = 6, 7
LOWEST = np.uint64(1) << np.arange(0, 7 * COLUMNS, 7, dtype=np.uint64)  # [7] of each column the square
COLUMN = LOWEST * np.uint64(2**ROWS - 1)  # [7] and all its squares
BOARD = COLUMN.sum()
# [6, 7]: the bit of each square as it is seen, the highest row first.
BIT = np.arange(0, 7 * COLUMNS, 7, dtype=np.uint64) + np.arange(ROWS - 1, -1, -1, dtype=np.uint64)[:, None]
LINES = [(np.uint64(step), np.uint64(2 * step)) for step in (1, 7, 6, 8)]  # upwards, to the right, along both diagonals


def four(stones: Array) -> Array:
    """Whether there are four in a line, of stones [...] uint64; bool."""
    found = np.zeros_like(stones)
    for step, twice in LINES:
        pairs = stones & (stones >> step)
        found |= pairs & (pairs >> twice)
    lines: Array = found != 0
    return lines


def drops(filled: Array) -> Array:
    """Where a stone would come to lie in each column [..., 7] uint64; 0 in a full one. `filled`: [...] the stones of both."""
    lowest: Array = (filled[..., None] + LOWEST) & COLUMN
    return lowest


def look_ahead(observation: Array, mask: Array | None, rng: np.random.Generator) -> int:
    """An opponent: takes a win, else the place where the other would win, else what comes. `observation`: [6, 7, 2]"""
    own, other = (observation.astype(np.uint64) << BIT[..., None]).sum(axis=(0, 1))
    new = drops(own | other)
    for stones in (own, other):
        if len(winning := np.flatnonzero(four(stones | new) & (new != 0))):
            return int(winning[0])
    return int(rng.choice(np.flatnonzero(new)))


class ConnectFourShard:
    """N boards as columns of their two players. `distrl.envs.shard.Shard`."""

    @staticmethod
    def fits(settings: EnvSettings, layout: Layout | None) -> bool:
        """Whether arrays do all that is asked of PettingZoo, which they may stand for, and the players share a policy."""
        asked = settings.kwargs or settings.max_episode_steps or settings.vectorize != "auto"
        return settings.id.replace("-v", "_v") == ID and not asked and (layout is None or not layout.members)

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int, layout: Layout | None = None) -> None:
        """`layout`: of a row of an observation; None: as the env's spaces say"""
        # The seed is of who sits where: the game has no chance.
        self.seed, self.shard, self.copies = seed, shard, copies
        self.frame_stack, self.replays = 0, False
        layout = layout or describe_team(settings).obs_layout
        assert layout.mask is not None
        self.nothing = np.stack([layout.example()] * 2)  # [2, D], before a player saw anything
        views = {part.path: part for part in layout.parts}
        views[AGENT,].of(self.nothing)[:] = np.eye(2)
        self.rows = np.stack([self.nothing] * copies)  # [N, 2, D]
        self._seen, self._mask = views[OBSERVATION,].of(self.rows), layout.mask.of(self.rows)  # views of it
        self.stones = np.zeros((copies, 2), np.uint64)
        self.turn, self.episode = np.zeros(copies, np.int64), np.zeros(copies, np.int64)
        self.obs, self._every = self.rows.reshape(2 * copies, -1), np.arange(copies)
        self._see(self._every, self.turn)

    @property
    def active(self) -> Array:
        to_move: Array = self.turn[:, None] == np.arange(2)
        return to_move.ravel()

    def step(self, action: Array) -> Step:
        every, mover = self._every, self.turn
        column = action.reshape(self.copies, 2)[every, mover]
        stone = drops(self.stones[:, 0] | self.stones[:, 1])[every, column]
        if (stone == 0).any():
            raise ValueError(f"a stone was put into the full column {column[stone == 0][0]}, which the mask forbids")
        self.stones[every, mover] |= stone
        won = four(self.stones[every, mover])
        over = won | ((self.stones[:, 0] | self.stones[:, 1]) == BOARD)
        reward = np.where(won[:, None], np.where(np.arange(2) == mover[:, None], 1.0, -1.0), 0.0)
        self.turn = 1 - mover
        self._see(every, self.turn)
        ended, final_obs = np.flatnonzero(over), self.obs[:0]
        if len(ended):
            self._see(ended, mover[ended])
            self._mask[ended, mover[ended]] = 1  # who is not to move has nothing to choose
            final_obs = self.rows[ended].reshape(2 * len(ended), -1)
            self.stones[ended], self.turn[ended], self.rows[ended] = 0, 0, self.nothing
            self.episode[ended] += 1
            self._see(ended, self.turn[ended])
        twice = np.repeat(over, 2)
        return Step(self.obs, reward.ravel(), twice, np.zeros_like(twice), final_obs)

    def arrays(self) -> Arrays:
        return {name: getattr(self, name).copy() for name in ("rows", "stones", "turn", "episode")}

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        self.rows[...] = snapshot.env["rows"]
        self.stones, self.turn, self.episode = (snapshot.env[name].copy() for name in ("stones", "turn", "episode"))
        return np.ones(self.copies, bool)

    def close(self) -> None:
        pass

    def _see(self, copies: Array, players: Array) -> None:
        """Show some boards (indices [E]) to a player of each."""
        own, other = self.stones[copies, players], self.stones[copies, 1 - players]
        both = np.stack([own, other], axis=-1)[:, None, None]
        self._seen[copies, players] = (both >> BIT[..., None]) & np.uint64(1)
        allowed = drops(own | other) != 0
        self._mask[copies, players] = allowed | ~allowed.any(axis=1, keepdims=True)
