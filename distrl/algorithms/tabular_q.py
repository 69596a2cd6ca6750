"""Action values in a table: Q-learning, Double Q-learning, SARSA, Expected SARSA, Q(lambda); one switch, `method`.

    Q(s, a) += rate (target - Q(s, a)),     target = r + gamma v(s'),     v(s') = 0 after a termination

    q               v(s') = max_a Q(s', a)                            Watkins 1989
    double_q        v(s') = Q2(s', argmax_a Q1(s', a)), or 1 for 2    van Hasselt 2010
    sarsa           v(s') = Q(s', a'), a' being what was done next    Rummery and Niranjan 1994
    expected_sarsa  v(s') = sum_a pi(a|s') Q(s', a)                   van Seijen et al. 2009
    q_lambda        v(s') = (1 - lambda) max_a Q(s', a) + lambda G'   Watkins' Q(lambda), Sutton and Barto 2018, 12.10

G' is the target of the next step; where its action is not greedy, the episode was cut off or the fragment ends,
v(s') = max_a Q(s', a) instead. SARSA takes the expectation over pi where the next action is not in the fragment.
A truncated step bootstraps from the true last observation, like any other.

Of two agents in turns the next state is the other's, whose value counts with the other sign (`turn_by_turn`): minimax-Q.

An iteration brings S x N transitions for each of T steps. They are learnt from last step to first (so that what is met
at the end of an episode reaches its beginning in one sweep), each step being one update of the whole table. Where c
copies did the same in the same state, their mean target counts as c updates in a row:

    rate = 1 - (1 - lr)^c                                  for a fixed or scheduled lr
    rate = max of that and 1 - (n / (n + c))^kappa         with `visit_power` kappa, after n visits so far

The second makes the rate of visit j 1 - (1 - 1/j)^kappa: the mean of all targets for kappa = 1, less weight to the old
ones, which stem from a worse table, for more (Even-Dar and Mansour 2003 show how much that matters). Both give the same
however c is cut into parts, and depend on nothing but the transitions in shard order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from pydantic import Field

from distrl.acting.codings import (
    MAX_KEY,
    Keys,
    Tiles,
)
from distrl.acting.spaces import CodingSettings, make_coding
from distrl.acting.tables import TablePolicy, masked
from distrl.errors import UserError
from distrl.fragments import true_successors
from distrl.learning.schedules import Schedule, Share, check_schedules
from distrl.seeding import stream
from distrl.settings import AlgorithmSettings, Config
from distrl.settings import Settings as Base
from distrl.types import Array, Arrays, EnvInfo, Fragment

NEEDS_TORCH = False
MAX_BYTES = 2**31  # of one copy of a table


class RehearsalSettings(Base):
    """Past transitions, learnt from again after every iteration."""

    capacity: int = Field(default=100_000, ge=1, description="transitions kept")
    updates: int = Field(default=8, ge=1, description="batches an iteration")
    batch: int = Field(default=1024, ge=1, description="transitions of a batch")
    order: Literal["uniform", "recent"] = Field(default="uniform", description="recent: newest first")


class Settings(AlgorithmSettings):
    sparse: ClassVar[bool] = True
    name: Literal["q"] = Field(description="action values in a table")
    method: Literal["q", "double_q", "sarsa", "expected_sarsa", "q_lambda"] = Field(
        default="q", description="what the value of the next state is"
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount of a step")
    trace: float = Field(default=0.9, ge=0, le=1, description="lambda of q_lambda")
    lr: Share = Field(default=Schedule(start=0.1), description="how far a value goes to its target")
    visit_power: float | None = Field(
        default=None, ge=1, description="kappa: rates fall with visits, down to lr; null: lr alone"
    )
    epsilon: Share = Field(
        default=Schedule(start=1.0, end=0.05, over=100_000),
        description="how often any action is taken instead of the best",
    )
    initial: float = Field(default=0.0, description="of all values; above what can be had: optimism")
    coding: CodingSettings = Field(default=CodingSettings(), description="how an observation becomes a state")
    capacity: int | None = Field(
        default=None, ge=1, description="states of a hashed table, filled as they are met; null: a dense table"
    )
    mask: bool = Field(default=True, description="never do what the env says does nothing, where it says so (Taxi)")
    rehearsal: RehearsalSettings | None = Field(
        default=None, description="learn again from past transitions after every iteration; {}: on"
    )

    def check(self, config: Config) -> None:
        check_schedules(self, config, episodes=True)
        if self.rehearsal is not None and self.method in ("sarsa", "q_lambda"):
            raise UserError(
                f"algorithm.rehearsal needs a method that can learn from single old steps; {self.method} cannot. "
                "Set algorithm.method to q, double_q or expected_sarsa, or algorithm.rehearsal=null."
            )
        if self.rehearsal is not None and self.rehearsal.capacity < config.rollout.env_steps:
            raise UserError(
                f"algorithm.rehearsal.capacity is {self.rehearsal.capacity}, less than the {config.rollout.env_steps} steps of an "
                "iteration (rollout.shards x envs_per_shard x steps). Raise it."
            )
        if self.capacity is not None and self.coding.kind == "tiles":
            raise UserError("algorithm.capacity is of bins and discrete states; tiles are hashed by coding.memory.")


def make_policy(settings: Settings, info: EnvInfo) -> TablePolicy:
    """The acting policy for an env's spaces. Raises `UserError` for what no table can hold."""
    action = info.action_space
    if info.agents and (not info.turns or len(info.agents) != 2):
        raise UserError(
            f"A table is of one agent here, or of two in turns who share it, and {info.id} is of others. Set algorithm.name=ppo."
        )
    if not isinstance(action, gym.spaces.Discrete):
        raise UserError(
            f"A table has a column for every action, and those of {info.id} are {action}. Set algorithm.name=ppo or a2c, which "
            "take actions of every kind."
        )
    coding = make_coding(settings.coding, info)
    capacity, actions = settings.capacity, int(action.n)
    rows = coding.size if capacity is None else capacity + 1
    if 8 * rows * actions > MAX_BYTES:
        remedy = (
            "Lower coding.memory."
            if isinstance(coding, Tiles)
            else "Take fewer bins, or a hash: algorithm.capacity=100000."
        )
        if capacity is not None:
            remedy = "Lower algorithm.capacity."
        raise UserError(
            f"A table for {info.id} has {rows:,} rows of {actions} actions: {8 * rows * actions / 2**30:,.1f} GiB, more than the "
            f"{MAX_BYTES / 2**30:g} GiB that a table may have. {remedy}"
        )
    if capacity is not None and coding.size > MAX_KEY:
        raise UserError(f"{coding.size:.3g} states are more than can be told apart (2^53). Take fewer inputs or bins.")
    layout = info.obs_layout if settings.mask else replace(info.obs_layout, states=())
    return TablePolicy(layout, coding, actions, int(action.start), capacity)


