"""Learning curves of runs, and the losses of one.

Reads files of runs; knows nothing of Ray, torch and MLflow. matplotlib is imported where it is needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrl.envs.make import find_spec
from distrl.errors import UserError
from distrl.files import draft
from distrl.models.trust import check_modules
from distrl.reports.games import TRAINING, games
from distrl.reports.runs import Run, group_runs, read_run
from distrl.settings import EnvSettings
from distrl.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): colour-blind people can tell these apart, and so can everybody in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "-.", ":")  # for more curves than colours; dashes are the threshold's
GREY = "#666666"
EDGE = "#333333"  # of marks
# In a PDF or SVG letters are outlines that every program shows alike, or fonts that journals take.
FONTS: dict[Any, Any] = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path"}
# The order of panels in losses.png. Metrics that are not named here come after these, if their value ever changes.
PANELS = (
    *("policy_loss", "value_loss", "loss", "entropy", "approx_kl", "staleness_kl", "clip_fraction"),
    *("explained_variance", "td_error", "q_mean", "epsilon", "grad_norm", "learning_rate"),
)
AGENTS, MOST_NAMED = "train/agents/", 10  # metrics of several agents; of more of them the names would hide the picture
NO_PANELS = ("return_mean", "length_mean", "episodes")  # not losses


def plot_runs(run_dirs: Sequence[Path], out: Path, smooth: int = 1, threshold: float | None = None) -> Path:
    """Learning curves of runs, as `learning_curves` draws them.

    Args:
        out: an image, such as curves.png; .pdf and .svg are drawn in lines, for papers.
        smooth: iterations of a centred moving average; 1: none (each value is already a mean of 100 episodes).
        threshold: the return to draw as a dashed line; None: the env's reward threshold, where all runs share it.
    """
    if not run_dirs:
        raise UserError("There are no runs to plot: name one or more run directories.")
    runs = [read_run(path) for path in dict.fromkeys(Path(path).resolve() for path in run_dirs)]
    if not any(_drawn(run) for run in runs):
        raise UserError(f"No episode has ended yet in {', '.join(map(str, run_dirs))}: there is nothing to plot.")
    if threshold is None:
        threshold = reward_threshold(runs)
    return save_figure(learning_curves(runs, threshold, smooth), out)


def plot_training(run_dir: Path, out_dir: Path) -> list[Path]:
    """Draw learning_curve.png, losses.png and games.png of one run; a picture that would be empty is left out."""
    run = read_run(Path(run_dir))
    figures = {"learning_curve.png": learning_curves([run], _threshold([run])) if _drawn(run) else None}
    figures |= {"losses.png": losses(run), "games.png": games(run)}
    return [save_figure(figure, Path(out_dir) / name) for name, figure in figures.items() if figure is not None]


def learning_curves(
    runs: Sequence[Run], threshold: float | None, smooth: int = 1, size: tuple[float, float] = (7.5, 4.2)
) -> Figure:
    """Return over env steps.

    Runs that differ only in the seed become one curve, their mean over the steps that all of them reached, in a band
    from the smallest to the largest; each run is a thin line in it. Any other run becomes a curve of its own. One curve
    alone has its evaluations beside it, and a star where the best model was taken.

    Args:
        size: inches, wide and high; the legend makes it higher
    """
    groups = {
        label: some for label, members in group_runs(runs).items() if (some := [run for run in members if _drawn(run)])
    }
    figure, axes = _figure(size)
    for i, (label, members) in enumerate(groups.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
        if len(groups) == 1:
            axes.set_title(f"{label}, {_seeds(members)}", loc="left", fontsize=10)
            what = "mean of the last 100 episodes"
            label = f"training, {what}" if len(members) == 1 else f"training, {what}, mean over seeds"
        elif len(members) > 1:
            label += f" ({len(members)} seeds)"
        _draw_group(axes, members, smooth, textwrap.fill(label, int(11 * size[0])), style)
    if len(groups) == 1:
        if len(members) == 1:
            _draw_agents(axes, members[0])
        _draw_evaluations(axes, members)
        _draw_best(axes, members)
    if any(len(members) > 1 for members in groups.values()):
        axes.fill_between([], [], color=GREY, alpha=0.15, linewidth=0, label="band: smallest to largest of the seeds")
    if threshold is not None:
        label = f"reward threshold {threshold:g}"
        axes.axhline(threshold, color=GREY, linestyle="--", linewidth=1.2, label=label, zorder=1)
    axes.set_ylabel("return")
    _finish(figure, axes, size)
    return figure


def _drawn(run: Run) -> bool:
    """Whether there is anything to draw."""
    return len(run.curve("train/return_mean")[0]) > 0 or len(run.evaluations()[0]) > 0


def _seeds(members: Sequence[Run]) -> str:
    seeds = [str(run.config.get("seed")) for run in members]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _draw_evaluations(axes: Axes, members: Sequence[Run]) -> None:
    """Of one run their spread over episodes; of several, over the seeds, where all were evaluated after as many steps."""
    if len(members) == 1:
        steps, means, spread = members[0].evaluations()
    else:
        curves = [run.evaluations() for run in members]
        shared = sorted(set.intersection(*(set(x.tolist()) for x, _, _ in curves)))
        steps = np.array(shared)
        found = np.array([[y[x.tolist().index(step)] for step in shared] for x, y, _ in curves])
        means, spread = found.mean(axis=0), found.std(axis=0)
    if len(steps):
        over = "episodes" if len(members) == 1 else "seeds"
        label = f"evaluation, mean and standard deviation over {over}"
        style: dict[str, Any] = {"markersize": 4.5, "linewidth": 1, "capsize": 2.5, "color": COLOURS[1], "zorder": 3}
        axes.plot(steps, means, color=COLOURS[1], linewidth=0.8, alpha=0.6)
        axes.errorbar(steps, means, yerr=spread, fmt="o", label=label, **style)


def _draw_best(axes: Axes, members: Sequence[Run]) -> None:
    best = [run.best for run in members if run.best is not None]
    if not best:
        return
    when = f" of {len(best)} seeds" if len(members) > 1 else f", after {best[0].env_steps:,} env steps"
    axes.plot(
        [found.env_steps for found in best],
        [found.mean for found in best],
        linestyle="none",
        marker="*",
        markersize=12,
        color=COLOURS[4],
        markeredgecolor=EDGE,
        markeredgewidth=0.7,
        zorder=4,
        label=f"best model{'s' * (len(members) > 1)}{when}",
    )


def losses(run: Run) -> Figure | None:
    """One small panel for every metric of the learner; None where there is none."""
    names = {key.removeprefix("train/") for key in _keys(run, "train/") - _keys(run, AGENTS) - _keys(run, TRAINING)}
    curves = {name: run.curve(f"train/{name}") for name in names - set(NO_PANELS)}
    curves = {
        name: curve for name, curve in curves.items() if len(curve[0]) and (name in PANELS or np.ptp(curve[1]) > 0)
    }
    return _losses(run, curves) if curves else None


def _keys(run: Run, prefix: str) -> set[str]:
    return {key for row in run.rows for key in row if key.startswith(prefix)}


def _draw_agents(axes: Axes, run: Run) -> None:
    """A thin line for the return of each of several agents, whose sum the learning curve is; in groups a colour for each policy."""
    keys, groups = sorted(_keys(run, AGENTS)), run.config.get("policies")
    groups = groups if isinstance(groups, dict) else {}
    for i, key in enumerate(keys):
        name = key.removeprefix(AGENTS).removesuffix("_mean")
        own = (group for group, patterns in groups.items() if any(fnmatchcase(name, pattern) for pattern in patterns))
        group = next(own, None)
        number = i if group is None else list(groups).index(group)
        style: dict[str, Any] = {
            "color": COLOURS[(number + 2) % len(COLOURS)],
            "linestyle": LINES[1 + i // len(COLOURS) % (len(LINES) - 1)],
        }
        steps, returns = run.curve(key)
        label = name if group is None else f"{name} ({group})"
        axes.plot(steps, returns, linewidth=1, label=label if len(keys) <= MOST_NAMED else None, **style)


def _losses(run: Run, curves: Mapping[str, tuple[Array, Array]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    width, height = 3.5 * columns, 2.3 * rows + 0.4
    # Margins in inches; constrained_layout would take as long as all the drawing to find such ones.
    around = {"left": 0.75 / width, "right": 1 - 0.2 / width, "bottom": 0.6 / height, "top": 1 - 0.75 / height}
    figure = Figure(figsize=(width, height), dpi=150)
    grid = figure.subplots(
        rows, columns, sharex=True, squeeze=False, gridspec_kw={**around, "wspace": 0.3, "hspace": 0.25}
    )
    order = sorted(curves, key=lambda name: (PANELS.index(name) if name in PANELS else len(PANELS), name))
    for i, axes in enumerate(grid.flat):
        if i >= len(order):
            axes.set_visible(False)
            continue
        steps, values = curves[order[i]]
        window = max(1, len(values) // 50)
        axes.plot(steps, values, color=COLOURS[0], linewidth=0.8, alpha=0.35 if window > 1 else 1.0)
        if window > 1:
            axes.plot(steps, _smooth(values, window), color=COLOURS[0], linewidth=1.5)
        axes.set_title(order[i], fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _plain(axes)
        axes.tick_params(labelbottom=i + columns >= len(order))  # a panel above a hole in the last row has labels too
    figure.supxlabel("env steps", fontsize=10)
    figure.suptitle(f"{run.name}, seed {run.config.get('seed')}", fontsize=11)
    return figure


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """`Figure` without pyplot: no global state, no window, drawn by Agg."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    return figure, figure.subplots()


