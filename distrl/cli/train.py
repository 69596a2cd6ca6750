"""`distrl train`: train, resume, or show what would be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from distrl.cli.app import app, err, out
from distrl.errors import UserError

if TYPE_CHECKING:
    from distrl.runs.plan import Plan
    from distrl.runs.result import Result
    from distrl.settings import Config
    from distrl.types import Evaluation


def _presets(incomplete: str) -> list[str]:
    """For a shell to complete."""
    from distrl.presets import presets as all_presets

    return [preset.name for preset in all_presets() if preset.name.startswith(incomplete)]


@app.command()
def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", show_default=False, autocompletion=_presets),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="everything in one process, without Ray; same results")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="go on with a run, from one of its checkpoints, or from s3://BUCKET/DIR/RUN"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show config, resources and sizes; train nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress display")] = False,
    env: Annotated[str | None, typer.Option(metavar="ID", help="instead of a config: the env to train on")] = None,
    algo: Annotated[str | None, typer.Option(metavar="NAME", help="with --env: the algorithm; default: ppo")] = None,
    save_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the whole config to a file; train nothing")
    ] = None,
) -> None:
    """Train an agent, e.g. `distrl train ppo_cartpole seed=3 cluster.runners=2` or `distrl train --env CartPole-v1`."""
    if not (quiet or dry_run or save_config is not None):  # what is imported now takes a second
        err.print("Looking at the config and the env ...")
    from distrl import STARTED
    from distrl.runs.plan import plan_run
    from distrl.runs.resume import load_resumed_config
    from distrl.runs.run import nodes_note, on_device_here
    from distrl.runs.run import train as train_run

    words = list(arguments or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    there: Path | None = None
    if resume is not None:
        there, words = _here(resume, words)
        config = load_resumed_config(there, words, None if source is None else Path(source))
    else:
        config = _config(source, env, algo, words, save_config)
    if save_config is not None:
        _save(config, save_config)
        return
    if dry_run:
        plan, here = plan_run(config, there), local or config.cluster.address == "local"
        if here and plan.config.learner.device == "cuda":
            on_device_here(plan.config)  # refuses a GPU that is not there
        _dry_run(plan, {} if here else nodes_note(plan))
        return
    result = train_run(config, local=local, resume=there, quiet=quiet, since=STARTED)
    summarize(result)
    if result.status == "interrupted":
        raise typer.Exit(130)


def _here(resume: str, words: list[str]) -> tuple[Path, list[str]]:
    """The run to go on with on this machine, brought from a store where it has to be, and the overrides with its storage."""
    from distrl.storage.fetch import brought, storage_of
    from distrl.stores import is_address

    if not is_address(resume):
        return Path(resume), words
    run_dir = next((word.partition("=")[2] for word in words if word.startswith("run_dir=")), None)
    return brought(resume, run_dir), [f"storage={storage_of(resume)}", *words]


def _config(source: str | None, env: str | None, algo: str | None, overrides: list[str], save: Path | None) -> Config:
    """From a file or a preset's name, or for an env and an algorithm."""
    if source is not None:
        if env is not None or algo is not None:
            raise UserError(f"{source!r} names env and algorithm already. Leave out --env and --algo, or the config.")
        from distrl.config import load_config

        return load_config(source, overrides)
    if env is None:
        raise UserError(
            "Which config? Give a file or a preset, such as ppo_cartpole ('distrl presets' lists them), an env as "
            "--env CartPole-v1, or --resume RUN."
        )
    from distrl.runs.choose import choose_config

    config, origin = choose_config(env, algo, overrides)
    hint = " Write it to a file with --save-config FILE." if save is None else ""
    err.print(f"{config.algorithm.name} on {env} by {origin}.{hint}")
    return config


def _save(config: Config, path: Path) -> None:
    from distrl.files import write_text

    if path.exists():
        raise UserError(f"{str(path)!r} exists. Choose another name for --save-config.")
    write_text(path, config.model_copy(update={"run_dir": None}).to_yaml())
    out.print(f"{path}: train it with 'distrl train {path}'.")


