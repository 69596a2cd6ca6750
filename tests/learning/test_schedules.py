"""Numbers that change as a run goes on."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import CARTPOLE, DQN, TAXI, config_of
from pydantic import ValidationError

from distrl.errors import UserError
from distrl.learning.schedules import Rate, Schedule, Share
from distrl.settings import Settings


def schedule(value: Any) -> Schedule:
    return Schedule.model_validate(value)


def test_a_number_stays_what_it_is() -> None:
    for found in (schedule(0.3), schedule({"start": 0.3})):
        assert [found(p, 1000 * i, i) for i, p in enumerate((0.0, 0.5, 1.0))] == [0.3] * 3


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.505), ("exponential", 0.1)])
def test_it_goes_from_start_to_end_and_stays_there(shape: str, middle: float) -> None:
    line = {"start": 1, "end": 0.01, "shape": shape}
    whole, steps = schedule(line), schedule({**line, "over": 100})
    episodes = schedule({**line, "over": 100, "unit": "episodes"})
    wanted = pytest.approx([1, middle, 0.01, 0.01])
    assert [whole(x, 10**9, 10**9) for x in (0.0, 0.5, 1.0, 1.5)] == wanted
    assert [steps(0.9, x, 10**9) for x in (0, 50, 100, 999)] == wanted
    assert [episodes(0.9, 10**9, x) for x in (0, 50, 100, 999)] == wanted


def test_it_may_rise() -> None:
    assert [schedule({"start": 0, "end": 4})(x, 0) for x in (0.0, 0.25, 1.0)] == [0, 1, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"start": 1, "end": 0, "shape": "exponential"}, "never reaches 0"),
        ({"start": 1, "end": 0, "unit": "episodes"}, "give over"),
        ("fast", "must be a number, or"),
        (-1, "greater than or equal to 0"),
        ({"start": 1, "ende": 0}, "Extra inputs"),
    ],
)
def test_what_is_no_schedule_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule(value)


def test_shares_and_rates_have_bounds() -> None:
    class Both(Settings):
        share: Share = Schedule(start=1.0, end=0.0)
        rate: Rate = Schedule(start=7.0, end=0.0)

    assert Both(share={"start": 0, "end": 1}, rate=2).rate.start == 2  # type: ignore[arg-type]
    for wrong in ({"share": 1.1}, {"share": {"start": 0, "end": 1.1}}, {"rate": 0}, {"rate": {"start": 0, "end": 1}}):
        with pytest.raises(ValidationError, match=r"at most 1|above 0"):
            Both.model_validate(wrong)


ENDLESS = ["stop.env_steps=null", "stop.seconds=9"]


@pytest.mark.parametrize("base", [{**CARTPOLE, "algorithm": {"name": "ppo", "minibatch_size": 64}}, DQN, TAXI])
def test_a_schedule_that_nobody_can_follow_is_refused(base: dict[str, Any]) -> None:
    name = base["algorithm"]["name"]
    falls = "algorithm.lr={start: 0.1, end: 0}"
    config_of(base, falls)
    with pytest.raises(UserError, match=r"algorithm.lr goes from 0.1 to 0 .* stop.env_steps .* algorithm.lr=0.1"):
        config_of(base, falls, *ENDLESS)
    config_of(base, "algorithm.lr=0.1", *ENDLESS)
    config_of(base, "algorithm.lr={start: 0.1, end: 0, over: 9}", *ENDLESS)
    by_episodes = "algorithm.lr={start: 0.1, end: 0, over: 9, unit: episodes}"
    if name == "q":
        config_of(base, by_episodes)
    else:
        with pytest.raises(UserError, match=rf"algorithm.lr.unit is 'episodes', which {name} does not count"):
            config_of(base, by_episodes)