def _draw_group(axes: Axes, members: list[Run], smooth: int, label: str, style: Mapping[str, Any]) -> None:
    curves = [(steps, _smooth(values, smooth)) for steps, values in (run.curve("train/return_mean") for run in members)]
    if len(curves) == 1:
        axes.plot(*curves[0], linewidth=1.8, label=label, **style)
        return
    for steps, values in curves:
        axes.plot(steps, values, linewidth=0.7, alpha=0.45, **style)
    steps, values = band(curves)
    axes.plot(steps, values.mean(axis=0) if len(steps) else [], linewidth=2, label=label, **style)
    if len(steps):
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)


def band(curves: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Put curves (x [n], y [n]) on the x [K] that all of them cover; returns that x and y [curves, K]."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    steps = np.unique(np.concatenate([x for x, _ in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in curves])


def _smooth(values: Array, window: int) -> Array:
    """Centred moving average over `window` points, and over fewer near the ends."""
    if window <= 1 or len(values) < 2:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - window // 2, 0), np.minimum(index + (window + 1) // 2, len(values))
    mean: Array = (sums[high] - sums[low]) / (high - low)
    return mean


def reward_threshold(runs: Sequence[Run]) -> float | None:
    """That of the env, where all runs share it, nobody wraps it, and nothing foreign must be imported for it."""
    try:
        for run in runs:
            check_modules(run.path, EnvSettings(id=run.config["env"]["id"]), None)
    except UserError:
        return None
    return _threshold(runs)


def _threshold(runs: Sequence[Run]) -> float | None:
    ids = {run.config["env"]["id"] for run in runs}
    if len(ids) > 1 or any(run.config["env"].get("wrappers") for run in runs):  # these may change rewards
        return None
    try:
        return find_spec(ids.pop()).reward_threshold
    except UserError:  # the env is not installed here; the picture does not need it
        return None


def _finish(figure: Figure, axes: Axes, size: tuple[float, float]) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("env steps")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _plain(axes)
    named = list(zip(*axes.get_legend_handles_labels(), strict=True))
    last = ("training", "evaluation", "best", "band", "reward threshold")  # in this order, behind names of runs
    named.sort(key=lambda pair: next((i for i, name in enumerate(last) if pair[1].startswith(name)), -1))
    rows = sum(label.count("\n") + 1 for _, label in named)
    figure.set_figheight(size[1] + 0.2 * rows)  # so that the axes keep one height
    figure.legend(*zip(*named, strict=True), loc="outside lower center", frameon=False, fontsize=9)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, out: Path) -> Path:
    """Write a figure in the format of the suffix. Raises `UserError` for an unknown one, or where it cannot be written."""
    kinds = figure.canvas.get_supported_filetypes()
    if out.suffix[1:] not in kinds:
        raise UserError(f"{str(out)!r} must end in one of {', '.join(f'.{kind}' for kind in sorted(kinds))}.")
    import matplotlib

    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # with one savefig draws everything twice
    with draft(out) as path, matplotlib.rc_context(FONTS):
        figure.savefig(path)
    return out
