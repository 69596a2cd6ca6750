"""What a trial's score may be: a number of its rows (metrics.jsonl) up to a mark, better where it is higher, or lower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrl.config import Config
from distrl.errors import UserError, did_you_mean
from distrl.reports.sweeps import LOWER
from distrl.types import EnvInfo, Evaluation

Rows = Sequence[Mapping[str, Any]]
EVALUATED, TRAINED = "evaluation/return_mean", "train/return_mean"
FINAL = "final/return_mean"  # of the best model of a run, in fresh episodes at the end of it
AREA = "train/return_auc"


@dataclass(frozen=True)
class Metric:
    """The score of a run. `worst` stands for a run that has none."""

    name: str

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.name in LOWER else 1

    @property
    def at_a_rung(self) -> Metric:
        """What runs are compared by that are not at their ends, which is where some scores come from."""
        if self.final:
            return Metric(self.name.replace("final/", "evaluation/", 1))
        return Metric(TRAINED) if self.name in LOWER else self

    @property
    def final(self) -> bool:
        return self.name.startswith("final/")

    @property
    def evaluated(self) -> bool:
        return self.name.startswith("evaluation/")

    def of(self, rows: Rows, result: Mapping[str, Any], env_steps: int | None) -> float | None:
        """The score of a run by its rows and result.json; None where it has none.

        Args:
            env_steps: up to which an area is taken; where a run ended before, its last value counts on
        """
        if self.name in LOWER:
            return _finite(result.get(self.name))
        if self.name == AREA:
            return _area(rows, env_steps)
        if self.final and (evaluation := result.get("evaluation")) is not None:
            return _finite(Evaluation.from_json(evaluation).metrics("final").get(self.name))
        name = self.at_a_rung.name
        values = [row[name] for row in rows if name in row]
        return _finite(values[-1]) if values else None

    def key(self, score: float | None) -> float:
        """Sorts scores, the best first, and what has none last."""
        return math.inf if score is None else -self.sign * score


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _area(rows: Rows, env_steps: int | None) -> float | None:
    """The mean over env steps of the training return: high for who learns much, and for who learns early."""
    points = [(row["env_steps"], row[TRAINED]) for row in rows if TRAINED in row]
    if not points:
        return None
    steps, returns = (np.array(values, np.float64) for values in zip(*points, strict=True))
    if env_steps is not None and env_steps > steps[-1]:
        steps, returns = np.append(steps, env_steps), np.append(returns, returns[-1])
    return float(np.sum(returns * np.diff(steps, prepend=0)) / steps[-1])


def find_metric(name: str, config: Config, info: EnvInfo) -> Metric:
    """The metric of a sweep whose base config is `config`. Raises `UserError` where its runs have none such."""
    reported = [f"{group}/scores/{key}_mean" for group in ("evaluation", "train", "final") for key in config.env.report]
    known = [EVALUATED, TRAINED, FINAL, AREA, *LOWER, *reported]
    if name not in known:
        near = did_you_mean(name, known)
        raise UserError(f"metric {name!r} is unknown.{near} Known here: {', '.join(known)}.")
    if name in LOWER and info.reward_threshold is None:
        raise UserError(
            f"metric is {name}, but {info.id} has no reward threshold. Set metric={EVALUATED}, or metric={AREA}, which is "
            "high for who learns early."
        )
    metric = Metric(name)
    if metric.at_a_rung.evaluated and not config.evaluation_every:
        raise UserError(
            f"metric is {name}, but evaluation.every is 0: nothing is evaluated during training. Set "
            f"evaluation.every=auto, or metric={TRAINED}."
        )
    if metric.final and not config.evaluation.final_episodes:
        raise UserError(
            f"metric is {name}, but evaluation.final_episodes is 0: the best model plays no fresh episodes. Set "
            f"evaluation.final_episodes=100, or metric={EVALUATED}."
        )
    return metric
