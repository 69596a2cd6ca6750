"""Which fragments are rolled when, by which weights, and which of them make an iteration. Knows no futures.

S is the number of shards: an iteration always takes S fragments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from distrl.settings import Config

Key = tuple[int, int]  # shard, and the number of the fragment among those of the shard


class Schedule(Protocol):
    lag: int  # updates that the learner may be behind when the next one is handed to it

    def may_roll(self, key: Key, k: int, in_flight: Iterable[Key]) -> bool:
        """Whether a fragment may begin, the next of its shard.

        Args:
            k: the iteration that is being collected; weights of version k exist or are being made
            in_flight: fragments that are being rolled, or were and wait for the learner
        """

    def version(self, number: int, finished: int) -> int:
        """Of the weights that act in fragment `number`; `finished` is the newest version that the learner has made."""

    def batch(self, k: int, rolled: Iterable[Key]) -> list[Key] | None:
        """The fragments of iteration k out of those rolled, which are in the order of their arrival; None: not yet."""


class Lockstep:
    """Fragment k of every shard makes iteration k, in the order of shards, acted by version max(0, k - lag).

    With lag 1 runners roll k + 1 while the learner learns from k: both work, and nothing depends on who is faster
    (HTS-RL, Liu et al. 2020, arXiv:2012.09849; Cleanba, Huang et al. 2023, arXiv:2310.00036).
    """

    def __init__(self, shards: int, last: int | None, lag: int) -> None:
        """`last`: iterations of the whole run, if that is known."""
        self.shards, self.last, self.lag = shards, last, lag

    def may_roll(self, key: Key, k: int, in_flight: Iterable[Key]) -> bool:
        number = key[1]
        return number <= k + self.lag and (self.last is None or number < self.last)

    def version(self, number: int, finished: int) -> int:
        return max(0, number - self.lag)

    def batch(self, k: int, rolled: Iterable[Key]) -> list[Key] | None:
        wanted = [(shard, k) for shard in range(self.shards)]
        there = set(rolled)
        return wanted if all(key in there for key in wanted) else None


class Async:
    """The first S fragments that come make an iteration, acted by the newest weights there were when each was asked for.

    So that no runner waits for another (Ape-X, Horgan et al. 2018, arXiv:1803.00933). They wait for the learner alone, and
    only when they are `ahead` iterations before it: else `samples_per_insert` could not hold, nor any memory.
    What comes first depends on the machines: such a run cannot be repeated bit for bit.
    """

    lag = 1

    def __init__(self, shards: int, last: int | None, replays: int, ahead: int) -> None:
        """`last`: iterations of the whole run, if that is known. Shard s belongs to replay s modulo `replays`."""
        self.last, self.replays, self.ahead = last, replays, ahead
        self.each = shards // replays  # fragments of an iteration for each replay

    def may_roll(self, key: Key, k: int, in_flight: Iterable[Key]) -> bool:
        iterations = self.ahead if self.last is None else min(self.ahead, self.last - k)
        beside = sum(shard % self.replays == key[0] % self.replays for shard, _ in in_flight)
        return beside < iterations * self.each

    def version(self, number: int, finished: int) -> int:
        return finished

    def batch(self, k: int, rolled: Iterable[Key]) -> list[Key] | None:
        """As many for each replay, in turns."""
        parts: list[list[Key]] = [[] for _ in range(self.replays)]
        for key in rolled:
            parts[key[0] % self.replays].append(key)
        if any(len(part) < self.each for part in parts):
            return None
        parts = [part[: self.each] for part in parts]
        return [key for turn in zip(*parts, strict=True) for key in turn]


def make_schedule(config: Config) -> Schedule:
    shards, last, schedule = config.rollout.shards, config.iterations, config.schedule
    if schedule.kind == "lockstep":
        return Lockstep(shards, last, schedule.lag)
    return Async(shards, last, 1 if config.replay is None else config.replay.shards, schedule.ahead)
