"""Holding past steps and drawing from them. Knows nothing of learning, Ray or files; imports no torch.

Every env copy has a ring of R rows, written in the order of time: row r holds an observation and, where the copy
acted on it, what came of that. The next observation of row r is in row r + 1. A truncated episode's true last
observation has a row of its own, on which nobody acted; so has the newest observation, until the next fragment goes
on from it. So an observation is stored once, chains of steps run on over the borders of fragments, and an n-step
return is a walk along rows that ends where the episode does.

Where observations are stacks of frames a row holds one frame; a stack is made of the row's own and those before it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import psutil

from distrl.fragments import ages, as_one
from distrl.heartbeat import at_work
from distrl.seeding import stream
from distrl.settings import Config, ReplaySettings
from distrl.sizes import check_fits
from distrl.types import Array, Arrays, Batch, Fragment, Fresh, Priorities
from distrl.workers.sumtree import SumTree

NOBODY_ACTED, WENT_ON, TERMINATED, TRUNCATED = range(4)  # what became of a row
LEAST_PRIORITY = 1e-6  # so that nothing is out of reach
ROW_BYTES = (
    4 + 1 + 1 + 8 + 16 + 1
)  # beside observation and action: reward, end, age, Q and V, the leaf in the sum-tree, `there`


@at_work
class Replay:
    def __init__(self, config: Config, number: int, state: Arrays | None, agents: int = 1) -> None:
        """
        Args:
            number: of this one among the `replay.shards`; it holds the env shards number, number + replay.shards, ...
            state: of the checkpoint to go on from; None: empty
            agents: of an env copy, each of which has a ring of its own
        """
        assert config.replay is not None and config.algorithm.replayed is not None
        self.settings: ReplaySettings = config.replay
        self.learning = config.algorithm.replayed
        first = self.settings.prioritized and self.settings.first_priority == "acting"
        self.acting_values = self.learning.values if first else None  # of which first priorities are made
        self.config, self.number, rollout = config, number, config.rollout
        self.copies, self.shards = rollout.envs_per_shard * agents, rollout.shards // self.settings.shards
        self.columns = self.shards * self.copies
        self.rows = self.settings.capacity // (rollout.shards * self.copies)
        self.inserted = 0  # steps, ever
        self.settled = 0  # of them, those whose updates were drawn
        self.count = 0  # steps that can be drawn
        self.largest = 1.0  # priority so far
        self.next = np.zeros(self.shards, np.int64)  # iteration of each shard's next fragment
        # Of each column, in rows counted from the beginning: what is below `tail` is overwritten (in part), what is in
        # [tail, ready) can be drawn, what is in [ready, head) awaits the rest of its return.
        self.tail, self.ready, self.head = (np.zeros(self.columns, np.int64) for _ in range(3))
        self.there = np.zeros(self.columns * self.rows, bool)  # who learns has the observation of the row
        self.arrays: Arrays = {}  # [columns * rows, ...] each, made when the first fragment shows shapes and types
        self.stack = 0
        self.tree = SumTree(self.columns * self.rows)
        self.gammas = self.learning.gamma ** np.arange(self.learning.n_step + 1)
        if state is not None:
            self._load(state)

    # --- writing ----------------------------------------------------------------------------------------------

    def add(self, *fragments: Fragment) -> int:
        """Store fragments; one that was stored before is left out. Returns the steps inserted ever."""
        for fragment in fragments:
            shard = fragment.shard // self.settings.shards
            if fragment.iteration >= self.next[shard]:
                fragment = as_one(fragment) if self.learning.joint else fragment
                self._add(fragment, np.arange(shard * self.copies, (shard + 1) * self.copies), shard)
        return self.inserted

    def _add(self, fragment: Fragment, columns: Array, shard: int) -> None:
        if not self.arrays:
            self._allocate(fragment)
        steps, lead = len(fragment.reward), max(0, self.stack - 1)
        before = self.head[columns]
        self._continue(fragment, columns, fragment.iteration == self.next[shard])
        self.next[shard] = fragment.iteration + 1
        self.inserted += fragment.reward.size  # of whoever was there, so that all replays draw as often

        truncated, ended = fragment.truncated, fragment.ended
        age = np.zeros((steps + 1, self.copies), np.uint8)
        if self.stack:
            age = ages(self.arrays["age"][self._slot(columns, self.head[columns])], ended, self.stack)
        skipped = np.cumsum(truncated, axis=0)  # rows taken by last observations, up to and with step t
        rows = self.head[columns] + np.arange(steps)[:, None] + skipped - truncated  # [T, N]
        self.head[columns] += steps + skipped[-1]
        self._evict(columns)
        slot, arrays = self._slot(columns, rows), self.arrays
        arrays["obs"][slot] = fragment.obs[lead : lead + steps]
        arrays["action"][slot] = fragment.action
        arrays["reward"][slot] = fragment.reward
        arrays["end"][slot] = np.where(fragment.acted, WENT_ON + fragment.terminated + 2 * truncated, NOBODY_ACTED)
        arrays["age"][slot] = age[:-1]
        head = self._slot(columns, self.head[columns])
        arrays["obs"][head], arrays["end"][head], arrays["age"][head] = fragment.obs[-1], NOBODY_ACTED, age[-1]
        last = self._slot(columns, rows + 1)[truncated]
        arrays["obs"][last] = fragment.final_obs[truncated[ended]]
        arrays["end"][last], arrays["age"][last] = NOBODY_ACTED, np.minimum(age[:-1][truncated] + 1, lead)
        if self.acting_values:  # V of a row on which nobody acted is taken to be that of the row before
            q, value = (fragment.extras[name] for name in self.acting_values)
            arrays["q"][slot], arrays["value"][slot] = q, value
            arrays["value"][last], arrays["value"][head] = value[truncated], value[-1]
        new = before[:, None] + np.arange((self.head[columns] - before).max() + 1)
        self.there[self._slot(columns[:, None], np.minimum(new, self.head[columns][:, None]))] = False
        self._make_ready(columns)

    def _allocate(self, fragment: Fragment) -> None:
        self.stack = fragment.stack
        size, obs, action = self.columns * self.rows, fragment.obs, fragment.action
        check_memory(size, replay_row_bytes(obs[0, 0].nbytes, action[0, 0].nbytes))
        self.arrays = {
            "obs": np.zeros((size, *obs.shape[2:]), obs.dtype),
            "action": np.zeros((size, *action.shape[2:]), action.dtype),
            "reward": np.zeros(size, np.float32),
            **{name: np.zeros(size, np.uint8) for name in ("end", "age")},
        }
        if self.acting_values:
            self.arrays |= {"q": np.zeros(size, np.float32), "value": np.zeros(size, np.float32)}

    def _continue(self, fragment: Fragment, columns: Array, in_order: bool) -> None:
        """Where a fragment does not begin with the observation that the one before ended with, cut the chain."""
        lead = max(0, self.stack - 1)
        known = self.arrays["obs"][self._slot(columns, self.head[columns])]
        same = (known == fragment.obs[lead]).reshape(len(columns), -1).all(axis=1)
        fresh = (self.next[columns[0] // self.copies] == 0) | ~same | (not in_order)
        for n in np.flatnonzero(fresh).tolist():
            column = columns[n : n + 1]
            if self.head[column[0]] > 0:
                end = self.arrays["end"]
                before = self._slot(column, self.head[column] - 1)
                end[before] = np.where(end[before] == WENT_ON, TRUNCATED, end[before])
                self.head[column] += 1  # what was the newest observation is the episode's last
                self._make_ready(column)
            for frame in range(lead):
                slot = self._slot(column, self.head[column])
                self.arrays["obs"][slot] = fragment.obs[frame, n]
                self.arrays["end"][slot], self.arrays["age"][slot] = NOBODY_ACTED, 0
                self.head[column] += 1
            self.arrays["age"][self._slot(column, self.head[column])] = lead

    def _evict(self, columns: Array) -> None:
        """Take out what the rows up to the head overwrite, and what begins with a frame of it."""
        oldest = self.head[columns] - self.rows + 1 + max(0, self.stack - 1)
        self.ready[columns] = np.maximum(self.ready[columns], oldest)
        rows = self.tail[columns][:, None] + np.arange(max(0, int((oldest - self.tail[columns]).max())))
        slots = self._slot(columns[:, None], rows)[rows < oldest[:, None]]
        self.count -= int((self.tree.get(slots) > 0).sum())
        self.tree.set(slots, 0.0)
        self.tail[columns] = np.maximum(self.tail[columns], oldest)

    def _make_ready(self, columns: Array) -> None:
        """Give their first priority to the steps whose return is complete by now."""
        first, head = self.ready[columns][:, None], self.head[columns][:, None]
        rows = first + np.arange(max(0, int((head - first).max())))  # [N, W]
        slots = self._slot(columns[:, None], rows)
        end = self.arrays["end"][slots]
        complete = (rows < head) & ((end == NOBODY_ACTED) | (rows + steps_left(end, self.learning.n_step) <= head))
        self.ready[columns] += complete.sum(axis=1)
        new = complete & (end != NOBODY_ACTED)
        slots, rows, columns = slots[new], rows[new], np.broadcast_to(columns[:, None], new.shape)[new]
        if not self.settings.prioritized:
            priority: Array | float = 1.0
        elif self.acting_values:
            reward, discount, after = self._walk(columns, rows)
            error = reward + discount * self.arrays["value"][self._slot(columns, after)] - self.arrays["q"][slots]
            priority = self._priority(error)
        else:
            priority = self.largest
        self.count += len(slots)
        self.tree.set(slots, priority)

    def update_priorities(self, priorities: Priorities) -> int:
        """Give the steps of a batch their new priorities, leaving out those that were overwritten; returns how many."""
        rows, columns = np.divmod(priorities.key, self.columns)
        there = rows >= self.tail[columns]
        priority = self._priority(priorities.td_error[there])
        self.tree.set(self._slot(columns[there], rows[there]), priority)
        self.largest = max(self.largest, float(priority.max(initial=0.0)))
        return int(there.sum())

    # --- drawing ----------------------------------------------------------------------------------------------

    def sample(self, iteration: int, env_steps: int, by_row: bool = False, *after: int) -> Batch:
        """A batch for all updates of an iteration: so many that `samples_per_insert` holds over the whole run.

        Args:
            env_steps: counted so far, with those of this iteration
            by_row: say in which rows observations lie, of which who learns has a copy; what it lacks comes along
            after: results of the calls that this one relies on
        """
        settings, size = self.settings, self.learning.batch_size // self.settings.shards
        due = partial(updates_due, self.settings, self.learning.batch_size)
        updates, self.settled = due(self.inserted) - due(self.settled), self.inserted
        rng = stream(self.config.seed, "replay", self.number, iteration)
        # One draw from each of B equal parts of the whole mass: as often in the mean, less noise (Schaul et al. 2016).
        mass = (np.arange(size) + rng.random((updates, size))) * (self.tree.total / size)
        slots = self.tree.find(mass.ravel())
        columns = slots // self.rows
        head = self.head[columns]
        rows = head - (head - slots % self.rows) % self.rows
        reward, discount, after_rows = self._walk(columns, rows)
        weight: Array = np.ones(len(slots), np.float32)
        if settings.prioritized:
            beta = settings.beta + (1 - settings.beta) * min(1.0, self.config.progress(env_steps))
            weight = (self.tree.get(slots) * self.count / self.tree.total) ** -beta

        obs, next_obs = self._rows_seen(columns, rows), self._rows_seen(columns, after_rows)
        fresh = self._fresh(obs, next_obs) if by_row else None
        if not by_row:
            obs, next_obs = self.arrays["obs"][obs], self.arrays["obs"][next_obs]

        def shaped(array: Array) -> Array:
            return array.reshape(updates, size, *array.shape[1:])

        return Batch(
            key=shaped(rows * self.columns + columns),
            obs=shaped(obs),
            action=shaped(self.arrays["action"][slots]),
            reward=shaped(reward.astype(np.float32)),
            discount=shaped(discount.astype(np.float32)),
            next_obs=shaped(next_obs),
            weight=shaped(weight.astype(np.float32)),
            fresh=fresh,
        )

    def _walk(self, columns: Array, rows: Array) -> tuple[Array, Array, Array]:
        """Up to n steps from each row [M]: the discounted sum of rewards, gamma^m (0 if terminated), and row + m."""
        reward, after = np.zeros(len(rows)), rows
        going, terminated = np.ones(len(rows), bool), np.zeros(len(rows), bool)
        for step in range(self.learning.n_step):
            slots = self._slot(columns, after)
            reward += self.gammas[step] * self.arrays["reward"][slots] * going
            end = self.arrays["end"][slots]
            terminated |= going & (end == TERMINATED)
            after = after + going
            going = going & (end == WENT_ON)
        return reward, self.gammas[after - rows] * ~terminated, after

    def _rows_seen(self, columns: Array, rows: Array) -> Array:
        """Where the observations of rows [M] lie, [M]; of stacks each frame, [M, C]."""
        if not self.stack:
            return self._slot(columns, rows)
        age = self.arrays["age"][self._slot(columns, rows)].astype(np.int64)
        back = np.minimum(age[:, None], np.arange(self.stack - 1, -1, -1))
        return self._slot(columns[:, None], rows[:, None] - back)

    def _fresh(self, *seen: Array) -> Fresh:
        """Of these rows those that who learns has not yet, which is taken to have them from now on."""
        wanted = np.unique(np.concatenate([rows.ravel() for rows in seen]))
        at = wanted[~self.there[wanted]]
        self.there[at] = True
        return Fresh(self.columns * self.rows, at, self.arrays["obs"][at])

    def _slot(self, columns: Array, rows: Array) -> Array:
        slots: Array = columns * self.rows + rows % self.rows
        return slots

    def _priority(self, error: Array) -> Array:
        priority: Array = (np.abs(error.astype(np.float64)) + LEAST_PRIORITY) ** self.settings.alpha
        return priority

    # --- keeping ----------------------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """All that is needed to go on bit for bit; the parts of the rings that were never written are left out."""
        counters = np.array([self.inserted, self.settled, self.count, self.stack], np.int64)
        used = min(self.rows, int(self.head.max()) + 1)
        rings = {f"ring.{name}": a.reshape(self.columns, self.rows, *a.shape[1:]) for name, a in self.arrays.items()}
        rings["priority"] = self.tree.sums[self.tree.first :][: self.columns * self.rows].reshape(self.columns, -1)
        return {
            "counters": counters,
            "largest": np.array(self.largest),
            **{name: getattr(self, name).copy() for name in ("next", "tail", "ready", "head")},
            **{name: array[:, :used].copy() for name, array in rings.items()},
        }

    def _load(self, state: Arrays) -> None:
        self.inserted, self.settled, self.count, self.stack = map(int, state["counters"])
        self.largest = float(state["largest"])
        self.next, self.tail, self.ready, self.head = (state[k].copy() for k in ("next", "tail", "ready", "head"))
        size = self.columns * self.rows
        for name, ring in state.items():
            if name.startswith("ring."):
                array = np.zeros((self.columns, self.rows, *ring.shape[2:]), ring.dtype)
                array[:, : ring.shape[1]] = ring
                self.arrays[name.removeprefix("ring.")] = array.reshape(size, *ring.shape[2:])
        column, row = np.nonzero(state["priority"])
        self.tree.set(column * self.rows + row, state["priority"][column, row])


def replay_row_bytes(obs: int, action: int) -> int:
    """What a step takes; `obs` and `action` are the bytes of one observation (one frame of a stack) and one action."""
    return obs + action + ROW_BYTES


def check_memory(capacity: int, row_bytes: int) -> None:
    """Raises `UserError` where so many steps take more memory than this machine has free."""
    most = int(0.8 * psutil.virtual_memory().available / row_bytes)
    takes = f"replay.capacity={capacity:,} steps take"
    check_fits(capacity * row_bytes, takes, f"Set replay.capacity to at most {most:,}.")


def updates_due(settings: ReplaySettings, batch_size: int, inserted: int) -> int:
    """How many updates one replay's `inserted` steps allow in all; none before `start`."""
    return int(max(0, inserted * settings.shards - settings.start) * settings.samples_per_insert / batch_size)


def steps_left(end: Array, n: int) -> Array:
    """Steps from each row to the end of its episode, at most n; n where that is not there. [N, W] int64.

    Args:
        end: [N, W], what became of each row of W in the order of time
    """
    left = np.full((len(end), end.shape[1] + 1), n, np.int64)
    for w in reversed(range(end.shape[1])):
        left[:, w] = np.where(end[:, w] == WENT_ON, left[:, w + 1] + 1, np.where(end[:, w] == NOBODY_ACTED, n, 1))
    return np.minimum(left[:, :-1], n)
