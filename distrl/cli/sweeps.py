"""`distrl tune`: sweeps over configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from distrl.cli.app import app, err, out
from distrl.errors import UserError


@app.command()
def tune(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[FILE] [KEY=VALUE]...", show_default=False)] = None,
    name: Annotated[
        str | None, typer.Option(help="of the sweep, which lies in sweeps/NAME; default: of the file and the time")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="go on with a sweep that was interrupted or killed")
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="NAME", help="show a sweep, while it runs or after; try nothing")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Search for a better config, e.g. `distrl tune ppo_cartpole budget.trials=16 algorithm.hidden=[32,32] --name first`.

    KEY=VALUE is of the sweep where it has the key, else of the config that all trials begin with.
    """
    from distrl.runs.tune import find_sweep_dir, is_running, new_sweep, resumed_sweep
    from distrl.runs.tune import tune as run_sweep

    words = list(arguments or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    if status is not None:
        if source or words or resume or name:
            raise UserError("--status NAME shows a sweep. Leave all else out.")
        sweep_dir = find_sweep_dir(status)
        show(sweep_dir, is_running(sweep_dir))
        return
    if resume is not None:
        if name is not None:
            raise UserError(f"--resume {resume} goes on with a sweep that has a name. Leave --name {name} out.")
        sweep_dir = find_sweep_dir(resume)
        result = run_sweep(resumed_sweep(sweep_dir, words, source), sweep_dir, resume=True, quiet=quiet)
    else:
        if source is None:
            raise UserError("Which sweep? Give a file, such as ppo_cartpole, or --resume NAME, or --status NAME.")
        sweep, sweep_dir = new_sweep(source, words, name)
        result = run_sweep(sweep, sweep_dir, quiet=quiet)
    show(result.sweep_dir)
    if result.status == "interrupted":
        out.print(f"Interrupted. Go on with:  distrl tune --resume {resume or result.sweep_dir.name}")
        raise typer.Exit(130)
    if result.data["best"] is None:
        err.print("No trial came to its end, so there is no best one. What failed is told above; the rest was stopped.")
        raise typer.Exit(1)


def show(sweep_dir: Path, running: bool = False, rows: int = 10) -> None:
    """The best trials, what is running, and winner and base on the test seeds."""
    from distrl.models.store import MODEL
    from distrl.reports.sweeps import compared, read_sweep, told_overrides, told_score

    files = read_sweep(sweep_dir)
    state = files.result.get("status", "running")
    if state == "running" and not running:
        state = f"killed; go on with 'distrl tune --resume {sweep_dir.name}'"
    out.print(
        f"{sweep_dir.name}: {state}; {len(files.trials)} trials and {len(files.runs)} runs have ended or were stopped"
    )
    table = _table("trial", files.metric, "seeds", "status", "env steps", "seconds", "CPU s", "overrides")
    for trial in files.trials[:rows]:
        seconds = f"{trial.seconds:.1f}", f"{trial.seconds * files.cpus:.1f}"
        steps = f"{trial.env_steps:,}"
        what = told_overrides(trial.overrides)
        table.add_row(str(trial.number), told_score(trial), str(len(trial.scores)), trial.status, steps, *seconds, what)
    if files.trials:
        out.print(table)
    for run in [run for run in files.runs if run["status"] == "failed"][:rows]:
        out.print(f"failed: trial {run['trial']} seed {run['seed']}: {str(run['error']).splitlines()[0]}")
    for run_dir, row in files.going:
        reached = f"return {row['train/return_mean']:.4g}" if "train/return_mean" in row else "no episode yet"
        out.print(f"under way: {run_dir.parent.name} {run_dir.name}, {int(row['env_steps']):,} env steps, {reached}")
    if any(files.result.get("test", {}).values()):
        table = _table("on the test seeds", files.metric, "return of the best model", "seeds")
        for line in compared(files):
            table.add_row(*line)
        out.print(table)
    if files.trials and files.trials[0].scores:
        also = "  # the values of its end; all of them are in result.json" if files.population else ""
        out.print(f"Best:   distrl train {sweep_dir / 'best.yaml'}{also}")
    if (sweep_dir / MODEL).exists():
        out.print(f"Model:  distrl evaluate {sweep_dir}  # also play, record, export, register")


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, title_justify="left")
