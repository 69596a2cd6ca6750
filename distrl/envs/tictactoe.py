"""PettingZoo's `tictactoe_v3` in arrays: square i has bit i."""

from __future__ import annotations

import numpy as np

from distrl.envs.boards import BoardShard
from distrl.types import Array

SQUARES = np.uint64(1) << np.arange(9, dtype=np.uint64)
ROWS = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
LINES = np.array([sum(1 << square for square in row) for row in ROWS], np.uint64)


def free(filled: Array) -> Array:
    """Where a stone would come to lie by each move, [..., 9] uint64; 0 where one lies. `filled`: [...] the stones of both."""
    squares: Array = SQUARES & ~filled[..., None]
    return squares


def three(stones: Array) -> Array:
    """Whether there are three in a line, of stones [...] uint64; bool."""
    lines: Array = ((stones[..., None] & LINES) == LINES).any(axis=-1)
    return lines


class TicTacToeShard(BoardShard):
    ID = "classic/tictactoe_v3"
    BIT = np.arange(9, dtype=np.uint64).reshape(3, 3)
    BOARD = SQUARES.sum()
    places, won = staticmethod(free), staticmethod(three)
