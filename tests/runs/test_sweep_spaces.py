"""What may be tried: values between the ends, all of them, under conditions."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from distrl.errors import UserError
from distrl.runs.sweep_spaces import SearchSpace, Space


def space(**kind: Any) -> Space:
    return Space.model_validate(kind)


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        ({"uniform": [-1, 3]}, lambda v: -1 <= v <= 3),
        ({"loguniform": [1e-4, 1e-2]}, lambda v: 1e-4 <= v <= 1e-2),
        ({"quantised": [0, 1, 0.1]}, lambda v: v in [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ({"integer": [2, 5]}, lambda v: v in (2, 3, 4, 5) and isinstance(v, int)),
        ({"choice": ["a", "b"]}, lambda v: v in ("a", "b")),
        ({"grid": [True, False]}, lambda v: isinstance(v, bool)),
    ],
)
def test_values_lie_in_the_space_and_its_ends_are_reached(kind: dict[str, Any], inside: Any) -> None:
    one = space(**kind)
    ends = (kind.get("quantised") or next(iter(kind.values())))[:2]
    assert all(inside(one.at(unit)) for unit in np.linspace(0, 1, 101))
    assert one.at(0.0) == pytest.approx(ends[0]) and one.at(1.0) == pytest.approx(ends[1])


def test_a_logarithm_is_even_over_decades() -> None:
    decades = Counter(
        int(np.floor(np.log10(space(loguniform=[1e-4, 1e-1]).at(u)))) for u in np.linspace(0, 0.9999, 300)
    )
    assert all(count == pytest.approx(100, abs=2) for count in decades.values()) and len(decades) == 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"uniform": [1, 0]}, r"wrong way round. Did you mean \[0.0, 1.0\]"),
        ({"uniform": [1, 1]}, "single point"),
        ({"choice": [3]}, "two or more"),
        ({"choice": [3, 3]}, "two or more"),
        ({"loguniform": [0, 1]}, "logarithm"),
        ({"quantised": [0, 1, 2]}, "step"),
        ({}, "exactly one"),
        ({"uniform": [0, 1], "choice": [1, 2]}, "exactly one"),
        ({"integer": [1.5, 3]}, "integer"),
        ({"uniform": [0, float("nan")]}, "finite"),
    ],
)
def test_what_is_no_space_is_refused(kind: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(**kind)


def test_a_key_under_a_condition_is_there_where_it_holds_and_only_there() -> None:
    searched = SearchSpace(
        {
            "inner": space(when={"outer": ["a", "b"]}, uniform=[0, 1]),
            "outer": space(choice=["a", "b", "c"]),
            "deep": space(when={"inner": 0.0}, choice=[1, 2]),
            "never": space(when={"base.key": 5}, choice=[1, 2]),
            "always": space(when={"base.key": 4}, choice=[1, 2]),
        },
        {"base.key": 4},
    )
    points = [searched.random(1, trial) for trial in range(100)]
    assert {("inner" in p, p["outer"] in "ab") for p in points} == {(True, True), (False, False)}
    assert all("never" not in p and "always" in p and "deep" not in p for p in points)
    assert any("deep" in p for p in searched.corners())
    assert all(p == searched.random(1, n) for n, p in enumerate(points)), "a trial is a function of its number"
    assert points != [searched.random(2, trial) for trial in range(100)]


def test_conditions_in_a_circle_or_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="circle"):
        SearchSpace({"a": space(when={"b": 1}, choice=[1, 2]), "b": space(when={"a": 1}, choice=[1, 2])}, {})
    with pytest.raises(UserError, match="'c'"):
        SearchSpace({"a": space(when={"c": 1}, choice=[1, 2])}, {})


def test_a_grid_is_every_combination_once() -> None:
    parts = {"a": [1, 2, 3], "b": ["x", "y"], "c": [4, 5]}
    searched = SearchSpace({"a": space(integer=[1, 3]), "b": space(grid=["x", "y"]), "c": space(choice=[4, 5])}, {})
    found = sorted(tuple(point.values()) for point in searched.grid())
    assert found == sorted(itertools.product(*parts.values()))
    with pytest.raises(UserError, match="no list of values"):
        SearchSpace({"a": space(uniform=[0, 1])}, {}).grid()


def test_random_trials_take_the_values_of_a_grid_in_turns() -> None:
    searched = SearchSpace({"a": space(grid=[1, 2]), "b": space(grid=[1, 2, 3]), "c": space(uniform=[0, 1])}, {})
    points = [searched.random(1, trial) for trial in range(12)]
    assert set(Counter((p["a"], p["b"]) for p in points).values()) == {2}


def test_corners_hold_the_ends_of_many_keys_and_every_choice() -> None:
    searched = SearchSpace({f"k{n}": space(uniform=[0, 1]) for n in range(12)} | {"c": space(choice=[1, 2, 3])}, {})
    corners = searched.corners()
    assert len(corners) < 100
    for end in (0.0, 1.0):
        assert any(all(p[f"k{n}"] == end for n in range(12)) for p in corners)
    assert {p["c"] for p in corners} == {1, 2, 3}
