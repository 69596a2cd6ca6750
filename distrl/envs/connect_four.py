"""PettingZoo's `connect_four_v3` in arrays, and somebody to play against.

Column c has the bits 7 c (its lowest square) to 7 c + 5, and bit 7 c + 6 is never set, so that no line goes over the edge of the
board.
"""

from __future__ import annotations

import numpy as np

from distrl.envs.boards import BoardShard
from distrl.types import Array

ROWS, COLUMNS = 6, 7
LOWEST = np.uint64(1) << np.arange(0, 7 * COLUMNS, 7, dtype=np.uint64)  # [7] of each column the square
COLUMN = LOWEST * np.uint64(2**ROWS - 1)  # [7] and all its squares
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


class ConnectFourShard(BoardShard):
    ID = "classic/connect_four_v3"
    BIT = BIT
    BOARD = COLUMN.sum()
    places, won = staticmethod(drops), staticmethod(four)
