"""Games of PettingZoo in which two put stones on a board in turns, in arrays: the boards of all env copies, stepped at once.

The stones of a player are bits of a number, one for each square. Who is not to move goes on seeing what it saw last, as it does
where PettingZoo is stepped itself (`distrl.envs.team`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from distrl.envs.multi import describe_team
from distrl.layouts import AGENT, OBSERVATION, Layout
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot, Step


class BoardShard:
    """N boards as columns of their two players. `distrl.envs.shard.Shard`; subclasses are the games."""

    ID: ClassVar[str]
    BIT: ClassVar[Array]  # [R, C]: the bit of each square, as the board is seen
    BOARD: ClassVar[np.uint64]  # all of these

    @staticmethod
    def places(filled: Array) -> Array:
        """Where each move would put a stone, [..., A] uint64; 0: it is not allowed. `filled`: [...] the stones of both."""
        raise NotImplementedError

    @staticmethod
    def won(stones: Array) -> Array:
        """Whether a player with these stones [...] has a line; bool."""
        raise NotImplementedError

    @classmethod
    def fits(cls, settings: EnvSettings, layout: Layout | None) -> bool:
        """Whether arrays do all that is asked of PettingZoo, which they may stand for, and the players share a policy."""
        asked = settings.kwargs or settings.max_episode_steps or settings.vectorize != "auto"
        return settings.id.replace("-v", "_v") == cls.ID and not asked and (layout is None or not layout.members)

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int, layout: Layout | None = None) -> None:
        """`layout`: of a row of an observation; None: as the env's spaces say"""
        # The seed is of who sits where: these games have no chance.
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
        move = action.reshape(self.copies, 2)[every, mover]
        stone = self.places(self.stones[:, 0] | self.stones[:, 1])[every, move]
        if (stone == 0).any():
            raise ValueError(f"the move {move[stone == 0][0]} was made, which the mask forbids")
        self.stones[every, mover] |= stone
        won = self.won(self.stones[every, mover])
        over = won | ((self.stones[:, 0] | self.stones[:, 1]) == self.BOARD)
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
        self._seen[copies, players] = (both >> self.BIT[..., None]) & np.uint64(1)
        allowed = self.places(own | other) != 0
        self._mask[copies, players] = allowed | ~allowed.any(axis=1, keepdims=True)
