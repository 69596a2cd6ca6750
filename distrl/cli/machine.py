"""Commands that look at an environment, the machine, speed and the promise: env, doctor, bench, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distrl.cli.app import Seed, app, err, out
from distrl.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from distrl.tools.benchmark import Benchmark
    from distrl.tools.explore import Exploration
    from distrl.types import EnvInfo


@app.command()
def env(
    id: Annotated[str, typer.Argument(help="such as CartPole-v1, or mpe2/simple_spread_v3 of PettingZoo")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keyword arguments of the env")
    ] = None,
    wrapper: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="around it, the innermost first; with arguments: '{name: ..., kwargs: {...}}'"
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="instead: random steps in a window, or a video where there is no display")
    ] = False,
    episodes: Annotated[int, typer.Option(min=1, help="with --watch")] = 1,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="with --watch: a video instead of a window; .webm, .mp4 or .gif")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Explore an environment: spaces, limits, a random episode, speed, which algorithms fit, warnings."""
    from distrl.config import env_settings

    settings = env_settings(id, arguments or [], wrapper or [])
    if watch:
        from distrl.tools.watch import watch as play

        recording = play(settings, seed, episodes, output, out.print)
        if recording is not None:
            out.print(f"{recording.path}: {recording.frames} frames")
            if recording.warning is not None:
                err.print(f"warning: {recording.warning}")
        return
    if output is not None or episodes != 1:
        raise UserError("--out and --episodes are of --watch. Add it, or leave them out.")
    from distrl.tools.explore import explore

    render_exploration(explore(settings, seed))


@app.command()
def doctor() -> None:
    """Check the installation: versions, cores, GPU, Ray, MLflow."""
    from distrl.tools.doctor import examine

    if not examine(out):
        raise typer.Exit(1)


@app.command()
def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="how long to simulate, and to train")] = 20,
    local: Annotated[bool, typer.Option("--local", help="train in one process, without Ray")] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="sb3|rllib", help="instead: against Stable-Baselines3 or RLlib; without CONFIG, some tasks"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="with --against: turns of each")] = 3,
) -> None:
    """Measure training against pure simulation: env steps/s, seconds by phase, start-up, memory."""
    from distrl.config import load_config
    from distrl.tools import benchmark

    if against is not None:
        _bench_against(against, arguments, seconds, rounds, local)
        return
    if not arguments:
        raise UserError("Which config? Give a file or a preset, such as ppo_cartpole ('distrl presets' lists them).")
    render_benchmark(benchmark.run(load_config(arguments[0], arguments[1:]), seconds, local))


def _bench_against(name: str, arguments: list[str] | None, seconds: float, rounds: int, local: bool) -> None:
    """Print a line for each task: env steps/s of both, median and all of the ratios."""
    import numpy as np

    from distrl.config import load_config
    from distrl.tools.against import PEERS, compare, only_ours, tasks

    if name not in PEERS:
        raise UserError(f"--against {name!r} is not known; it takes {' or '.join(PEERS)}.")
    chosen = tasks(name) if not arguments else [(arguments[0], tuple(arguments[1:]))]
    for found in compare(name, [load_config(*task) for task in chosen], seconds, rounds, local):
        ratios, config = found.ratios, found.config
        stolen = "an unknown share" if found.stolen is None else f"{found.stolen:.1%}"
        out.print(
            f"{config.algorithm.name} on {config.env.id}: distrl {np.median(found.ours):,.0f} env steps/s, {PEERS[name].title} "
            f"{np.median(found.theirs):,.0f}: {np.median(ratios):.1f} times ({ratios[0]:.1f} to {ratios[-1]:.1f} in {rounds} turns; "
            f"{stolen} of the processors stolen, load {found.load:.1f} before)",
            soft_wrap=True,
        )
        if alone := only_ours(PEERS[name], config):
            out.print(f"  {PEERS[name].title} trains without {', '.join(alone)}", soft_wrap=True)


@app.command()
def verify(
    arguments: Annotated[list[str], typer.Argument(metavar="CONFIG [KEY=VALUE]...")],
) -> None:
    """Do the same run in one process, on Ray with 1 to 3 runners, and with processes killed; compare the weights."""
    from distrl.config import load_config
    from distrl.tools.verify import verify as trials

    seen: set[str] = set()
    for verdict in trials(load_config(arguments[0], arguments[1:])):
        seen.add(verdict.weights_sha256)
        out.print(
            f"{verdict.weights_sha256}  {verdict.trial.name:<28} {verdict.restarts} restarts, {verdict.seconds:.1f} s",
            style=None if len(seen) == 1 else "bold red",
        )
    if len(seen) > 1:
        err.print("The weights differ.", style="bold red")
        raise typer.Exit(1)
    out.print("The same weights, bit for bit.", style="green")


