"""How an observation becomes rows of a table.

A *coding* turns observations into whole numbers: one for every observation, or one for every tiling.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from pydantic import Field

from distrl.errors import UserError
from distrl.settings import Positive
from distrl.settings import Settings as Base
from distrl.types import Array, EnvInfo

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


class CodingSettings(Base):
    """How an observation becomes a state. Discrete ones, and arrays, tuples and dicts of them, need no settings."""

    kind: Literal["auto", "bins", "tiles"] = Field(default="auto", description="of Box observations: bins or tiles")
    n: tuple[Positive, ...] = Field(default=(), description="bins, or tiles of a tiling, of every input")
    inputs: tuple[str, ...] = Field(
        default=(), description="components, such as '3', or differences of two, such as '5-3'; empty: all components"
    )
    low: tuple[float, ...] = Field(default=(), description="clip range of every input; empty: that of the space")
    high: tuple[float, ...] = ()
    tilings: int = Field(default=8, ge=1)
    memory: int | None = Field(default=None, ge=1, description="rows that tiles are hashed to; null: one for each")


def make_coding(settings: CodingSettings, info: EnvInfo) -> Coding:
    """How observations of an env become states. Raises `UserError` where the settings do not say it."""
    space = info.observation_space
    if not isinstance(space, gym.spaces.Box):
        if settings.kind != "auto":
            raise UserError(
                f"algorithm.coding.kind is {settings.kind!r}, which is for Box observations; those of {info.id} are {space}. "
                "Leave algorithm.coding out."
            )
        if space.shape is not None and len(space.shape) > 1:
            raise UserError(
                f"A table takes arrays of one axis; observations of {info.id} have shape {list(space.shape)}. Wrap the env."
            )
        if isinstance(space, gym.spaces.Discrete):
            return Discrete(int(space.n), int(space.start))
        if isinstance(space, gym.spaces.MultiDiscrete):
            return Product(tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist()))
        if isinstance(space, gym.spaces.MultiBinary):
            size = int(np.prod(space.shape))
            return Product((2,) * size, (0,) * size)
        raise UserError(f"A table takes discrete or Box observations; those of {info.id} are {space}.")
    if settings.kind == "auto":
        raise UserError(
            f"Observations of {info.id} are {space}: a table needs to know how to cut them up. Set algorithm.coding, "
            "such as {kind: bins, n: [10, 10, 20, 10]} or {kind: tiles, n: [8, 8], tilings: 8}."
        )
    if len(space.shape) != 1:
        raise UserError(
            f"A table takes Box observations of one axis; those of {info.id} have shape {list(space.shape)}."
        )
    inputs = settings.inputs or tuple(map(str, range(space.shape[0])))
    low, high = _ranges(settings, space, inputs, info.id)
    if len(settings.n) != len(inputs):
        raise UserError(
            f"algorithm.coding.n is {list(settings.n)}: {len(settings.n)} counts for {len(inputs)} inputs of {info.id}. Give one for each."
        )
    if settings.kind == "bins":
        return Bins(settings.n, low, high, inputs)
    return Tiles(settings.n, low, high, inputs, settings.tilings, settings.memory)


def _ranges(
    settings: CodingSettings, space: gym.spaces.Box, inputs: tuple[str, ...], env_id: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = [], []
    for name in inputs:
        try:
            components = input_components(name)
            lows, highs = [float(space.low[i]) for i in components], [float(space.high[i]) for i in components]
        except (ValueError, IndexError):
            raise UserError(
                f"algorithm.coding.inputs has {name!r}; an input is a component of the {space.shape[0]} of {env_id}, "
                "such as '0', or a difference of two, such as '1-0'."
            ) from None
        low.append(lows[0] - sum(highs[1:]))
        high.append(highs[0] - sum(lows[1:]))
    for name, given, own in (("low", settings.low, low), ("high", settings.high, high)):
        if given and len(given) != len(inputs):
            raise UserError(
                f"algorithm.coding.{name} has {len(given)} numbers for {len(inputs)} inputs. Give one for each."
            )
        own[:] = given or own
    for name, bottom, top in zip(inputs, low, high, strict=True):
        if not (abs(bottom) < 1e30 and abs(top) < 1e30):
            raise UserError(
                f"Input {name!r} of {env_id} has no bounds of its own ({bottom:g} to {top:g}). Give clip ranges for all inputs: "
                "algorithm.coding.low and algorithm.coding.high."
            )
        if bottom >= top:
            raise UserError(f"algorithm.coding: input {name!r} has low {bottom:g}, which is not below high {top:g}.")
    return tuple(low), tuple(high)