@dataclass
class Transitions:
    """T steps of M copies as rows of the table; with K tilings rows have a last axis [K]."""

    row: Array  # [T, M]
    action: Array  # [T, M]
    reward: Array  # [T, M]
    next_row: Array  # [T, M] of the true next state
    discount: Array  # [T, M] gamma, or 0 after a termination
    ended: Array  # [T, M]
    next_allowed: Array | None = None  # [T, M, A] what may be done there, where the observation says so


def turn_by_turn(both: Transitions, active: Array) -> Transitions:
    """The turns of two agents as one chain: what an agent leaves to the other is worth to it what it is not worth to that one.

    So Q(s, a) is of who moves, and the value of the next state counts with the other sign where the other moves there: minimax-Q
    (Littman 1994) of games in turns. What is learnt of a game depends on no opponent.

    Args:
        both: [T, 2 M], a column each
        active: [T + 1, 2 M] whose turn it is
    Raises:
        UserError: what one wins is not what the other loses
    """

    def pick(array: Array, who: Array) -> Array:
        pairs = array.reshape(len(array), -1, 2, *array.shape[2:])
        return np.take_along_axis(pairs, who.reshape(*who.shape, *[1] * (pairs.ndim - 2)), axis=2)[:, :, 0]

    if both.reward.reshape(len(both.reward), -1, 2).sum(axis=2).any():
        raise UserError(
            "A table learns games in which one wins what the other loses, and here rewards of a step do not sum to 0. "
            "Set algorithm.name=ppo."
        )
    movers = active.reshape(len(active), -1, 2).argmax(axis=2)
    mover, ended = movers[:-1], pick(both.ended, movers[:-1])
    following = np.where(ended, 1 - mover, movers[1:])
    allowed = both.next_allowed
    return Transitions(
        pick(both.row, mover),
        pick(both.action, mover),
        pick(both.reward, mover),
        pick(both.next_row, following),
        pick(both.discount, mover) * np.where(following == mover, 1.0, -1.0),
        ended,
        None if allowed is None else pick(allowed, following),
    )


