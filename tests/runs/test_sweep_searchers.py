"""Optuna as a searcher: better than chance, a function of what it has seen, at home in every kind of space."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import CARTPOLE

from distrl.runs.sweep import Sweep
from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_searchers import FIRST, Seen, make_searcher
from distrl.runs.sweep_spaces import Overrides, Space

SEARCH: dict[str, Any] = {
    "algorithm.lr": {"loguniform": [1e-5, 1e-1]},
    "algorithm.gamma": {"quantised": [0.9, 1.0, 0.01]},
    "algorithm.epochs": {"integer": [1, 8]},
    "algorithm.hidden": {"choice": [[32], [64, 64], None]},
    "algorithm.gae_lambda": {"when": {"algorithm.epochs": [1, 2, 3, 4]}, "uniform": [0.5, 1]},
}


def searcher_of(name: str, metric: Metric) -> Any:
    spaces = {key: Space.model_validate(space) for key, space in SEARCH.items()}
    return make_searcher(Sweep.model_validate({"base": CARTPOLE, "search": spaces, "searcher": name}), metric)


def loss(overrides: Overrides) -> float:
    distance = (np.log10(overrides["algorithm.lr"]) + 3) ** 2 + (overrides["algorithm.epochs"] - 3) ** 2 / 4
    return float(distance + (overrides["algorithm.hidden"] != [64, 64]))


def search(name: str, metric: Metric, trials: int = 40) -> list[Overrides]:
    ask, seen = searcher_of(name, metric), list[Seen]()
    for trial in range(trials):
        overrides = ask(trial, seen)
        seen.append(Seen(overrides, metric.sign * -loss(overrides), False))
    return [s.overrides for s in seen]


def test_it_finds_what_chance_does_not() -> None:
    for metric in (Metric("evaluation/return_mean"), Metric("steps_to_threshold")):  # more is better, less is better
        found, chance = (search(name, metric) for name in ("optuna", "random"))
        assert np.mean([loss(o) for o in found[-15:]]) < 0.5 * np.mean([loss(o) for o in chance[-15:]])
        assert found == search("optuna", metric), "the same, when it has seen the same"
        spaces = {key: Space.model_validate(space) for key, space in SEARCH.items()}
        for overrides in found:
            assert ("algorithm.gae_lambda" in overrides) == (overrides["algorithm.epochs"] <= 4)
            assert all(overrides[key] in values for key in overrides if (values := spaces[key].values) is not None)
    assert len({str(overrides) for overrides in found}) == 40


def test_what_failed_and_what_is_under_way_do_no_harm() -> None:
    metric = Metric("evaluation/return_mean")
    ask = searcher_of("optuna", metric)
    seen = [Seen(overrides, -loss(overrides), False) for overrides in search("random", metric, FIRST + 2)]
    again = ask(20, [*seen, Seen(seen[0].overrides, None, False), Seen(seen[1].overrides, None, True)])
    assert again.keys() >= SEARCH.keys() - {"algorithm.gae_lambda"}
