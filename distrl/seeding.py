"""Named random streams.

Every random number in a run comes from a generator that is built on the spot from the run's seed, what it
is for, and the counters that say which one it is. No generator lives on, so nothing depends on what ran
before, where, or how often it was tried.

>>> float(stream(1, "action", 3, 7).random()) == float(stream(1, "action", 3, 7).random())
True
"""

from __future__ import annotations

import zlib

import numpy as np


def _sequence(seed: int, purpose: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    key = (zlib.crc32(purpose.encode()), *counters)
    if any(number >> 32 for number in (seed, *counters)):
        return np.random.SeedSequence(seed, spawn_key=key)
    # The same, put together here: NumPy takes longer to turn such numbers into words than to mix them.
    return np.random.SeedSequence(np.array([seed, 0, 0, 0, *key], np.uint32))


def stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh generator for `purpose` at `counters` (say, shard and iteration) in the run with `seed`."""
    return np.random.default_rng(_sequence(seed, purpose, counters))


def derive(seed: int, purpose: str, *counters: int) -> int:
    """An integer seed in [0, 2^31), for libraries that seed themselves (gymnasium, torch)."""
    return int(_sequence(seed, purpose, counters).generate_state(1)[0]) >> 1
