"""JSON that every program reads, also of numbers that it has no form for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, config_of

from distrl import train
from distrl.errors import Diverged
from distrl.json_format import json_text
from distrl.training.progress import Progress
from distrl.types import Evaluation, Spread


def strict(text: str) -> Any:
    """As a parser reads it that knows the standard and no more."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_come_back_as_they_were() -> None:
    spread = Spread(math.nan, 0.5, -math.inf, math.inf)
    best = Evaluation(1, 2, True, 3, spread, spread, {"score": spread})
    progress = Progress(recent_returns=[math.nan, math.inf, 0.1], recent_infos={"score": [-math.inf, 1.0]}, best=best)
    again = Progress.from_json(strict(json_text(progress.to_json())))
    assert repr(again) == repr(progress)


def test_a_run_that_diverged_leaves_json_that_others_read(tmp_path: Path) -> None:
    config = config_of(
        {
            **CARTPOLE,
            "env": {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "nan", "at": 200}},
            "track": {"mlflow": False, "video": False},
            "run_dir": str(tmp_path / "run"),
        }
    )
    with pytest.raises(Diverged):
        train(config, local=True, quiet=True)
    files = [*tmp_path.rglob("*.json")]
    contents = {file.name: strict(file.read_text()) for file in files}
    assert contents["result.json"]["status"] == "diverged"
    assert contents["result.json"]["return_mean"] == "NaN"
