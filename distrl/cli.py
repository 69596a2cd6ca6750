"""The command line: `distrl --help`. Parses, calls, prints; mistakes of the user are one message and exit code 2. Floor 7."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from distrl.errors import Diverged, EnvError, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning with Ray: the same run, the same weights, on a laptop and on a cluster.",
)
out = RichConsole(highlight=False, soft_wrap=True)
err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

Run = Annotated[Path, typer.Argument(help="a run directory, a checkpoint or a model directory")]
Sampled = Annotated[bool, typer.Option("--sampled", help="sample actions instead of taking the best")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the episodes")]


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
    from distrl import run

    words = list(arguments or [])
    source = Path(words.pop(0)) if words and "=" not in words[0] else None
    if resume is not None:
        config = run.load_resumed_config(resume, words, source)
    elif source is not None:
        from distrl.config import load_config

        config = load_config(source, words)
    else:
        raise UserError("Which config? Give a file, such as configs/ppo_cartpole.yaml, or --resume RUN.")
    if dry_run:
        _dry_run(run.plan_run(config, resume))
        return
    result = run.train(config, local=local, resume=resume, quiet=quiet)
    _summarize(result.run_dir, result.data)
    if result.status == "interrupted":
        raise typer.Exit(130)


def _dry_run(plan: Any) -> None:
    from distrl import run
    from distrl.run import cpu_count, share_out
    from distrl.tables import TablePolicy

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
        **({"replay": run.replay_note(plan)} if plan.replay_bytes else {}),
        "object store": f"{plan.object_store_bytes / 2**20:,.0f} MiB at most",
        "run directory": plan.run_dir,
        **({"starts from": plan.start or "the beginning"} if plan.resuming else {}),
    }.items():
        table.add_row(name, escape(str(value)))
    out.print(table)
    for warning in plan.warnings:
        err.print(f"[yellow]warning:[/] {escape(warning)}")


def _summarize(run_dir: Path, data: dict[str, Any]) -> None:
    """What was reached, where it is, and what to type next."""
    from distrl.track import mlflow_location

    evaluation = data["evaluation"]
    steps, seconds = data["env_steps"], data["train_s"]
    if data["status"] == "interrupted":
        out.print(f"[bold]Interrupted[/] after {steps:,} env steps; a checkpoint is in {run_dir}/checkpoints.")
        out.print(f"Go on with:  distrl train --resume {run_dir}", markup=False)
        return
    how = {
        "return_mean": "solved: the training return reached its mark",
        "env_steps": "all env steps done",
        "seconds": "time is up",
    }
    out.print(f"[bold green]Finished[/] after {steps:,} env steps in {seconds:.1f} s ({how[data['stopped_by']]}).")
    rows: list[tuple[str, str]] = []
    if evaluation is not None:
        spread = f"{evaluation['mean']:.2f} ± {evaluation['std']:.2f} (min {evaluation['min']:.2f}, max {evaluation['max']:.2f})"
        way = "greedy" if evaluation["greedy"] else "sampled"
        rows.append(("return", f"[bold]{spread}[/] over {evaluation['episodes']} {way} episodes of the best model"))
        for name, value in evaluation.items():
            if isinstance(value, dict):
                numbers = f"{value['mean']:.2f} ± {value['std']:.2f} (min {value['min']:.2f}, max {value['max']:.2f})"
                rows.append((name, f"[bold]{numbers}[/]"))
    places = {
        "model": "best",
        "curve": "plots/learning_curve.png",
        "map": "plots/policy.png",
        "video": "videos/best.webm",
    }
    rows += [(name, escape(str(run_dir / place))) for name, place in places.items() if (run_dir / place).exists()]
    rows += zip(("MLflow", ""), map(escape, mlflow_location(run_dir)), strict=False)
    for name, text in rows:  # no table: what is to be copied must stay on one line
        out.print(f" {name:<7} {text}")
    out.print(f"Next:  distrl play {run_dir}    distrl evaluate {run_dir}    distrl plot {run_dir}", markup=False)


def _model(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The policy, the settings of its env, and what is known about it."""
    from distrl.checkpoint import find_model, read_model
    from distrl.config import EnvSettings
    from distrl.export import read_export
    from distrl.policy import single_threaded

    single_threaded()
    policy, about = read_export(path) if path.is_file() else read_model(find_model(path))
    return policy, EnvSettings(**about["env"]), about


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
        bool, typer.Option("--exact", help="the exact value and the optimum, where the transition table is known")
    ] = False,
) -> None:
    """Play episodes in fresh envs: mean, spread, min and max of the returns."""
    if exact:
        if sampled:
            raise UserError("--exact is of greedy actions: leave out --sampled.")
        _evaluate_exactly(run)
        return
    import numpy as np

    from distrl.policy import flatten
    from distrl.types import Weights
    from distrl.workers.evaluator import Evaluator

    policy, env, about = _model(run)
    if max_steps is not None:
        env = env.model_copy(update={"max_episode_steps": max_steps})
    weights = Weights(about["version"], flatten(policy.arrays(), policy.shapes()))
    result = Evaluator(env, seed, policy).evaluate(weights, about["env_steps"], episodes, not sampled, 0)
    way = "sampled" if sampled else "greedy"
    out.print(
        f"{env.id}: [bold]{result.mean:.2f} ± {result.std:.2f}[/] (min {min(result.returns):.2f}, max {max(result.returns):.2f}) "
        f"over {episodes} {way} episodes of {np.mean(result.lengths):.0f} steps; weights of {about['env_steps']:,} env steps"
    )
    for name, values in result.infos.items():
        spread = f"{np.mean(values):.2f} ± {np.std(values):.2f} (min {min(values):.2f}, max {max(values):.2f})"
        out.print(f"{name}: [bold]{spread}[/]")


