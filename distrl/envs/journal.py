"""What rebuilds a shard before any of its fragments that may be asked for again.

Where a shard is rebuilt by replaying, its reports carry the actions of their own fragment alone, and the driver's
`Journal` puts them together when a snapshot is needed: when another runner takes the shard, or for a checkpoint. So
what a report weighs, and what it costs the driver, does not depend on how long the episodes under way are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from distrl.types import Array, Snapshot, Step


class Underway:
    """Returns [N] float64 ([N, A] of env copies with A agents each) and lengths [N] int64 of the episodes under way."""

    def __init__(self, copies: int, agents: int = 0) -> None:
        """`agents`: of each env copy; 0: none that have names."""
        self.returns: Array = np.zeros((copies, agents) if agents else copies)
        self.lengths: Array = np.zeros(copies, np.int64)

    def count(self, step: Step) -> tuple[Array, Array]:
        """Count a step. Returns the returns [E] or [E, A] and the lengths [E] of the episodes that it ended for all agents."""
        self.returns += step.reward.reshape(self.returns.shape)
        self.lengths += 1
        if not len(step.final_obs):
            return self.returns[:0], self.lengths[:0]
        ended = (step.terminated | step.truncated).reshape(len(self.lengths), -1).all(axis=1)
        over = self.returns[ended], self.lengths[ended]
        self.returns[ended], self.lengths[ended] = 0.0, 0
        return over


class Journal:
    """The snapshots of one shard, from the first fragment that was not learnt from to the newest report."""

    def __init__(self, start: Snapshot | None) -> None:
        """`start`: a whole snapshot to go on from; None: the shard's beginning."""
        self._clock = 0  # steps since then
        self._states = {0 if start is None else start.iteration: (0, start)}  # by fragment: the clock, all but actions
        self._actions: deque[tuple[int, Array]] = deque()  # the clock at the first of them, and actions [T, N, ...]
        if start is not None and "action" in start.env:
            mask = _under_way(start.lengths)
            actions = np.zeros(mask.shape + start.env["action"].shape[1:], start.env["action"].dtype)
            actions[mask] = start.env["action"]
            self._actions.append((-mask.shape[1], actions.swapaxes(0, 1)))

    def add(self, after: Snapshot, actions: Array | None) -> None:
        """The shard after its next fragment, and the actions [T, N, ...] of that, where `after` lacks them."""
        if actions is not None:
            self._actions.append((self._clock, actions.copy()))  # a copy, as what came by Ray keeps more alive
            self._clock += len(actions)
        self._states[after.iteration] = self._clock, after

    def before(self, fragment: int) -> Snapshot | None:
        """The whole snapshot before a fragment; None: the shard's beginning."""
        clock, state = self._states[fragment]
        if state is None or not self._actions:
            return state
        mask = _under_way(state.lengths)
        actions = np.concatenate([chunk for first, chunk in self._actions if first + len(chunk) <= clock])
        newest = actions[len(actions) - mask.shape[1] :]
        return replace(state, env=state.env | {"action": newest.swapaxes(0, 1)[mask]})

    def forget(self, fragment: int) -> None:
        """What comes before this fragment is not asked for again."""
        for old in [number for number in self._states if number < fragment]:
            del self._states[old]
        clock, state = self._states[fragment]
        if state is not None:
            needed = clock - int(state.lengths.max())  # and later fragments need no earlier step
            while self._actions and self._actions[0][0] + len(self._actions[0][1]) < needed:
                self._actions.popleft()


def compact(actions: Array) -> Array:
    """The same numbers in the smallest integer type that holds them; floats as they are."""
    if actions.dtype.kind not in "iu":
        return actions
    low, high = actions.min(), actions.max()
    types = (np.dtype(f"{kind}{size}") for size in (1, 2, 4, 8) for kind in "ui")
    return actions.astype(next(t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max))


def _under_way(lengths: Array) -> Array:
    """[N, L] bool: which of the newest L steps belong to the episodes under way, L being the longest of their lengths."""
    longest = int(lengths.max())
    mask: Array = np.arange(longest) >= longest - lengths[:, None]
    return mask