def render_exploration(exploration: Exploration, console: Console = out) -> None:
    """Print it as a table, and the warnings below."""
    import numpy as np
    from rich.table import Table
    from rich.text import Text

    from distrl.layouts import space_text
    from distrl.tools.explore import SHARD_COPIES

    e, info = exploration, exploration.info
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title=Text(info.id, style="bold"), title_justify="left"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: object, style: str = "") -> None:
        table.add_row(name, Text(str(value), style))

    if info.agents:
        _tell_agents(row, info)
    else:
        row("observations", space_text(info.observation_space))
        row("actions", space_text(info.action_space))
    row("time limit", "none" if info.max_episode_steps is None else f"{info.max_episode_steps:,} steps")
    row("reward threshold", "none" if info.reward_threshold is None else f"{info.reward_threshold:g}")
    row("render modes", ", ".join(info.render_modes) or "none")
    forms = {"its transition table": e.table, "its own (native)": e.native, "distrl's, in arrays": e.arrays}
    row("vector form", next((form for form, has in forms.items() if has), "copies stepped one by one"))
    steps = "joint steps" if info.agents else "env steps"
    if not info.agents:
        row("info keys", ", ".join(e.info_keys) or "none")
    low, high = e.reward_range
    of = " of an agent" if info.agents else ""
    row("rewards", f"{low:.3g} to {high:.3g} a step{of}" if low < high else f"always {low:.3g}")
    if e.returns:
        count = f"mean of {len(e.returns)} episodes" if len(e.returns) > 1 else "one episode"
        played = f"return {np.mean(e.returns):.4g}, length {np.mean(e.lengths):,.0f} steps ({count})"
    else:
        played = "no episode ended"
    row("random play", f"{played}, all agents together" if info.agents and e.returns else played)
    for name, returns in e.agents.items():
        row(f"of {name}", f"return {np.mean(returns):.4g}")
    row("speed, one copy", f"{e.single_steps_per_s:,.0f} {steps}/s")
    if e.shard_steps_per_s is not None:
        row(f"speed, shard of {SHARD_COPIES}", f"{e.shard_steps_per_s:,.0f} {steps}/s in one process")
    for name, misfit in e.algorithms.items():
        row(name, "fits" if misfit is None else f"does not fit: {misfit}", "green" if misfit is None else "yellow")
    console.print(table, soft_wrap=False)
    for warning in e.warnings:
        console.print(Text.assemble(("warning ", "bold yellow"), warning))
    if not e.warnings:
        console.print(Text("no warnings", "green"))


def _tell_agents(row: Callable[[str, object], None], info: EnvInfo) -> None:
    """Rows about several agents: who they are, and what each sees and does."""
    from distrl.layouts import space_text

    names = list(info.agents)
    row("agents", f"{len(names)}, {'one after the other' if info.turns else 'at once'}: {', '.join(names)}")
    for number, what in enumerate(("observations", "actions")):
        spaces = {name: space_text(of_agent[number]) for name, of_agent in info.agents.items()}
        for text in dict.fromkeys(spaces.values()):
            whose = [name for name, other in spaces.items() if other == text]
            row(what, text if len(whose) == len(names) else f"{', '.join(whose)}: {text}")
    row(
        "policies",
        "per_agent, or groups of those that are alike" if info.groups else "shared, per_agent, or groups",
    )
    if info.mask_in_info:
        row("action mask", "in the info")
    row("state of all", "none" if info.state_space is None else f"{space_text(info.state_space)}, for a central critic")


def render_benchmark(benchmark: Benchmark) -> None:
    """Print it as a table."""
    from rich.table import Table

    from distrl.tools.benchmark import BATCH
    from distrl.training.progress import PHASES

    result, config = benchmark.result, benchmark.config
    before, after = benchmark.simulation
    table = Table(
        title=f"{config.algorithm.name} on {config.env.id}, {benchmark.cores} cores",
        title_justify="left",
        show_header=False,
    )
    table.add_row(
        "training", f"{benchmark.env_steps_per_s:,.0f} env steps/s since its first update ended, learner included"
    )
    table.add_row("pure simulation", f"{before:,.0f} before, {after:,.0f} env steps/s after")
    table.add_row("ratio", f"{benchmark.ratio:.0%}")
    table.add_row("start-up", f"{result['startup_s']:.1f} s from the start of Python to the first training step")
    seconds = result["seconds"]
    for phase, about in PHASES.items():
        table.add_row(phase, f"{seconds.get(phase, 0.0):.2f} s, {about}")
    table.add_row("wait", f"{benchmark.waiting:.0%} of the time since its first update, the learner waiting")
    table.add_row("driver", f"{1e3 * benchmark.driver_s / config.rollout.shards:.2f} ms of its own a fragment")
    if benchmark.replay is not None:
        alone, updates = benchmark.replay, benchmark.updates_per_s
        table.add_row(
            "updates",
            f"{updates:,.1f}/s, {updates / alone.updates_per_s:.0%} of the network's own {alone.updates_per_s:,.1f}/s alone",
        )
        table.add_row("replay", f"{alone.adds_per_s:,.0f} adds/s, {BATCH / alone.batch_ms * 1e3:,.0f} samples/s")
        table.add_row(
            "batch",
            f"{alone.batch_ms:.2f} ms to draw {BATCH} by priority, {alone.priorities_ms:.2f} ms to give them new ones",
        )
    peaks = ", ".join(
        f"{name} {size:,.0f}" for name, size in sorted(benchmark.memory.items(), key=lambda item: -item[1])
    )
    table.add_row("peak memory", f"{benchmark.peak_memory:,.0f} MB in all ({peaks})")
    out.print(table)
