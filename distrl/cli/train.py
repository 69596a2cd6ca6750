"""`distrl train`: train, resume, or show what would be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from distrl.cli.app import app, err, out
from distrl.errors import UserError

if TYPE_CHECKING:
    from distrl.runs.plan import Plan
    from distrl.runs.result import Result
    from distrl.types import Evaluation


@app.command()
def train(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="everything in one process, without Ray; same results")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="go on with a run, or from one of its checkpoints")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show config, resources and sizes; train nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress display")] = False,
) -> None:
    """Train an agent, e.g. `distrl train configs/ppo_cartpole.yaml seed=3 cluster.runners=2`."""
    from distrl import STARTED
    from distrl.runs.plan import load_resumed_config, plan_run
    from distrl.runs.run import train as train_run

    words = list(arguments or [])
    source = Path(words.pop(0)) if words and "=" not in words[0] else None
    if resume is not None:
        config = load_resumed_config(resume, words, source)
    elif source is not None:
        from distrl.config import load_config

        config = load_config(source, words)
    else:
        raise UserError("Which config? Give a file, such as configs/ppo_cartpole.yaml, or --resume RUN.")
    if dry_run:
        _dry_run(plan_run(config, resume))
        return
    result = train_run(config, local=local, resume=resume, quiet=quiet, since=STARTED)
    summarize(result)
    if result.status == "interrupted":
        raise typer.Exit(130)


def _dry_run(plan: Plan) -> None:
    from distrl.acting.tables import TablePolicy
    from distrl.execution.resources import cpu_count, share_out

    config, rollout = plan.config, plan.config.rollout
    out.print(config.to_yaml().rstrip(), markup=False)
    table = Table(show_header=False, box=None, title="What this run is made of", title_justify="left")
    here = f"{cpu_count()} CPUs here"
    if config.cluster.address == "local":
        runners = f"{share_out(config, cpu_count(), None).runners} processes ({here})"
    else:
        runners = f"{config.cluster.runners} processes, on the cluster at {config.cluster.address}"
    iterations = "no limit" if config.iterations is None else f"{config.iterations:,}"
    for name, value in {
        "env": f"{plan.info.id}: {plan.info.observation_space} -> {plan.info.action_space}",
        "time limit": plan.info.max_episode_steps or "none",
        "reward threshold": "none" if plan.info.reward_threshold is None else plan.info.reward_threshold,
        "policy": f"{sum(a.size for a in plan.policy.arrays().values()):,} parameters",
        **({"table": plan.policy.size} if isinstance(plan.policy, TablePolicy) else {}),
        "env copies": f"{rollout.shards * rollout.envs_per_shard} in {rollout.shards} shards",
        "iteration": f"{rollout.env_steps:,} env steps; {iterations} of them",
        "runners": runners,
        "evaluation": f"every {config.evaluation_every} iterations" if config.evaluation_every else "only at the end",
        **({} if plan.replay_note is None else {"replay": plan.replay_note}),
        "object store": f"{plan.object_store_bytes / 2**20:,.0f} MiB at most",
        "run directory": plan.run_dir,
        **({"starts from": plan.start or "the beginning"} if plan.resuming else {}),
    }.items():
        table.add_row(name, escape(str(value)))
    out.print(table)
    for warning in plan.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")


def summarize(result: Result) -> None:
    """Print what was reached, where it lies, and what to type next."""
    run_dir, steps = result.run_dir, result.data["env_steps"]
    if result.status == "interrupted":
        out.print(f"[bold]Interrupted[/] after {steps:,} env steps; a checkpoint is in {run_dir}/checkpoints.")
        out.print(f"Go on with:  distrl train --resume {run_dir}", markup=False)
        return
    how = {
        "return_mean": "solved: the training return reached its mark",
        "env_steps": "all env steps done",
        "seconds": "time is up",
    }[result.data["stopped_by"]]
    out.print(f"[bold green]Finished[/] after {steps:,} env steps in {result.data['train_s']:.1f} s ({how}).")
    for name, text in [*_scores(result.evaluation), *_places(run_dir)]:
        out.print(f" {escape(name):<7} {text}")  # in no table: what is to be copied must stay on one line
    out.print(f"Next:  distrl play {run_dir}    distrl evaluate {run_dir}    distrl plot {run_dir}", markup=False)


def _scores(evaluation: Evaluation | None) -> Iterator[tuple[str, str]]:
    if evaluation is not None:
        yield "return", f"[bold]{evaluation.returns:.2f}[/] over {evaluation.played} of the best model"
        for name, score in evaluation.scores.items():
            yield name, f"[bold]{score:.2f}[/]"


def _places(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Where the model, the pictures and the page in MLflow are, as far as there are any."""
    from distrl.tracking.where import mlflow_location

    places = {
        "model": "best",
        "curve": "plots/learning_curve.png",
        "map": "plots/policy.png",
        "video": "videos/best.webm",
    }
    for name, place in places.items():
        if (run_dir / place).exists():
            yield name, escape(str(run_dir / place))
    yield from zip(("MLflow", ""), map(escape, mlflow_location(run_dir)), strict=False)