@app.command()
def presets() -> None:
    """List the configs that come with distrl, and what each reached."""
    from distrl.presets import presets as all_presets

    rows = [("preset", "algorithm", "environment", "score")]
    rows += [(p.name, p.algorithm, p.env_id, p.score or "not measured") for p in all_presets()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # no rich table: piped, it would be cut
        out.print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _dry_run(plan: Plan, nodes: dict[str, str]) -> None:
    """`nodes`: what would go to each of a cluster's, by its name."""
    from distrl.layouts import space_text

    config, rollout = plan.config, plan.config.rollout
    out.print(config.to_yaml().rstrip())
    table = Table(show_header=False, box=None, title="What this run is made of", title_justify="left")
    iterations = "no limit" if config.iterations is None else f"{config.iterations:,}"
    for name, value in {
        "env": f"{plan.info.id}: {space_text(plan.info.observation_space)} -> {space_text(plan.info.action_space)}",
        "time limit": plan.info.max_episode_steps or "none",
        "reward threshold": "none" if plan.info.reward_threshold is None else plan.info.reward_threshold,
        "policy": plan.policy_note,
        "env copies": f"{rollout.shards * rollout.envs_per_shard} in {rollout.shards} shards",
        "iteration": f"{rollout.env_steps:,} env steps; {iterations} of them",
        "runners": plan.runners_note,
        **({} if plan.learners_note is None else {"learners": plan.learners_note}),
        **{f"on {name}": what for name, what in nodes.items()},
        "evaluation": f"every {config.evaluation_every} iterations" if config.evaluation_every else "only at the end",
        **({} if plan.replay_note is None else {"replay": plan.replay_note}),
        "object store": f"{plan.object_store_bytes / 2**20:,.0f} MiB at most",
        "run directory": plan.run_dir,
        **({} if config.storage is None else {"a copy of it in": config.storage}),
        **({} if plan.origin is None else {"begins with": plan.origin.source["path"]}),
        **({"starts from": plan.start or "the beginning"} if plan.resuming else {}),
    }.items():
        table.add_row(name, str(value))
    out.print(table)
    for warning in plan.warnings:
        err.print(Text.assemble(("warning: ", "yellow"), warning))


def summarize(result: Result) -> None:
    """Print what was reached, where it lies, and what to type next."""
    run_dir, steps = result.run_dir, result.data["env_steps"]
    if result.status == "interrupted":
        out.print(
            Text.assemble(
                ("Interrupted", "bold"), f" after {steps:,} env steps; a checkpoint is in {run_dir}/checkpoints."
            )
        )
        out.print(f"Go on with:  distrl train --resume {run_dir}")
        return
    how = {
        "return_mean": "solved: the training return reached its mark",
        "env_steps": "all env steps done",
        "seconds": "time is up",
        "callback": "a callback ended it",
    }[result.data["stopped_by"]]
    out.print(
        Text.assemble(
            ("Finished", "bold green"), f" after {steps:,} env steps in {result.data['train_s']:.1f} s ({how})."
        )
    )
    for name, text in [*_scores(result.evaluation), *_places(run_dir)]:
        out.print(Text.assemble(f" {name:<7} ", text))  # in no table: what is to be copied must stay on one line
    out.print(f"Next:  distrl play {run_dir}    distrl evaluate {run_dir}    distrl report {run_dir}")


def _scores(evaluation: Evaluation | None) -> Iterator[tuple[str, Text]]:
    if evaluation is not None:
        yield (
            "return",
            Text.assemble((f"{evaluation.returns:.2f}", "bold"), f" over {evaluation.played} of the best model"),
        )
        for name, score in evaluation.scores.items():
            yield name, Text(f"{score:.2f}", "bold")
        yield from ((name, Text(text)) for name, text in evaluation.told)


def _places(run_dir: Path) -> Iterator[tuple[str, Text]]:
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
            yield name, Text(str(run_dir / place))
    yield from zip(("MLflow", ""), map(Text, mlflow_location(run_dir)), strict=False)
