"""How games went over a run: what was scored against each opponent, and the rating over the league."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distrl.reports.runs import Run
from distrl.types import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING, EVALUATION, ELO = "train/against/", "evaluation/against/", "train/elo"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # as in distrl.reports.curves


def scores(run: Run, kind: str) -> dict[str, tuple[Array, Array]]:
    """Env steps behind the weights, and what was scored with them (a win 1, a draw a half), by opponent. `kind`: TRAINING or EVALUATION"""
    keys = {key.removeprefix(kind) for row in run.rows for key in row if key.startswith(kind)}
    names = sorted(key.removesuffix("/win") for key in keys if key.endswith("/win"))
    x, found = "evaluation/env_steps" if kind == EVALUATION else "env_steps", {}
    for name in names:
        (steps, won), (_, drawn) = (run.curve(f"{kind}{name}/{outcome}", x) for outcome in ("win", "draw"))
        found[name] = steps, won + drawn / 2
    return found


def games(run: Run) -> Figure | None:
    """A panel of scores, and one of the rating where there is one; None where none were won or lost against others."""
    training, evaluation, (rated, elo) = scores(run, TRAINING), scores(run, EVALUATION), run.curve(ELO)
    if not training and not evaluation:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    figure = Figure(figsize=(11 if len(elo) else 7.5, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if len(elo) else 1, squeeze=False)[0]
    colour = dict(zip(dict.fromkeys([*training, *evaluation]), COLOURS * 10, strict=False))
    for name, (steps, score) in training.items():
        panels[0].plot(steps, score, linewidth=1.2, color=colour[name], label=f"{name}, training of late")
    for name, (steps, score) in evaluation.items():
        panels[0].plot(
            steps, score, "o--", markersize=4.5, linewidth=0.8, color=colour[name], label=f"{name}, evaluation"
        )
    panels[0].set_ylim(-0.02, 1.02)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylabel("score: games won, and half of those drawn")
    if len(elo):
        panels[1].plot(rated, elo, linewidth=1.5, color=COLOURS[0])
        panels[1].set_ylabel("Elo over the league")
    for axes in panels:
        axes.set_xlabel("env steps")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{run.name}, seed {run.config.get('seed')}", fontsize=11)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=9, ncols=2
    )
    return figure
