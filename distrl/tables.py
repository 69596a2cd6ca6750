"""Tables of action values: how an observation becomes rows of one, and the policy that acts by it. Floor 1, NumPy alone.

A *coding* turns observations into whole numbers: one for every observation, or one for every tiling. Where all of
them can be held, they are rows of a dense table. Where not, the table is a hash of `capacity` rows that are given out
in the order in which states are met; all other states share one row of initial values that is never learnt.

    Q(s, a) = sum over the rows i of s of table[i, a]        (one row, but for tilings)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from distrl.policy import unflatten
from distrl.types import Array, Arrays

MAX_KEY = 2**53  # keys of a hashed table travel in the float64 vector of weights


class Coding(Protocol):
    """Observations [..., *obs_shape] to numbers in [0, size), int64 [...], or [..., K] of K > 1 tilings."""

    @property
    def size(self) -> int: ...

    @property
    def tilings(self) -> int: ...

    def __call__(self, obs: Array) -> Array: ...


@dataclass(frozen=True)
class Discrete:
    """Whole numbers from `start`."""

    n: int
    start: int = 0
    tilings = 1

    @property
    def size(self) -> int:
        return self.n

    def __call__(self, obs: Array) -> Array:
        return obs - self.start if self.start else obs


@dataclass(frozen=True)
class Product:
    """Arrays [D] of whole numbers, part d from `start[d]` on: a number in mixed radix, last part fastest."""

    n: tuple[int, ...]
    start: tuple[int, ...]
    tilings = 1

    @property
    def size(self) -> int:
        return prod(self.n)

    def __call__(self, obs: Array) -> Array:
        number: Array = (obs - np.array(self.start)).astype(np.int64) @ _strides(self.n)
        return number


@dataclass(frozen=True)
class Bins:
    """`n[d]` equal bins from `low[d]` to `high[d]`; what lies outside is in the first or last one.

    `inputs` names what is binned: "3" is component 3 of the observation, "5-3" component 5 less component 3.
    """

    n: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    inputs: tuple[str, ...]
    tilings = 1

    @property
    def size(self) -> int:
        return prod(self.n)

    def __call__(self, obs: Array) -> Array:
        x = inside(obs, self.n, self.inputs, self.low, self.high)
        number: Array = np.minimum(x.astype(np.int64), np.array(self.n) - 1) @ _strides(self.n)
        return number


@dataclass(frozen=True)
class Tiles:
    """Tile coding (Sutton and Barto 2018, section 9.5.4): K grids of `n` tiles, each shifted by a part of a tile.

    Grid k is shifted by k (1, 3, 5, ...) / K tiles, modulo one tile. With `memory` the tiles are hashed to so many
    rows, and may collide.
    """

    n: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    inputs: tuple[str, ...]
    tilings: int = 8
    memory: int | None = None

    @property
    def size(self) -> int:
        return self.memory or self.tilings * prod(n + 1 for n in self.n)

    def __call__(self, obs: Array) -> Array:
        shift, strides, first = _grids(self.n, self.tilings)
        x = inside(obs, self.n, self.inputs, self.low, self.high)
        tile = (x[..., None, :] + shift).astype(np.int64)  # [..., K, D], 0 to n: what is not negative is rounded down
        number: Array = tile @ strides
        number += first
        return number if self.memory is None else _scatter(number, self.memory)


KINDS: dict[str, type[Any]] = {"discrete": Discrete, "product": Product, "bins": Bins, "tiles": Tiles}


@functools.cache
def _strides(sides: tuple[int, ...]) -> Array:
    """What the digits [..., D] of a number in mixed radix are multiplied by; modulo 2^64, as the number is."""
    return np.array([prod(sides[d + 1 :]) % 2**64 for d in range(len(sides))], np.uint64).view(np.int64)


@functools.cache
def _grids(n: tuple[int, ...], tilings: int) -> tuple[Array, Array, Array]:
    """Of K tilings: how many tiles they are shifted by [K, D], the strides of a tile's digits [D], their first numbers [K]."""
    shift = np.arange(tilings)[:, None] * (2 * np.arange(len(n)) + 1) % tilings / tilings
    sides = tuple(side + 1 for side in n)
    first = np.array([k * prod(sides) % 2**64 for k in range(tilings)], np.uint64).view(np.int64)
    return shift, _strides(sides), first


