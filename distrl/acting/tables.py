"""Tables of action values: how an observation becomes rows of one, and the policy that acts by it. NumPy alone.

A *coding* turns observations into whole numbers: one for every observation, or one for every tiling. Where all of
them can be held, they are rows of a dense table. Where not, the table is a hash of `capacity` rows that are given out
in the order in which states are met; all other states share one row of initial values that is never learnt.

    Q(s, a) = sum over the rows i of s of table[i, a]        (one row, but for tilings)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from distrl.acting.codings import KINDS, Coding, Keys
from distrl.acting.network import unflatten
from distrl.descriptions import STRICT, Count, from_json
from distrl.layouts import Layout, discrete_layout
from distrl.sizes import check_fits
from distrl.types import Array, Arrays


def masked(values: Array, allowed: Array | None) -> Array:
    """Q(s, .) [..., A], -inf for what is not allowed; None: all is."""
    return values if allowed is None else np.where(allowed, values, -np.inf)


def choices(allowed: Array) -> tuple[Array, Array]:
    """Of rows [N, A] of what is allowed: how many actions are, [N], and which, these first, [N, A]."""
    return allowed.sum(axis=1), np.argsort(~allowed, axis=1, kind="stable")


@dataclass(frozen=True)
class Told:
    """What a description says of a table in plain numbers."""

    __pydantic_config__ = STRICT
    actions: Count
    first_action: int
    capacity: Count | None


class TablePolicy:
    """Epsilon-greedy by a table: a random allowed action with probability epsilon, else the first best one.

    Epsilon is the last weight: the learner stamps it into every version, so what explores is fixed with the weights.
    """

    def __init__(
        self,
        obs_layout: Layout,
        coding: Coding,
        actions: int,
        first_action: int = 0,
        capacity: int | None = None,
    ) -> None:
        """
        Args:
            obs_layout: also of the masks of actions, where there are some
            capacity: rows of a hashed table; None: a dense one
        """
        self.coding, self.actions, self.first_action, self.capacity = coding, actions, first_action, capacity
        self.obs_layout, self.action_layout = obs_layout, discrete_layout(actions, first_action)
        self._choices = None if self.allowed is None else choices(self.allowed)
        self.vector = np.zeros(sum(prod(shape) for shape in self.shapes().values()))
        self._prepare()

    @property
    def rows_in_table(self) -> int:
        return self.coding.size if self.capacity is None else self.capacity + 1

    @property
    def allowed(self) -> Array | None:
        """[rows, A] bool, of a table whose states say by themselves what may be done; None where they do not."""
        return self.obs_layout.table if self.obs_layout.states and self.capacity is None else None

    @property
    def size(self) -> str:
        """How large the table is, in words."""
        kind = type(self.coding).__name__.lower()
        what = f"{self.coding.size:,} states" if self.coding.tilings == 1 else f"{self.coding.size:,} tiles"
        hashed = "" if self.capacity is None else f", of which a hash holds {self.capacity:,}"
        mib = 8 * self.rows_in_table * self.actions / 2**20
        return f"{what} ({kind}){hashed}; {self.actions} actions; {mib:,.1f} MiB"

    def load(self, vector: Array) -> None:
        self.vector = vector
        self._prepare()

    def _prepare(self) -> None:
        arrays = self.arrays()
        self.table, self.epsilon = arrays["table"], float(arrays["epsilon"][0])
        if self.capacity is not None:
            keys = arrays["keys"]
            self._keys = Keys(keys[: int((keys >= 0).sum())])
        # The best actions of all rows, where that is less work than choosing for every observation.
        small = self.coding.tilings == 1 and self.rows_in_table <= 8192
        known = self.allowed is not None or not self.obs_layout.masked
        self._best = masked(self.table, self.allowed).argmax(axis=1) if small and known else None

    def numbers(self, obs: Array) -> Array:
        """What the coding makes of observations [..., *obs_shape]."""
        return self.coding(self.obs_layout.state(obs))

    def rows(self, obs: Array) -> Array:
        """Rows of the table, [...] or [..., K], of observations [..., *obs_shape]."""
        numbers = self.numbers(obs)
        return numbers if self.capacity is None else self._keys.rows(numbers, self.capacity)

    def values(self, obs: Array) -> Array:
        """Q(s, .) [..., A]."""
        rows = self.table[self.rows(obs)]
        return rows if self.coding.tilings == 1 else rows.sum(axis=-2)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """Uniform numbers [T, N], one an action."""
        return rng.random((steps, copies))

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Below epsilon the uniform number also says, scaled up, which random action it is."""
        action = self._greedy(obs)
        explore = np.flatnonzero(noise < self.epsilon)
        if len(explore):
            uniform = noise[explore] / self.epsilon
            action[explore] = self._explore(obs[explore], uniform)
        return action + self.first_action if self.first_action else action, {}

    def _explore(self, obs: Array, uniform: Array) -> Array:
        """A random allowed action [N] by uniform numbers [N]."""
        if not self.obs_layout.masked:
            return (uniform * self.actions).astype(np.int64)
        if self._choices is not None:
            row, (count, order) = self.rows(obs), self._choices
        else:
            mask = self.obs_layout.mask_of(obs)
            assert mask is not None
            row, (count, order) = np.arange(len(obs)), choices(mask)
        chosen: Array = order[row, (uniform * count[row]).astype(np.int64)]
        return chosen

    def greedy(self, obs: Array) -> Array:
        return self._greedy(obs) + self.first_action

    def _greedy(self, obs: Array) -> Array:
        best: Array
        if self._best is not None:
            best = self._best[self.rows(obs)]
        else:
            best = masked(self.values(obs), self.obs_layout.mask_of(obs)).argmax(axis=-1)
        return best

    def shapes(self) -> dict[str, tuple[int, ...]]:
        keys = {} if self.capacity is None else {"keys": (self.capacity,)}
        return {"table": (self.rows_in_table, self.actions), **keys, "epsilon": (1,)}

    def arrays(self) -> Arrays:
        return unflatten(self.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        kind = next(name for name, cls in KINDS.items() if isinstance(self.coding, cls))
        return {
            "type": "table",
            "obs_layout": self.obs_layout.describe(),
            "coding": {"kind": kind, **asdict(self.coding)},  # type: ignore[call-overload]
            "actions": self.actions,
            "first_action": self.first_action,
            "capacity": self.capacity,
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> TablePolicy:
        """Raises ValueError where a value is none that a table can have."""
        coding = dict(data["coding"])
        kind = coding.pop("kind")
        if kind not in KINDS:
            raise ValueError(f"a coding is of kind {kind!r}; it must be one of {', '.join(KINDS)}")
        told = from_json(Told, {n: x for n, x in data.items() if n not in ("type", "coding", "obs_layout")})
        coded = from_json(KINDS[kind], coding)
        rows = coded.size if told.capacity is None else told.capacity + 1
        what = f"a table of {rows:,} rows of {told.actions:,} actions of 8 bytes"
        check_fits(8 * rows * told.actions, what, "It is of no model.")
        return cls(
            Layout.from_description(data["obs_layout"]),
            coded,
            told.actions,
            told.first_action,
            told.capacity,
        )
