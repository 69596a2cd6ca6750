"""Pictures of a sweep: what was tried and how it went, which key mattered, all curves, and what the score cost.

Members of a population change their values on the way; of them one picture shows who had which values when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrl.errors import UserError
from distrl.reports.curves import COLOURS, GREY, save_figure
from distrl.reports.runs import read_run
from distrl.reports.sweeps import Generation, SweepFiles, TrialRow, read_sweep
from distrl.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPS = 3  # into which the values of a range are put for its importance
RANDOM = 10  # trials that a searcher draws at random before it searches


def plot_sweep(sweep_dir: Path, out_dir: Path, suffix: str = ".png") -> list[Path]:
    """parallel and importance, or population; curves; cost. A picture that would be empty is left out."""
    drawn = {name: draw() for name, draw in drawings(read_sweep(sweep_dir)).items()}
    return [save_figure(figure, out_dir / f"{name}{suffix}") for name, figure in drawn.items() if figure is not None]


def drawings(files: SweepFiles) -> dict[str, Callable[[], Figure | None]]:
    """What draws each picture, by its name; None: it would be empty."""
    tried: dict[str, Callable[[SweepFiles], Figure | None]] = (
        {"population": _population} if files.population else {"parallel": _parallel, "importance": _importance}
    )
    return {name: partial(draw, files) for name, draw in {**tried, "curves": _curves, "cost": _cost}.items()}


def comparable(trial: TrialRow) -> float | None:
    """A score that all trials have: that of the first seed at the first rung."""
    first = trial.runs[0]
    score = first["rungs"][0][1] if first["rungs"] else first["score"]
    return None if score is None or first["status"] == "failed" else float(score)


def importances(files: SweepFiles) -> dict[str, float]:
    """How much of the variance of scores each key alone explains, from 0 to 1: omega squared of one-way groups.

    The groups are the values of a list, or thirds of a range; keys that were not set are a group of their own. Unlike the
    share itself (eta squared), it is 0 on average for a key that does not matter, however few trials there are.
    """
    scored = [(trial, score) for trial in files.trials if (score := comparable(trial)) is not None]
    scores = np.array([score for _, score in scored])
    if len(scores) < 4 or np.ptp(scores) == 0:
        return {}
    return {key: _omega_squared(_groups(files, key, [t for t, _ in scored]), scores) for key in files.keys}


def _omega_squared(groups: Array, scores: Array) -> float:
    """Hays 1963: (SS_between - df_between * MS_within) / (SS_total + MS_within), at least 0."""
    names = np.unique(groups)
    within = sum(float(np.sum((scores[groups == g] - scores[groups == g].mean()) ** 2)) for g in names)
    total = float(np.sum((scores - scores.mean()) ** 2))
    free = len(scores) - len(names)
    if len(names) < 2 or free < 1:
        return 0.0
    return max(0.0, (total - within - (len(names) - 1) * within / free) / (total + within / free))


def _groups(files: SweepFiles, key: str, trials: Sequence[TrialRow]) -> Array:
    """[trials] the number of each trial's group."""
    values = [trial.overrides.get(key) for trial in trials]
    if _listed(files, key):
        return np.array([-1 if v is None else _levels(files, key).index(v) for v in values])
    ranks = np.argsort(np.argsort([math.inf if v is None else v for v in values]))
    there = max(1, sum(v is not None for v in values))
    return np.array([-1 if v is None else r * GROUPS // there for v, r in zip(values, ranks, strict=True)])


def _levels(files: SweepFiles, key: str) -> list[Any]:
    space = files.sweep["search"][key]
    return list(space.get("choice") or space.get("grid") or ())


def _listed(files: SweepFiles, key: str) -> bool:
    return bool(_levels(files, key))


def _new(width: float = 7.5, height: float = 4.5) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _parallel(files: SweepFiles) -> Figure | None:
    """Each trial is a line through its values; the colour is its score."""
    from matplotlib import colormaps

    scored = [(trial, score) for trial in files.trials if (score := comparable(trial)) is not None]
    if not scored:
        return None
    figure, axes = _new(1.7 * (len(files.keys) + 1) + 1.5)
    axes.grid(False)
    worst, best = min(s for _, s in scored), max(s for _, s in scored)
    for trial, score in sorted(scored, key=lambda pair: files.sign * pair[1]):  # the best on top
        share = (score - worst) / (best - worst) if best > worst else 1.0
        heights = [_height(files, key, trial.overrides.get(key)) for key in files.keys]
        shade = colormaps["viridis"](0.25 + 0.7 * (share if files.sign > 0 else 1 - share))  # seen on black and white
        axes.plot([*heights, share], color=shade, linewidth=2 if trial is files.trials[0] else 1, alpha=0.9)
    for place, key in enumerate(files.keys):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for height, text in _ticks(files, key):
            axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center")
    last = len(files.keys)
    axes.axvline(last, color=GREY, linewidth=0.8)
    for height, value in ((0.0, worst), (1.0, best)):
        axes.annotate(
            f"{value:.4g}", (last, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center"
        )
    axes.set_xticks(
        range(last + 1), [*(key.removeprefix("algorithm.") for key in files.keys), files.metric], fontsize=8
    )
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(f"{len(scored)} trials, with the first seed at the first rung", loc="left", fontsize=9, color=GREY)
    return figure


def _height(files: SweepFiles, key: str, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1; below it where it was not set."""
    if value is None:
        return -0.12
    if _listed(files, key):
        levels = _levels(files, key)
        return levels.index(value) / max(1, len(levels) - 1)
    low, high, log = _range(files, key)
    return float(np.log(value / low) / np.log(high / low)) if log else (value - low) / (high - low)


def _range(files: SweepFiles, key: str) -> tuple[float, float, bool]:
    space = files.sweep["search"][key]
    kind = next(name for name in ("uniform", "loguniform", "quantised", "integer") if name in space)
    return float(space[kind][0]), float(space[kind][1]), kind == "loguniform"


def _ticks(files: SweepFiles, key: str) -> list[tuple[float, str]]:
    if _listed(files, key):
        return [(_height(files, key, value), str(value)[:20]) for value in _levels(files, key)]
    low, high, _ = _range(files, key)
    return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]


def _importance(files: SweepFiles) -> Figure | None:
    found = importances(files)
    if not found:
        return None
    names = sorted(found, key=lambda key: found[key])
    figure, axes = _new(height=1.2 + 0.4 * len(names))
    axes.barh(names, [found[name] for name in names], color=COLOURS[0])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"share of the variance of {files.metric} that a key alone explains (omega squared)", fontsize=8)
    return figure


def _population(files: SweepFiles) -> Figure | None:
    """Score and values of each member, generation by generation; those that led to the best one are thick."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    generations = files.generations
    if not generations:
        return None
    rows = 1 + len(files.keys)
    figure = Figure(figsize=(7.5, 1.2 + 1.9 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    lineage = files.lineage
    for axes, key in zip(grid, (None, *files.keys), strict=True):
        levels = _levels(files, key) if key is not None and _listed(files, key) else None

        def value(generation: Generation, key: str | None = key, levels: list[Any] | None = levels) -> float:
            told = generation.score if key is None else generation.overrides[key]
            return np.nan if told is None else float(told if levels is None else levels.index(told))

        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if key is not None and files.sweep["search"][key].get("loguniform"):
            axes.set_yscale("log")
        if levels is not None:
            axes.set_yticks(range(len(levels)), [str(level)[:20] for level in levels], fontsize=8)
        for generation in generations.values():
            _segment(axes, generations, generation, value, color=GREY, linewidth=0.8, alpha=0.6)
        for generation in lineage:
            _segment(axes, generations, generation, value, color=COLOURS[1], linewidth=2.2)
        axes.set_ylabel("return in training" if key is None else key.removeprefix("algorithm."), fontsize=8)
    grid[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    grid[-1].set_xlabel("env steps of a member")
    members = len({trial for trial, _ in generations})
    title = f"{members} members; in colour what led to the best one"
    grid[0].set_title(title, loc="left", fontsize=9, color=GREY)
    return figure


def _segment(
    axes: Axes,
    generations: Mapping[tuple[int, int], Generation],
    generation: Generation,
    value: Callable[[Generation], float],
    **style: Any,
) -> None:
    """From the end of the generation before, of the member itself or of whom it took over, to the end of this one."""
    trial = generation.trial if generation.donor is None else generation.donor
    before = generations.get((trial, generation.number - 1))
    steps = [0 if before is None else before.env_steps, generation.env_steps]
    here = value(generation)
    axes.plot(steps, [here, here], **style)
    if before is not None:
        axes.plot([steps[0]] * 2, [value(before), here], **{**style, "linewidth": style["linewidth"] / 2})


def _curves(files: SweepFiles) -> Figure | None:
    """Training return of every run; those of the best trial are thick."""
    from matplotlib.ticker import EngFormatter

    figure, axes = _new()
    drawn, best = 0, files.trials[0].number if files.trials else None
    for run in sorted(files.runs, key=lambda run: run["trial"] == best):
        try:
            steps, values = read_run(Path(run["run_dir"])).curve("train/return_mean")
        except UserError:  # it failed before it had any
            continue
        if len(steps):
            leads = run["trial"] == best
            style = (
                {"color": COLOURS[1], "linewidth": 1.8} if leads else {"color": GREY, "linewidth": 0.7, "alpha": 0.6}
            )
            axes.plot(steps, values, **style)  # type: ignore[arg-type]
            drawn += 1
    if not drawn:
        return None
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("env steps")
    axes.set_ylabel("return, mean of the last 100 episodes")
    axes.set_title(f"{drawn} runs; the best trial (number {best}) in colour", loc="left", fontsize=9, color=GREY)
    return figure


def _cost(files: SweepFiles) -> Figure | None:
    """The score of each run over what was spent when it ended, and the best so far."""
    from matplotlib.ticker import EngFormatter

    runs = [run for run in sorted(files.runs, key=lambda run: run["ended"]) if run["score"] is not None]
    if not runs:
        return None
    figure, axes = _new()
    spent, scores = np.cumsum([run["env_steps"] for run in runs]), np.array([run["score"] for run in runs])
    ended = np.array([run["status"] == "finished" for run in runs])
    axes.scatter(spent[~ended], scores[~ended], s=14, color=GREY, label="stopped")
    axes.scatter(spent[ended], scores[ended], s=18, color=COLOURS[0], label="finished")
    best = files.sign * np.maximum.accumulate(files.sign * scores)
    axes.step(spent, best, where="post", color=COLOURS[1], label="best so far, of one seed")
    if files.sweep["searcher"] == "optuna":
        drawn = [trial for trial in files.trials if trial.number < RANDOM and trial.score is not None]
        line = expected_best([trial.score or 0.0 for trial in drawn], files.sign)
        each = float(np.mean([trial.env_steps for trial in files.trials]))
        axes.plot(each * np.arange(1, len(line) + 1), line, "--", color=COLOURS[2], label="expected of random search")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("env steps spent, over all runs")
    axes.set_ylabel(files.metric)
    axes.legend(frameon=False, fontsize=8)
    return figure


def expected_best(scores: Sequence[float], sign: int = 1) -> list[float]:
    """The expected best of n of these scores, drawn without replacement, for n from 1 to all of them."""
    ordered = sorted(scores, key=lambda score: sign * score)  # the k-th is the best of n in C(k, n - 1) draws
    total = len(ordered)
    return [
        sum(math.comb(k, n - 1) * score for k, score in enumerate(ordered)) / math.comb(total, n)
        for n in range(1, total + 1)
    ]
