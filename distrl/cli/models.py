"""Commands for trained models: evaluate, record, play, plot, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from distrl.cli.app import EnvModules, Run, Sampled, Seed, app, err, out
from distrl.errors import UserError


@app.command()
def evaluate(
    run: Run,
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    sampled: Sampled = False,
    seed: Seed = 12345,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="time limit of an episode; default: as in training")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="the exact value and the optimum, where the transition table is known; of a game of turns all its lines",
        ),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="of games: random, a function module:name or a run to play against, from each seat in turn; may be repeated"
        ),
    ] = None,
    env_module: EnvModules = None,
) -> None:
    """Play episodes in fresh envs: mean, spread, min and max of the returns. Imports the modules that the model names."""
    if exact:
        if sampled:
            raise UserError("--exact is of greedy actions: leave out --sampled.")
        _evaluate_exactly(run, env_module or [])
        return
    from distrl.models.evaluate import play_episodes

    modules = env_module or []
    how = {"greedy": not sampled, "seed": seed, "max_steps": max_steps, "modules": modules, "opponents": against or []}
    result, env = play_episodes(run, episodes, **how)  # type: ignore[arg-type]
    out.print(
        Text.assemble(
            f"{env.id}: ",
            (f"{result.returns:.2f}", "bold"),
            f" over {result.played} of {result.lengths.mean:,.0f} steps; weights of {result.env_steps:,} env steps",
        )
    )
    for name, score in result.scores.items():
        out.print(Text.assemble(f"{name}: ", (f"{score:.2f}", "bold")))
    for name, text in result.told:
        out.print(f"{name}: {text}")


def _evaluate_exactly(run: Path, modules: list[str]) -> None:
    from distrl.envs.multi import is_team
    from distrl.models.evaluate import evaluate_exactly, load_model

    if is_team(env_id := load_model(run)[1].id):
        (_examine_leduc if env_id.replace("-v", "_v") == "classic/leduc_holdem_v4" else _examine_game)(run, modules)
        return
    found, table, env, about = evaluate_exactly(run, modules)
    limit = "no time limit" if table.time_limit is None else f"time limit {table.time_limit}"
    out.print(f"{env.id}, exactly, over all starts and outcomes ({limit}); weights of {about['env_steps']:,} env steps")
    rows = Table(show_header=False, box=None)
    rows.add_row("agent", Text(f"{found.value:.6f}", "bold"), "greedy actions")
    rows.add_row("optimum", f"{found.optimum:.6f}", "the best policy found that does not see the time")
    rows.add_row("gap", f"{found.gap:.6f}")
    rows.add_row("bound", f"{found.bound:.6f}", "the best policy that sees the time left (value iteration)")
    rows.add_row("starts", f"{found.optimal_starts} of {found.starts}", "from which the agent is optimal")
    out.print(rows)


def _examine_game(run: Path, modules: list[str]) -> None:
    from distrl.models.game_tree import MOST, examine_game

    err.print(f"Walking the tree of the game, of {MOST:,} lines of moves at most ...")
    for seat in examine_game(run, modules):
        never = "never loses" if seat.never_loses else f"loses {seat.losing:,} of them"
        out.print(
            Text.assemble(
                f"{seat.agent}: over all {seat.lines:,} lines of moves of the others the agent ",
                (never, "bold"),
                f"; against random moves {seat.win:.4%} won, {seat.draw:.4%} drawn, {seat.loss:.4%} lost",
            )
        )


def _examine_leduc(run: Path, modules: list[str]) -> None:
    from distrl.models.leduc import examine_leduc

    found = examine_leduc(run, modules)
    for agent, won in found.against_random.items():
        out.print(
            Text.assemble(
                f"{agent}: over all hands its best actions win ",
                (f"{won:.4f}", "bold"),
                f" big blinds a hand of random play, of whom {found.at_most:.4f} can be won",
            )
        )
    out.print(
        f"NashConv of its best actions {found.greedy:.4f}, as it samples {found.sampled:.4f}; 0 is an equilibrium"
    )
    if found.league is not None:
        out.print(f"NashConv of the average of the {found.members} past versions in its league {found.league:.4f}")


@app.command()
def record(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help=".webm, .mp4 or .gif; default: RUN/videos/seedN.webm")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="default: as many as make 5 s, and 3 at most", show_default=False)
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="a video of each of the episodes 0, EVERY, 2 EVERY, ... of --episodes")
    ] = None,
    sampled: Sampled = False,
    seed: Seed = 0,
    env_module: EnvModules = None,
) -> None:
    """Record a video of a trained model. Imports the modules that the model names."""
    from distrl.models.evaluate import load_to_play
    from distrl.models.play import by_policy
    from distrl.models.video import record_video

    if every is not None and episodes is None:
        raise UserError(f"--every {every} keeps some of how many episodes? Add --episodes {5 * every}.")
    policy, env, _ = load_to_play(run, env_module or [])
    where = output or (run if run.is_dir() else run.parent) / "videos" / f"seed{seed}.webm"
    numbers = [None] if every is None else list(range(0, episodes or 0, every))
    for number in numbers:
        # An episode is fixed by its number and the seed, so the others need not be played.
        out_of = where if number is None else where.with_stem(f"{where.stem}-episode{number:04}")
        count, first = (episodes, 0) if number is None else (1, number)
        recording = record_video(by_policy(policy, seed, not sampled), env, out_of, seed, count, first=first)
        returns = ", ".join(f"{r:.1f}" for r in recording.returns)
        out.print(f"{recording.path}: {recording.frames} frames, return {returns}")
        if recording.warning is not None:
            err.print(f"warning: {recording.warning}")


@app.command()
def play(
    run: Run,
    episodes: Annotated[int, typer.Option(min=1)] = 3,
    sampled: Sampled = False,
    seed: Seed = 0,
    seat: Annotated[
        str | None,
        typer.Option(help="of games of turns: the agent that you play, in the terminal; the model plays the others"),
    ] = None,
    env_module: EnvModules = None,
) -> None:
    """Watch a trained model in a window, or play against it. Imports the modules that the model names."""
    from distrl.models import play as window
    from distrl.models.evaluate import load_to_play

    policy, env, _ = load_to_play(run, env_module or [])
    if seat is not None:
        from distrl.models.person import sit

        sit(window.by_policy(policy, seed, not sampled), env, seat, seed, episodes, say=out.print)
        return
    remedy = "Record a video instead: 'distrl record'."
    if policy.obs_layout.agents:
        remedy += " Or play a game of turns yourself: --seat AGENT."
    window.play(window.by_policy(policy, seed, not sampled), env, seed, episodes, remedy=remedy)


@app.command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(help="run directories; runs that differ only in the seed become one band")
    ],
    output: Annotated[Path, typer.Option("--out", "-o")] = Path("learning_curves.png"),
) -> None:
    """Draw the learning curves of one or several runs."""
    from distrl.reports.curves import plot_runs
    from distrl.reports.maps import plot_map

    out.print(f"learning curves: {plot_runs(runs, output)}")
    for run in dict.fromkeys(runs):
        if (picture := plot_map(run, run / "plots" / "policy.png", check=True)) is not None:
            out.print(f"values and best actions: {picture}")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="run directories, or sweeps; runs that differ only in the seed are one configuration"),
    ],
    output: Annotated[Path, typer.Option("--out", "-o")] = Path("report.html"),
) -> None:
    """Write one HTML page on one or several runs: scores, curves, times, how to repeat it, a video. It needs no network."""
    from distrl.reports.page import write_page

    out.print(f"report: {write_page(runs, output)}")


@app.command()
def export(
    run: Run,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="of tables: csv, json, npz; of networks: onnx, torchscript; of both: safetensors, mlflow; default: the first that fits",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="default: in RUN, by a name of the format", show_default=False)
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="of several policies: the agent whose one is meant", show_default=False)
    ] = None,
    env_module: EnvModules = None,
) -> None:
    """Write a trained model for people and other programs, and try that it does there what it does here.

    That imports the modules that the model names. `evaluate` and `play` read tables as .json and .npz, and .safetensors.
    """
    from distrl.tools.export import export as write

    where, told = write(run, format, output, env_module or [], agent)
    out.print(f"{where}")
    for line in told:
        out.print(f" {line}")
