"""Who chooses the overrides of the next trial: random and grid by its number alone, optuna by what came before."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distrl.runs.sweep import Sweep
from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_spaces import Overrides, SearchSpace, Space
from distrl.seeding import derive

FIRST = 10  # trials that optuna draws at random before it believes what it has seen


@dataclass(frozen=True)
class Seen:
    """A trial that was begun, and its score so far; None: it has none."""

    overrides: Overrides
    score: float | None
    under_way: bool


Searcher = Callable[[int, Sequence[Seen]], Overrides]


def make_searcher(sweep: Sweep, metric: Metric) -> Searcher:
    space = sweep.space
    if sweep.searcher == "grid":
        points = space.grid()
        return lambda trial, seen: points[trial % len(points)]
    if sweep.searcher == "random":
        return lambda trial, seen: space.random(sweep.seed, trial)
    return lambda trial, seen: _ask_optuna(space, metric, derive(sweep.seed, "optuna", trial), seen)


def _ask_optuna(space: SearchSpace, metric: Metric, seed: int, seen: Sequence[Seen]) -> Overrides:
    """A tree of Parzen estimators (Bergstra et al. 2011), made anew from what was seen, so that a resume changes nothing."""
    optuna: Any = importlib.import_module("optuna")  # of an extra
    create_trial, states = optuna.trial.create_trial, optuna.trial.TrialState
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST, multivariate=False)
    study = optuna.create_study(sampler=sampler, direction="maximize" if metric.sign > 0 else "minimize")
    for trial in seen:
        if trial.score is None and not trial.under_way:
            continue
        distributions = {key: _distribution(space.spaces[key]) for key in trial.overrides}
        params = {key: _parameter(space.spaces[key], value) for key, value in trial.overrides.items()}
        state = states.RUNNING if trial.score is None else states.COMPLETE
        study.add_trial(create_trial(state=state, value=trial.score, params=params, distributions=distributions))
    asked, found = study.ask(), dict[str, Any]()
    for key in space.order:
        if space.holds(space.spaces[key].when, found):
            found[key] = _value(space.spaces[key], _suggest(asked, key, _distribution(space.spaces[key])))
    return {key: found[key] for key in space.spaces if key in found}


def _suggest(asked: Any, key: str, among: Any) -> Any:
    if hasattr(among, "choices"):
        return asked.suggest_categorical(key, among.choices)
    suggest = asked.suggest_int if isinstance(among.low, int) else asked.suggest_float
    return suggest(key, among.low, among.high, step=among.step, log=among.log)


def _distribution(space: Space) -> Any:
    """As optuna has it; of values that can be listed without an order their places."""
    of: Any = importlib.import_module("optuna.distributions")
    if space.integer is not None:
        return of.IntDistribution(*space.integer)
    if space.quantised is not None:
        low, high, step = space.quantised
        return of.FloatDistribution(low, (space.values or [high])[-1], step=step)
    if space.values is not None:
        return of.CategoricalDistribution(tuple(range(len(space.values))))
    low, high = space.uniform or space.loguniform or (0.0, 1.0)
    return of.FloatDistribution(low, high, log=space.loguniform is not None)


def _listed(space: Space) -> bool:
    return space.choice is not None or space.grid is not None


def _parameter(space: Space, value: Any) -> Any:
    return (space.values or []).index(value) if _listed(space) else value


def _value(space: Space, parameter: Any) -> Any:
    if _listed(space):
        return (space.values or [])[parameter]
    if space.quantised is not None:  # without the dust of optuna's own steps
        return min(space.values or [], key=lambda value: abs(value - parameter))
    return parameter