class Rehearsal:
    """The newest transitions in a ring, to be learnt from again after every iteration.

    It shares nothing with the replay worker (`distrl.workers.replay`), which holds observations for a learner elsewhere: here
    are rows of the table, beside the table, so a batch needs neither a call nor a coding, and single steps need neither
    priorities nor stacks nor returns of several steps.
    """

    def __init__(self, settings: RehearsalSettings) -> None:
        self.settings = settings
        self.arrays: Arrays = {}  # [capacity, ...] each, made when the first transitions show shapes and types
        self.added = 0  # transitions, ever

    def add(self, batch: Transitions) -> None:
        """Put the transitions into the ring, first step first."""
        capacity, size = self.settings.capacity, batch.reward.size
        at = (self.added + np.arange(size)) % capacity
        for name, values in vars(batch).items():
            if name == "ended" or values is None:
                continue
            values = values.reshape(size, *values.shape[2:])
            if name not in self.arrays:
                self.arrays[name] = np.zeros((capacity, *values.shape[1:]), values.dtype)
            self.arrays[name][at] = values
        self.added += size

    def draw(self, rng: np.random.Generator, number: int) -> dict[str, Any]:
        """Batch `number` of an iteration, what `TabularQ.learn` takes: drawn evenly, or from the newest back to older ones until none is left."""
        held, size = min(self.settings.capacity, self.added), self.settings.batch
        if self.settings.order == "uniform":
            at = rng.integers(0, held, size)
        else:
            age = number * size + np.arange(size)
            at = (self.added - 1 - age[age < held]) % self.settings.capacity
        return {name: values[at] for name, values in self.arrays.items()}

    def state(self) -> Arrays:
        return {"added": np.array(self.added)} | {name: values.copy() for name, values in self.arrays.items()}

    def load_state(self, state: Arrays) -> None:
        self.added = int(state["added"])
        self.arrays = {name: values.copy() for name, values in state.items() if name != "added"}


def mean_by_entry(entry: Array, td: Array, size: int) -> tuple[Array, Array, Array]:
    """Which of `size` entries occur in `entry` [B], the mean of their `td` [B], and how often they do."""
    if size <= 8 * len(entry):
        count = np.bincount(entry, minlength=size)
        total = np.bincount(entry, td, size)
        where = np.flatnonzero(count)
        count = count[where]
        return where, total[where] / count, count
    where, inverse, count = np.unique(entry, return_inverse=True, return_counts=True)
    return where, np.bincount(inverse, td, len(where)) / count, count


