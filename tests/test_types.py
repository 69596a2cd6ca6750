"""The record of an evaluation: right numbers, and the same record again after JSON."""

from __future__ import annotations

import json
import statistics

import pytest

from distrl.errors import UserError
from distrl.types import Evaluation, Spread

RETURNS = [3.0, -1.5, 10.0, 0.25]
EVALUATION = Evaluation(
    version=7,
    env_steps=5000,
    greedy=False,
    episodes=4,
    returns=Spread.of(RETURNS),
    lengths=Spread.of([3, 1, 10, 2]),
    scores={"pipes": Spread.of([0, 1, 2, 3]), "mean": Spread.of([5])},
)


def test_a_spread_is_that_of_the_values() -> None:
    spread = Spread.of(RETURNS)
    assert spread.mean == pytest.approx(statistics.fmean(RETURNS))
    assert spread.std == pytest.approx(statistics.pstdev(RETURNS))
    assert (spread.min, spread.max) == (-1.5, 10)
    assert f"{Spread(1.256, 0.5, 1, 2):.2f}" == "1.26 ± 0.50 (min 1.00, max 2.00)"


def test_a_record_survives_json_and_scripts_find_the_return_at_its_top() -> None:
    text = json.dumps(EVALUATION.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == EVALUATION
    data = json.loads(text)
    assert (data["mean"], data["min"], data["max"]) == (2.9375, -1.5, 10)
    assert (data["episodes"], data["env_steps"], data["greedy"]) == (4, 5000, False)
    assert data["scores"]["pipes"]["max"] == 3
    assert data["scores"]["mean"]["mean"] == 5  # a score of any name hides nothing


def test_metrics_keep_scores_apart_from_the_return() -> None:
    metrics = EVALUATION.metrics("final")
    assert metrics["final/return_mean"] == 2.9375
    assert metrics["final/scores/pipes_mean"] == 1.5
    assert metrics["final/scores/mean_mean"] == 5
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize("data", [{}, {"mean": 1.0, "std": 0.0}, EVALUATION.to_json() | {"scores": 3}, [1]])
def test_what_is_no_record_is_refused(data: object) -> None:
    with pytest.raises(UserError, match="no evaluation"):
        Evaluation.from_json(data)  # type: ignore[arg-type]
