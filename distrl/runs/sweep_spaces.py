"""What a sweep may try: for each key a space, which turns a number from 0 to 1 into a value.

So a random trial is a list of numbers from a named stream, the corners of the whole space are those of zeros and ones, and
what a searcher draws by itself is drawn from the same spaces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from distrl.errors import UserError, shown
from distrl.seeding import stream
from distrl.settings import Settings

KINDS = ("uniform", "loguniform", "quantised", "integer", "choice", "grid")
Overrides = dict[str, Any]  # values by dotted keys of a config
MANY = 64  # corners that are tried, at most


class Space(Settings):
    """The values of one key: exactly one of the kinds, under a condition or always."""

    uniform: tuple[float, float] | None = Field(default=None, description="[low, high]")
    loguniform: tuple[float, float] | None = Field(default=None, description="[low, high], even in the logarithm")
    quantised: tuple[float, float, float] | None = Field(default=None, description="[low, high, step], both ends in it")
    integer: tuple[int, int] | None = Field(default=None, description="[low, high], both of them in it")
    choice: tuple[Any, ...] | None = Field(default=None, description="any of these")
    grid: tuple[Any, ...] | None = Field(default=None, description="each of these, as often as the others")
    when: dict[str, Any] = Field(
        default={}, description="only where these keys have these values; a list stands for any of its values"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"it must have exactly one of {', '.join(KINDS)}; it has {' and '.join(given) if given else 'none'}"
            )
        parts = list(getattr(self, given[0]))
        if given[0] in ("choice", "grid"):
            if len(parts) < 2 or any(a == b and type(a) is type(b) for a, b in itertools.combinations(parts, 2)):
                raise ValueError(f"{given[0]}: {parts} must be two or more different values; one belongs into the base")
            return self
        low, high, *step = parts
        if low > high:
            raise ValueError(
                f"the range {parts} is the wrong way round. Did you mean {[high, low, *step]}? The lower end comes first"
            )
        if low == high:
            raise ValueError(f"the range {parts} is a single point. Put the value into the base config instead")
        if given[0] == "loguniform" and low <= 0:
            raise ValueError(f"the range {parts} has no logarithm: both ends must be above 0")
        if step and not (0 < step[0] <= high - low):
            raise ValueError(f"the step of {parts} must be above 0 and at most {high - low:g}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> list[Any] | None:
        """All there are, where they can be listed."""
        if self.choice is not None or self.grid is not None:
            return list(self.choice or self.grid or ())
        if self.integer is not None:
            return list(range(self.integer[0], self.integer[1] + 1))
        if self.quantised is not None:
            low, high, step = self.quantised
            return [_tidy(low + n * step) for n in range(math.floor((high - low) / step + 1e-9) + 1)]
        return None

    def at(self, unit: float) -> Any:
        """The value at a number from 0 to 1; 1 is the last one."""
        values = self.values
        if values is not None:
            return values[min(int(unit * len(values)), len(values) - 1)]
        if self.uniform is not None:
            low, high = self.uniform
            return low + unit * (high - low)
        assert self.loguniform is not None
        low, high = self.loguniform
        return min(high, max(low, low * (high / low) ** unit))


def _tidy(value: float) -> float:
    """Without the dust of adding steps: 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")


class SearchSpace:
    """The spaces of all keys that a sweep searches."""

    def __init__(self, spaces: Mapping[str, Space], base: Mapping[str, Any]) -> None:
        """`base`: the base config by dotted keys, for conditions on what is not searched.

        Raises:
            UserError: a condition is of a key that is not there, or conditions lead in a circle
        """
        self.spaces, self.base = dict(spaces), base
        self.order = self._order()

    def _order(self) -> list[str]:
        """The keys, each behind those that its condition is of."""
        order: list[str] = []
        waiting = list(self.spaces)
        while waiting:
            free = [k for k in waiting if not (self.spaces[k].when.keys() & set(waiting))]
            if not free:
                raise UserError(f"search: the conditions (when) of {', '.join(waiting)} lead in a circle.")
            order += free
            waiting = [k for k in waiting if k not in free]
        for key, space in self.spaces.items():
            for other in space.when:
                if other not in self.spaces and other not in self.base:
                    raise UserError(
                        f"search.{key}.when names {other!r}, which is neither searched nor in the base config. Name one that is."
                    )
        return order

    def point(self, units: Mapping[str, float]) -> Overrides:
        """The values at numbers from 0 to 1, of the keys whose conditions hold, in the order of the file."""
        found: Overrides = {}
        for key in self.order:
            if self.holds(self.spaces[key].when, found):
                found[key] = self.spaces[key].at(units[key])
        return {key: found[key] for key in self.spaces if key in found}

    def holds(self, when: Mapping[str, Any], found: Overrides) -> bool:
        """Whether a condition holds where so much is set already."""
        for key, wanted in when.items():
            value = found.get(key) if key in self.spaces else self.base.get(key)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def random(self, seed: int, trial: int) -> Overrides:
        """The point of a trial of random search. Keys of kind grid take their turns, so that each value comes as often."""
        drawn = stream(seed, "sweep", trial).random(len(self.spaces)).tolist()
        units = dict(zip(self.spaces, drawn, strict=True))
        turn = trial
        for key, space in self.spaces.items():
            if space.grid is not None:
                turn, place = divmod(turn, len(space.grid))
                units[key] = (place + 0.5) / len(space.grid)
        return self.point(units)

    def grid(self) -> list[Overrides]:
        """Every point. Raises `UserError` for a range, which has no end of points."""
        ranges = [key for key, space in self.spaces.items() if space.values is None]
        if ranges:
            raise UserError(
                f"searcher is grid, and {', '.join(f'search.{key}' for key in ranges)} has no list of values. Give it as "
                "grid, choice, integer or quantised, or set searcher=random."
            )
        return _different(self.point(units) for units in self._products(self._middles()))

    def corners(self) -> list[Overrides]:
        """Points with each key at its ends, at most 64 of them, and one with each value of each choice."""
        ends = [(0.0, 1.0)] * len(self.spaces)
        every = [dict(zip(self.spaces, units, strict=True)) for units in _some(ends)]
        for key, places in zip(self.spaces, self._middles(), strict=True):
            every += [dict.fromkeys(self.spaces, end) | {key: unit} for unit in places for end in (0.0, 1.0)]
        return _different(map(self.point, every))

    def _middles(self) -> list[list[float]]:
        """For each key the number in the middle of each of its values; none for a range."""
        counts = [len(space.values or []) for space in self.spaces.values()]
        return [[(place + 0.5) / count for place in range(count)] for count in counts]

    def _products(self, places: Sequence[Sequence[float]]) -> Iterator[dict[str, float]]:
        return (dict(zip(self.spaces, units, strict=True)) for units in itertools.product(*places))


def _some(ends: Sequence[tuple[float, float]]) -> list[tuple[float, ...]]:
    """All corners, or of very many the first half and the last half of what is allowed, which hold both extremes."""
    if 2 ** len(ends) <= MANY:
        return list(itertools.product(*ends))
    first = list(itertools.islice(itertools.product(*ends), MANY // 2))
    return [*first, *(tuple(1 - unit for unit in units) for units in first)]


def _different(points: Iterator[Overrides] | Sequence[Overrides] | map[Overrides]) -> list[Overrides]:
    return list({shown(sorted(point.items())): point for point in points}.values())


def told(overrides: Overrides) -> str:
    """As on the command line, for people."""
    return " ".join(f"{key}={_short(value)}" for key, value in overrides.items()) or "(nothing set)"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
