"""How an observation becomes rows of a table.

A *coding* turns observations into whole numbers: one for every observation, or one for every tiling.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from distrl.descriptions import STRICT, Count
from distrl.types import Array

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

    __pydantic_config__ = STRICT
    n: Count
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

    __pydantic_config__ = STRICT
    n: tuple[Count, ...]
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

    __pydantic_config__ = STRICT
    n: tuple[Count, ...]
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

    __pydantic_config__ = STRICT
    n: tuple[Count, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    inputs: tuple[str, ...]
    tilings: Count = 8
    memory: Count | None = None

    @property
    def size(self) -> int:
        return self.memory or self.tilings * prod(n + 1 for n in self.n)

    def __call__(self, obs: Array) -> Array:
        shift, strides, first = _grids(self.n, self.tilings)
        x = inside(obs, self.n, self.inputs, self.low, self.high)
        tile = (x[..., None, :] + shift).astype(np.int64)  # [..., K, D], 0 to n: what is not negative is rounded down
        number: Array = tile @ strides
        number += first
        if self.tilings == 1:
            number = number[..., 0]
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