def _evaluate_exactly(run: Path) -> None:
    from distrl.envs.table import read_table
    from distrl.exact import examine

    policy, env, about = _model(run)
    table = read_table(env)
    found = examine(table, policy)
    limit = "no time limit" if table.time_limit is None else f"time limit {table.time_limit}"
    out.print(f"{env.id}, exactly, over all starts and outcomes ({limit}); weights of {about['env_steps']:,} env steps")
    rows = Table(show_header=False, box=None)
    rows.add_row("agent", f"[bold]{found.value:.6f}[/]", "greedy actions")
    rows.add_row("optimum", f"{found.optimum:.6f}", "the best policy found that does not see the time")
    rows.add_row("gap", f"{found.gap:.6f}")
    rows.add_row("bound", f"{found.bound:.6f}", "the best policy that sees the time left (value iteration)")
    rows.add_row("starts", f"{found.optimal_starts} of {found.starts}", "from which the agent is optimal")
    out.print(rows)


@app.command()
def record(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help=".webm, .mp4 or .gif; default: RUN/videos/seedN.webm")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1)] = 1,
    sampled: Sampled = False,
    seed: Seed = 0,
) -> None:
    """Record a video of a trained model."""
    from distrl.video import record_video

    policy, env, _ = _model(run)
    where = output or (run if run.is_dir() else run.parent) / "videos" / f"seed{seed}.webm"
    recording = record_video(policy, env, where, seed=seed, episodes=episodes, greedy=not sampled)
    returns = ", ".join(f"{r:.1f}" for r in recording.returns)
    out.print(f"{recording.path}: {recording.frames} frames, return {returns}")


@app.command()
def play(
    run: Run,
    episodes: Annotated[int, typer.Option(min=1)] = 3,
    sampled: Sampled = False,
    seed: Seed = 0,
) -> None:
    """Watch a trained model in a window."""
    from distrl import video

    policy, env, _ = _model(run)
    video.play(policy, env, seed=seed, episodes=episodes, greedy=not sampled)


@app.command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(help="run directories; runs that differ only in the seed become one band")
    ],
    output: Annotated[Path, typer.Option("--out", "-o")] = Path("learning_curves.png"),
) -> None:
    """Draw the learning curves of one or several runs."""
    from distrl.maps import plot_map
    from distrl.report import plot_runs

    out.print(f"{plot_runs(runs, output)}")
    for run in dict.fromkeys(runs):
        if (picture := plot_map(run, run / "plots" / "policy.png")) is not None:
            out.print(f"{picture}")


@app.command()
def export(
    run: Run,
    format: Annotated[str, typer.Option("--format", "-f", help="csv, npz or json")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="default: RUN/table.FORMAT", show_default=False)
    ] = None,
) -> None:
    """Write the table of a tabular agent for people and other programs. `evaluate` and `play` read .json and .npz."""
    from distrl.export import FORMATS
    from distrl.export import export as write

    if format not in FORMATS:
        raise UserError(f"--format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    policy, _, about = _model(run)
    where = output or (run if run.is_dir() else run.parent) / f"table.{format}"
    if output is not None and output.suffix != f".{format}":
        where = output.with_name(f"{output.name}.{format}")
    out.print(f"{write(policy, about, where)}")


@app.command()
def env(
    id: Annotated[str, typer.Argument(help="a gymnasium id, such as CartPole-v1")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keyword arguments of the env")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Explore an environment: spaces, limits, a random episode, speed, which algorithms fit, warnings."""
    import yaml

    from distrl.config import EnvSettings
    from distrl.explore import explore, render_exploration

    kwargs = {}
    for argument in arguments or []:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} must have the form key=value, such as use_lidar=false.")
        kwargs[key] = yaml.safe_load(text)
    render_exploration(explore(EnvSettings(id=id, kwargs=kwargs), seed))


@app.command()
def doctor() -> None:
    """Check the installation: versions, cores, GPU, Ray, MLflow."""
    from distrl.doctor import examine

    if not examine(out):
        raise typer.Exit(1)


@app.command()
def bench(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...")],
    seconds: Annotated[float, typer.Option(min=1, help="how long to simulate, and to train")] = 20,
    local: Annotated[bool, typer.Option("--local", help="train in one process, without Ray")] = False,
) -> None:
    """Measure training against pure simulation: env steps/s, seconds by phase, start-up, memory."""
    from distrl import benchmark
    from distrl.config import load_config

    benchmark.render(benchmark.run(load_config(arguments[0], arguments[1:]), seconds, local), out)


@app.command()
def verify(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...")],
) -> None:
    """Do the same run in one process, on Ray with 1 to 3 runners, and with processes killed; compare the weights."""
    from distrl.config import load_config
    from distrl.verify import verify as trials

    seen: set[str] = set()
    for verdict in trials(load_config(arguments[0], arguments[1:])):
        seen.add(verdict.weights_sha256)
        out.print(
            f"{verdict.weights_sha256}  {verdict.trial.name:<28} {verdict.restarts} restarts, {verdict.seconds:.1f} s",
            style=None if len(seen) == 1 else "bold red",
        )
    if len(seen) > 1:
        err.print("[bold red]The weights differ.[/]")
        raise typer.Exit(1)
    out.print("[green]The same weights, bit for bit.[/]")


def main() -> None:
    """Run the command line. User's mistakes exit with 2, what failed in training with 1."""
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")
    try:
        app(standalone_mode=True)
    except UserError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except (EnvError, Diverged) as error:
        err.print(f"[bold red]failed:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main()