def _scatter(number: Array, size: int) -> Array:
    """Numbers spread evenly over [0, size) by the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = number.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x % np.uint64(size)).astype(np.int64)


INPUT = re.compile(r"(\d+)(?:-(\d+))?")


def input_components(name: str) -> list[int]:
    """[3] of "3", [5, 3] of "5-3". Raises ValueError for anything else."""
    match = INPUT.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is neither a component, such as '3', nor a difference of two, such as '5-3'")
    return [int(part) for part in match.groups() if part is not None]


def inside(
    obs: Array, n: tuple[int, ...], inputs: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...]
) -> Array:
    """Inputs [..., D] of observations [..., C], low becoming 0 and high n, what lies outside clipped."""
    first, differences, minus, low_, scale, top = _plan(n, inputs, low, high)
    x: Array = obs[..., first].astype(np.float64)
    if len(differences):
        x[..., differences] -= obs[..., minus]
    x -= low_
    x *= scale
    np.maximum(x, 0.0, out=x)
    np.minimum(x, top, out=x)
    return x


@functools.cache
def _plan(
    n: tuple[int, ...], inputs: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...]
) -> tuple[Array, ...]:
    """Arrays for `inside`: components, which inputs are differences, from what, low, n / (high - low), n."""
    components = [input_components(name) for name in inputs]
    differences = [i for i, parts in enumerate(components) if len(parts) == 2]
    return (
        np.array([parts[0] for parts in components]),
        np.array(differences, np.int64),
        np.array([components[i][1] for i in differences], np.int64),
        np.array(low),
        np.array(n) / (np.array(high) - np.array(low)),
        np.array(n, np.float64),
    )


class Keys:
    """Which row of a hashed table holds which state: keys in the order in which their rows were given out."""

    def __init__(self, keys: Array) -> None:
        """`keys` [n] float64 or int64, whole numbers in [0, MAX_KEY)."""
        self.keys = keys.astype(np.int64)
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[self._order]

    def rows(self, numbers: Array, missing: int) -> Array:
        """The rows of numbers [...], `missing` where there is none."""
        if not len(self.keys):
            return np.full(numbers.shape, missing)
        at = np.minimum(np.searchsorted(self._sorted, numbers), len(self.keys) - 1)
        return np.where(self._sorted[at] == numbers, self._order[at], missing)


class TablePolicy:
    """Epsilon-greedy by a table: a random allowed action with probability epsilon, else the first best one.

    Epsilon is the last weight: the learner stamps it into every version, so what explores is fixed with the weights.
    """

    def __init__(
        self,
        coding: Coding,
        actions: int,
        first_action: int = 0,
        capacity: int | None = None,
        allowed: Array | None = None,
    ) -> None:
        """
        Args:
            capacity: rows of a hashed table; None: a dense one
            allowed: [size, A] bool, which actions are ever taken in a state; None: all
        """
        self.coding, self.actions, self.first_action, self.capacity = coding, actions, first_action, capacity
        self.allowed = allowed
        # Of a state: how many actions are allowed, and these actions first.
        self._choices = None if allowed is None else (allowed.sum(axis=1), np.argsort(~allowed, axis=1, kind="stable"))
        self.penalty = None if allowed is None else np.where(allowed, 0.0, -np.inf)
        self.vector = np.zeros(sum(prod(shape) for shape in self.shapes().values()))
        self._prepare()

    @property
    def rows_in_table(self) -> int:
        return self.coding.size if self.capacity is None else self.capacity + 1

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
        self._best = self._argmax(self.table, slice(None)) if small else None

    def rows(self, obs: Array) -> Array:
        """Rows of the table, [...] or [..., K], of observations [..., *obs_shape]."""
        numbers = self.coding(obs)
        return numbers if self.capacity is None else self._keys.rows(numbers, self.capacity)

    def values(self, obs: Array) -> Array:
        """Q(s, .) [..., A]."""
        rows = self.table[self.rows(obs)]
        return rows if self.coding.tilings == 1 else rows.sum(axis=-2)

    def _argmax(self, values: Array, states: Any) -> Array:
        if self.penalty is not None:
            values = values + self.penalty[states]
        best: Array = values.argmax(axis=-1)
        return best

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """Uniform numbers [T, N], one an action."""
        return rng.random((steps, copies))

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Below epsilon the uniform number also says, scaled up, which random action it is."""
        action = self._greedy(obs)
        explore = np.flatnonzero(noise < self.epsilon)
        if len(explore):
            uniform = noise[explore] / self.epsilon
            if self._choices is None:
                chosen = (uniform * self.actions).astype(np.int64)
            else:
                states = self.coding(obs[explore])
                count, order = self._choices
                chosen = order[states, (uniform * count[states]).astype(np.int64)]
            action[explore] = chosen
        return action + self.first_action if self.first_action else action, {}

    def greedy(self, obs: Array) -> Array:
        return self._greedy(obs) + self.first_action

    def _greedy(self, obs: Array) -> Array:
        if self._best is not None:
            best: Array = self._best[self.rows(obs)]
            return best
        return self._argmax(self.values(obs), None if self.penalty is None else self.coding(obs))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        keys = {} if self.capacity is None else {"keys": (self.capacity,)}
        return {"table": (self.rows_in_table, self.actions), **keys, "epsilon": (1,)}

    def arrays(self) -> Arrays:
        return unflatten(self.vector, self.shapes())

    def describe(self) -> dict[str, Any]:
        kind = next(name for name, cls in KINDS.items() if isinstance(self.coding, cls))
        allowed = None if self.allowed is None else ["".join("01"[int(x)] for x in row) for row in self.allowed]
        return {
            "type": "table",
            "coding": {"kind": kind, **asdict(self.coding)},  # type: ignore[call-overload]
            "actions": self.actions,
            "first_action": self.first_action,
            "capacity": self.capacity,
            "allowed": allowed,
        }

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> TablePolicy:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in data["coding"].items() if k != "kind"}
        allowed = data["allowed"]
        return cls(
            KINDS[data["coding"]["kind"]](**fields),
            data["actions"],
            data["first_action"],
            data["capacity"],
            None if allowed is None else np.array([[x == "1" for x in row] for row in allowed]),
        )
