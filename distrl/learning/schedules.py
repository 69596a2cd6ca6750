"""Numbers that change as a run goes on: learning rates, exploration, clip ranges. Knows no torch: they are settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator

from distrl.errors import UserError
from distrl.settings import AlgorithmSettings, Config, Settings
from distrl.types import Arrays


class Schedule(Settings):
    """From `start` to `end`, and there it stays. A plain number stays what it is."""

    start: float = Field(ge=0, description="the first value")
    end: float | None = Field(default=None, ge=0, description="null: always start")
    over: int | None = Field(default=None, ge=1, description="env steps, or episodes; null: the whole run")
    unit: Literal["steps", "episodes"] = Field(default="steps", description="what over counts")
    shape: Literal["linear", "exponential"] = Field(default="linear", description="of the way from start to end")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number", "minimum": 0}, handler.resolve_ref_schema(handler(core))]}

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            return {"start": value}
        if not isinstance(value, Mapping | Schedule):
            raise ValueError("must be a number, or start, end and the like, such as {start: 0.1, end: 0, over: 100000}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.shape == "exponential" and self.end is not None and min(self.start, self.end) <= 0:
            raise ValueError("an exponential schedule never reaches 0: give start and end above 0, or shape linear")
        if self.unit == "episodes" and self.over is None:
            raise ValueError("nobody knows how many episodes a run will have: give over, or unit steps")
        return self

    def __call__(self, progress: float, env_steps: int, episodes: int = 0) -> float:
        """The value after so many env steps and episodes, which are the part `progress` of the whole run."""
        if self.end is None:
            return self.start
        part = progress if self.over is None else (env_steps if self.unit == "steps" else episodes) / self.over
        part = min(1.0, part)
        if self.shape == "linear":
            return (1 - part) * self.start + part * self.end
        return float(self.start * (self.end / self.start) ** part)


class KLControl:
    """A factor of the learning rates that keeps an update's KL(old || new) near what is wanted.

    As Schulman et al. 2017 (arXiv:1707.06347, section 4) do through the factor of a penalty.
    """

    def __init__(self, wanted: float | None, lr: float) -> None:
        """`wanted`: None: the factor stays 1. `lr`: that the factor is of, which stays within [1e-6, 1e-2]."""
        self.wanted, self.lr, self.factor = wanted, lr, 1.0

    def adapt(self, kl: float) -> None:
        """After an update that went so far."""
        if self.wanted is not None and kl > 2 * self.wanted:
            self.factor = max(self.factor / 1.5, 1e-6 / self.lr)
        elif self.wanted is not None and kl < self.wanted / 2:
            self.factor = min(self.factor * 1.5, 1e-2 / self.lr)

    def state(self) -> Arrays:
        return {"lr_factor": np.array(self.factor)}

    def load_state(self, state: Arrays) -> None:
        self.factor = float(state["lr_factor"])


def _at_most_one(schedule: Schedule) -> Schedule:
    if max(schedule.start, schedule.end or 0.0) > 1:
        raise ValueError("must be at most 1")
    return schedule


def _above_zero(schedule: Schedule) -> Schedule:
    if schedule.start <= 0:
        raise ValueError("must start above 0")
    return schedule


Share = Annotated[Schedule, AfterValidator(_at_most_one)]
Rate = Annotated[Schedule, AfterValidator(_above_zero)]


def check_schedules(settings: AlgorithmSettings, config: Config, episodes: bool = False) -> None:
    """Raise `UserError` where it cannot be known how far one of an algorithm's schedules is.

    Args:
        episodes: whether the algorithm counts them
    """
    for name, value in settings:
        if not isinstance(value, Schedule) or value.end is None:
            continue
        if value.unit == "episodes" and not episodes:
            raise UserError(
                f"algorithm.{name}.unit is 'episodes', which {settings.name} does not count. Set it to 'steps'."
            )
        if value.over is None and config.stop.env_steps is None:
            raise UserError(
                f"algorithm.{name} goes from {value.start:g} to {value.end:g} in the whole run, which needs stop.env_steps to "
                f"know where that ends. Set it, or a number that stays: algorithm.{name}={value.start:g}."
            )
