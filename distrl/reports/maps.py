"""A table's values and best actions, drawn over the map of a grid world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distrl.acting.tables import TablePolicy
from distrl.envs.make import close_env, make_env
from distrl.errors import UserError
from distrl.models.store import env_of, find_model, read_model
from distrl.models.trust import check_modules
from distrl.reports.curves import save_figure
from distrl.reports.runs import read_config
from distrl.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1)}


@dataclass(frozen=True)
class World:
    """A grid world of R rows and C columns."""

    actions: tuple[str, ...]  # the direction of each action; or what to write for one that is no move
    panels: dict[str, Array]  # by title ('' where there is one panel alone): the state [R, C] of every cell
    over: Array  # [R, C] what to write where there is nothing to decide (hole, goal); '' elsewhere
    marks: Array  # [R, C] what else to write in a cell
    walls: tuple[tuple[int, int], ...] = ()  # cells (row, column) with a wall on their right


def _frozen_lake(env: Any) -> World:
    letters = env.desc.astype(str)
    return World(
        actions=("left", "down", "right", "up"),
        panels={"": np.arange(letters.size).reshape(letters.shape)},
        over=np.select([letters == "H", letters == "G"], ["hole", "goal"], ""),
        marks=np.where(letters == "S", "start", ""),
    )


def _cliff_walking(env: Any) -> World:
    state = np.arange(np.prod(env.shape)).reshape(env.shape)
    return World(
        actions=("up", "right", "down", "left"),
        panels={"": state},
        over=np.select([env._cliff.astype(bool), state == state[-1, -1]], ["cliff", "goal"], ""),
        marks=np.where(state == env.start_state_index, "start", ""),
    )


def _taxi(env: Any) -> World:
    """One map for every place where the passenger is, and for every place where the passenger wants to go."""
    rows, columns = env.max_row + 1, env.max_col + 1
    row, column = np.indices((rows, columns))
    marks = np.full((rows, columns), "", object)
    names = "RGYB"
    for name, place in zip(names, env.locs, strict=True):
        marks[place] = name
    panels = {}
    for to, goal in enumerate(names):
        for at, place in enumerate([*(f"at {name}" for name in names), "in the taxi"]):
            if at != to:
                panels[f"passenger {place}, to {goal}"] = env.encode(
                    row.copy(), column, at, to
                )  # `encode` counts in place
    walls = [(r, c) for r in range(rows) for c in range(columns - 1) if env.desc[1 + r, 2 * c + 2] == b"|"]
    return World(
        actions=("down", "up", "right", "left", "pick\nup", "drop\noff"),
        panels=panels,
        over=np.full((rows, columns), ""),
        marks=marks,
        walls=tuple(walls),
    )


WORLDS: dict[str, Callable[[Any], World]] = {  # by the name of the env's class
    "FrozenLakeEnv": _frozen_lake,
    "CliffWalkingEnv": _cliff_walking,
    "TaxiEnv": _taxi,
}


def plot_map(run_dir: Path, out: Path, check: bool = False) -> Path | None:
    """Draw a table's values and best actions. Returns None where the env is no known grid world, or there is no table.

    `check`: nor draw one of an env in a module that nobody vouches for (distrl.models.trust), since that would be imported.
    """
    try:
        policy, about = read_model(find_model(run_dir))
        env_settings = env_of(run_dir, about)
        if check:
            check_modules(run_dir, env_settings, None)
    except UserError:
        return None
    if not isinstance(policy, TablePolicy):
        return None
    env = make_env(env_settings)
    close_env(env, env_settings.id)
    describe = WORLDS.get(type(env.unwrapped).__name__)
    if describe is None:
        return None
    from matplotlib.figure import Figure

    world = describe(env.unwrapped)
    across = int(np.ceil(np.sqrt(len(world.panels))))
    down = -(-len(world.panels) // across)
    rows, columns = world.over.shape
    side = 0.8 if len(world.panels) == 1 else 0.45  # inches of a cell
    figure = Figure(
        figsize=(max(4.0, side * columns * across + 1), side * rows * down + 1), dpi=150, layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False)
    states = np.stack(list(world.panels.values()))  # [panels, R, C]
    values = np.where(world.over == "", policy.values(states).max(axis=-1), np.nan)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    for axes, title, state, value in zip(grid.flat, world.panels, states, values, strict=False):
        image = axes.imshow(value, cmap="viridis", vmin=low, vmax=high, zorder=0)
        best = policy.greedy(state.ravel()).reshape(state.shape)
        _draw_cells(axes, world, value, best, (low + high) / 2)
        axes.set_title(title, fontsize=7)
    figure.colorbar(image, ax=grid, label=f"value of the best action{_discount(run_dir)}", shrink=0.9)
    figure.suptitle(f"{about.get('algorithm', 'table')} on {about['env']['id']}", fontsize=10)
    return save_figure(figure, out)


def _discount(run_dir: Path) -> str:
    """By which the values are of this run, as far as it says so: an exported table does not."""
    try:
        return f", discount {read_config(run_dir)['algorithm']['gamma']:g}"
    except (UserError, KeyError, TypeError, ValueError):
        return ""


def _draw_cells(axes: Axes, world: World, value: Array, best: Array, middle: float) -> None:
    large = len(world.panels) == 1
    for (row, column), word in np.ndenumerate(world.over):
        if word:
            axes.text(column, row, word, ha="center", va="center", fontsize=8)
            continue
        colour = "white" if value[row, column] < middle else "black"
        action = world.actions[int(best[row, column])]
        if action in ARROWS:
            x, y = ARROWS[action]
            axes.annotate(
                "",
                (column + 0.25 * x, row - 0.25 * y - 0.1),
                (column - 0.25 * x, row + 0.25 * y - 0.1),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": colour,
                    "linewidth": 1.2 if large else 0.8,
                    "mutation_scale": 10 if large else 6,
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )
        else:
            axes.text(column, row - 0.1, action, ha="center", va="center", fontsize=5, color=colour)
        mark = str(world.marks[row, column])
        label = f"{value[row, column]:.3g} {mark}".strip() if large else mark
        axes.text(column, row + 0.42, label, ha="center", va="bottom", fontsize=6 if large else 5, color=colour)
    for row, column in world.walls:
        axes.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], color="black", linewidth=1.5)
    axes.set_xticks([])
    axes.set_yticks([])