class TabularQ:
    """`distrl.types.Algorithm`; see the head of this file."""

    def __init__(self, settings: Settings, policy: TablePolicy, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.numbers, self.capacity, self.actions = policy.numbers, policy.capacity, policy.actions
        self.first_action, self.tilings = policy.first_action, policy.coding.tilings
        self.allowed = policy.allowed  # [rows, A] where the state itself says it
        self.mask_of = policy.obs_layout.mask_of
        tables = 2 if settings.method == "double_q" else 1
        # Rows of tiles are summed, so each holds its part of the initial value.
        self.tables = np.full((tables, policy.rows_in_table, self.actions), settings.initial / self.tilings)
        self.visits = np.zeros(self.tables.shape, np.int64)
        self.keys = np.zeros(0, np.int64)
        self.progress, self.env_steps, self.episodes = 0.0, 0, 0
        self.rehearsal = None if settings.rehearsal is None else Rehearsal(settings.rehearsal)

    def begin(self, policy: TablePolicy) -> None:
        """Take the policy's table. An entry that is no longer what all begin with counts as visited once."""
        arrays = policy.arrays()
        self.visits[:] = arrays["table"] != self.tables
        self.tables[:] = arrays["table"]
        if self.capacity is not None:
            self.keys = arrays["keys"][arrays["keys"] >= 0].astype(np.int64)

    @property
    def epsilon(self) -> float:
        return self.settings.epsilon(self.progress, self.env_steps, self.episodes)

    @property
    def lr(self) -> float:
        return self.settings.lr(self.progress, self.env_steps, self.episodes)

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        batch = self.transitions(fragments)
        steps, copies = batch.reward.shape
        self.progress = progress
        self.env_steps += steps * copies
        self.episodes += int(batch.ended.sum())
        coins = stream(self.seed, "double", iteration).random((steps, copies)) < 0.5 if len(self.tables) == 2 else None
        errors, later = 0.0, None
        for t in reversed(range(steps)):
            follow = None if t + 1 == steps else (batch.action[t + 1], batch.ended[t], later)
            later, error = self.learn(
                batch.row[t],
                batch.action[t],
                batch.reward[t],
                batch.next_row[t],
                batch.discount[t],
                None if batch.next_allowed is None else batch.next_allowed[t],
                follow,
                None if coins is None else coins[t],
            )
            errors += error
        if self.rehearsal is not None:
            self.rehearsal.add(batch)
            self.rehearse(self.rehearsal, iteration)
        return {
            "td_error": errors / steps,
            "q_mean": float(self.tables[0].mean() * self.tilings),
            "entries_visited": float(np.count_nonzero(self.visits)),
            "epsilon": self.epsilon,
            "learning_rate": self.lr,
        }

    def transitions(self, fragments: list[Fragment]) -> Transitions:
        """The fragments side by side, as rows of the table; states that a hashed table does not hold yet get a row."""
        obs = np.concatenate([f.obs for f in fragments], axis=1)
        final_obs = np.concatenate([f.final_obs for f in fragments])
        numbers, final = self.numbers(obs), self.numbers(final_obs)
        if self.capacity is not None:
            numbers, final = self.give_rows(numbers, final)
        action, reward, terminated, ended = (
            np.concatenate(x, axis=1)
            for x in zip(*((f.action, f.reward, f.terminated, f.ended) for f in fragments), strict=True)
        )
        batch = Transitions(
            numbers[:-1],
            action - self.first_action,
            reward,
            true_successors(numbers[1:], final, fragments),
            np.where(terminated, 0.0, self.settings.gamma),
            ended,
            self.next_masks(obs, final_obs, fragments),
        )
        active = [f.active for f in fragments if f.active is not None]
        return turn_by_turn(batch, np.concatenate(active, axis=1)) if active else batch

    def next_masks(self, obs: Array, final_obs: Array, fragments: list[Fragment]) -> Array | None:
        """What may be done in the state that every step led to, [T, M, A], where it is the observation that says so."""
        if self.allowed is not None:
            return None
        allowed, final = self.mask_of(obs[1:]), self.mask_of(final_obs)
        return None if allowed is None or final is None else true_successors(allowed, final, fragments)

    def give_rows(self, *numbers: Array) -> list[Array]:
        """Rows of a hashed table for all numbers, new ones in the order of their size."""
        assert self.capacity is not None
        keys = Keys(self.keys)
        rows = [keys.rows(x, self.capacity) for x in numbers]
        new = np.unique(np.concatenate([x[r == self.capacity].ravel() for x, r in zip(numbers, rows, strict=True)]))
        if not len(new):
            return rows
        if len(self.keys) + len(new) > self.capacity:
            raise UserError(
                f"The table is full: after {self.env_steps:,} env steps more than algorithm.capacity={self.capacity:,} states "
                "were met. Raise it, or take fewer bins."
            )
        self.keys = np.concatenate([self.keys, new])
        keys = Keys(self.keys)
        return [keys.rows(x, self.capacity) for x in numbers]

    def learn(
        self,
        row: Array,
        action: Array,
        reward: Array,
        next_row: Array,
        discount: Array,
        next_allowed: Array | None = None,
        follow: tuple[Array, Array, Array | None] | None = None,
        coin: Array | None = None,
    ) -> tuple[Array, float]:
        """One update by B transitions; returns their targets [B] and the mean absolute TD error.

        Args:
            next_allowed: as in `Transitions`
            follow: of the next step: action, whether the episode ended before it, target; None: not known
            coin: [B] which transitions are for the second table of double_q
        """
        entry = self.entries(row, action)
        if coin is not None:
            target = np.empty(len(reward))
            for table, mine in enumerate((~coin, coin)):
                allowed = self.allowed_in(next_row, next_allowed)
                best = masked(self.values(table, next_row[mine]), None if allowed is None else allowed[mine]).argmax(
                    axis=-1
                )
                others = self.values(1 - table, next_row[mine])[np.arange(len(best)), best]
                target[mine] = reward[mine] + discount[mine] * others
            parts: list[tuple[int, Any]] = [(0, ~coin), (1, coin)]
        else:
            target = reward + discount * self.next_value(next_row, next_allowed, follow)
            parts = [(0, slice(None))]
        error = 0.0
        for table, mine in parts:
            flat = self.tables[table].reshape(-1)
            old = flat[entry[mine]]
            td = target[mine] - (old if self.tilings == 1 else old.sum(axis=-1))
            self.apply(table, entry[mine], td)
            error += float(np.abs(td).sum())
        return target, error / len(reward)

    def allowed_in(self, row: Array | slice, given: Array | None) -> Array | None:
        """What may be done in the states of rows, [B, A]; None: everything."""
        return given if self.allowed is None else self.allowed[row]

    def next_value(
        self, next_row: Array, given: Array | None, follow: tuple[Array, Array, Array | None] | None
    ) -> Array:
        """v(s') [B] of all methods but double_q."""
        method = self.settings.method
        # Of every row once, where that is less work than of every transition.
        whole = self.tilings == 1 and len(self.tables[0]) <= len(next_row) and given is None
        row, at = (slice(None), next_row) if whole else (next_row, np.arange(len(next_row)))
        q, allowed = self.values(0, row), self.allowed_in(row, given)
        best: Array = masked(q, allowed).max(axis=-1)[at]
        if method == "q":
            return best
        if method in ("sarsa", "expected_sarsa"):
            epsilon = self.epsilon
            mean = (
                q.mean(axis=-1)
                if allowed is None
                else (q * (allowed / allowed.sum(axis=1, keepdims=True))).sum(axis=-1)
            )
            best = (1 - epsilon) * best + epsilon * mean[at]
            if method == "expected_sarsa":
                return best
        if follow is None:
            return best
        action, ended, later = follow
        done = q[at, action]  # where the episode went on, s' is where it was done; of the same sums as the best
        value: Array
        if method == "sarsa":
            value = np.where(ended, best, done)
        else:
            assert later is not None
            trace = self.settings.trace
            value = np.where(ended | (done != best), best, (1 - trace) * best + trace * later)
        return value

    def entries(self, row: Array, action: Array) -> Array:
        """Where Q(s, a) lies in the flat table: [B] or [B, K]."""
        entry: Array = row * self.actions + (action if self.tilings == 1 else action[:, None])
        return entry

    def values(self, table: int, row: Array | slice) -> Array:
        """Q(s, .) [B, A] by one of the tables."""
        q: Array = self.tables[table][row]
        return q if self.tilings == 1 else q.sum(axis=-2)

    def apply(self, table: int, entry: Array, td: Array) -> None:
        """Move the entries of B transitions along their TD errors [B]."""
        flat, visits = self.tables[table].reshape(-1), self.visits[table].reshape(-1)
        if self.tilings > 1:
            td = np.repeat(td, self.tilings)
        where, mean, count = mean_by_entry(entry.reshape(-1), td, flat.size)
        rate = 1 - (1 - self.lr) ** count
        before = visits[where]
        if self.settings.visit_power is not None:
            rate = np.maximum(rate, 1 - (before / (before + count)) ** self.settings.visit_power)
        flat[where] += rate * mean / self.tilings
        visits[where] = before + count

    def rehearse(self, past: Rehearsal, iteration: int) -> None:
        """Learn again from what was seen, one batch after the other."""
        rng = stream(self.seed, "replay", iteration)
        for number in range(past.settings.updates):
            batch = past.draw(rng, number)
            size = len(batch["row"])
            if not size:
                return
            self.learn(**batch, coin=rng.random(size) < 0.5 if len(self.tables) == 2 else None)

    # --- what travels and what is kept ------------------------------------------------------------------------

    def weights(self) -> Array:
        table = self.tables[0] if len(self.tables) == 1 else self.tables.mean(axis=0)
        keys = [] if self.capacity is None else [self.keys, np.full(self.capacity - len(self.keys), -1)]
        return np.concatenate([table.ravel(), *keys, [self.epsilon]])

    def state(self) -> Arrays:
        counters = np.array([self.progress, self.env_steps, self.episodes])  # float64: whole numbers up to 2^53
        arrays = {"tables": self.tables, "visits": self.visits, "keys": self.keys, "counters": counters}
        past = {} if self.rehearsal is None else self.rehearsal.state()
        return {k: v.copy() for k, v in arrays.items()} | {f"rehearsal.{name}": values for name, values in past.items()}

    def load_state(self, state: Arrays) -> None:
        self.tables, self.visits, self.keys = (state[name].copy() for name in ("tables", "visits", "keys"))
        self.progress, env_steps, episodes = state["counters"].tolist()
        self.env_steps, self.episodes = int(env_steps), int(episodes)
        if self.rehearsal is not None:
            prefix = "rehearsal."
            self.rehearsal.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def initial_weights(settings: Settings, policy: TablePolicy, seed: int) -> Array:
    """The weights of version 0."""
    return TabularQ(settings, policy, seed).weights()


def make(settings: Settings, policy: TablePolicy, seed: int, device: Any) -> TabularQ:
    algorithm = TabularQ(settings, policy, seed)
    algorithm.begin(policy)
    return algorithm
