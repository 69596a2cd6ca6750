"""Runs on a cluster of machines: submit, jobs, logs, stop, fetch; and what is wrong with one: cluster check."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from distrl.cli.app import app, err, out
from distrl.errors import UserError

if TYPE_CHECKING:
    from distrl.execution.jobs import Cluster, Job

Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="of the cluster's dashboard; 'ray dashboard FILE' opens http://127.0.0.1:8265",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="as submit printed it; 'distrl jobs' lists them")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="where the results go; default: runs/JOB")]


@app.command()
def submit(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", show_default=False)
    ] = None,
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="leave when it is submitted")] = False,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="a directory with modules of your own, which all machines get; Ray reads its .rayignore"
        ),
    ] = None,
    out_dir: Out = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="instead of a config: go on with a job's run, a run directory on the head, or a run in a store",
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="for CPUs and GPUs that are not free; default: 900", show_default=False
        ),
    ] = None,
    any_versions: Annotated[
        bool, typer.Option("--any-versions", help="though the cluster has other versions: other weights may come out")
    ] = False,
) -> None:
    """Train on a cluster: send what is needed, follow, fetch the results. The first line is the job's id."""
    from distrl.execution.jobs import refuse_taken
    from distrl.runs.jobs import PACKAGE, order_resumption, order_run

    words = list(arguments or [])
    source = words.pop(0) if words and "=" not in words[0] else None
    if (source is None) == (resume is None):
        raise UserError("Which run? Give a config or a preset, or --resume RUN; not both.")
    if source is not None:
        job, order = order_run(source, words, working_dir, any_versions)
    else:
        assert resume is not None
        job, order = order_resumption(resume, words, any_versions)
    order = order if wait is None else replace(order, wait_s=wait)
    place = out_dir or Path("runs") / job
    refuse_taken(place)
    cluster = _cluster(address)
    there = order.versions.get("ray", cluster.ray_version)
    if there != cluster.ray_version:
        raise UserError(
            f"The cluster at {cluster.address} has Ray {cluster.ray_version}, and here is {there}. Install there what "
            "scripts/constraints.txt names, or add --any-versions."
        )
    cluster.submit(job, order, PACKAGE, working_dir)
    print(job, flush=True)
    if detach:
        err.print(f"Look at it with 'distrl logs {job}', and get its results with 'distrl fetch {job}'.")
        return
    _follow(cluster, job, place)


@app.command()
def jobs(address: Address = None) -> None:
    """List the runs that were submitted to a cluster."""
    rows = [("job", "status", "started", "minutes", "run")]
    for job in _cluster(address).jobs():
        rows.append((job.id, _status(job), *_times(job), job.about.get("what", "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        out.print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until it is over; exits as the run did")] = False,
) -> None:
    """Show what a job said."""
    cluster = _cluster(address)
    if not follow:
        print(cluster.log(job), end="")
        return
    raise typer.Exit(cluster.follow(job, _write, _warn).code)


@app.command()
def stop(job: JobId, address: Address = None) -> None:
    """End a job, with a checkpoint."""
    cluster = _cluster(address)
    cluster.stop(job)
    err.print(f"{job} ends with a checkpoint. Go on with 'distrl submit --resume {job}'.")


@app.command()
def fetch(job: JobId, address: Address = None, out_dir: Out = None) -> None:
    """Get the run directory of a job, with its newest checkpoint, also while it runs."""
    place = out_dir or Path("runs") / job
    _cluster(address).fetch(job, place, _warn)
    out.print(f"{place}:  distrl play {place}    distrl evaluate {place}    distrl plot {place}")


checks = typer.Typer(no_args_is_help=True, help="Look at a cluster: a file for 'ray up', or one that is up.")
app.add_typer(checks, name="cluster")


@checks.callback()
def cluster() -> None:
    """Look at a cluster: a file for 'ray up', or one that is up."""


@checks.command()
def check(
    target: Annotated[str, typer.Argument(metavar="FILE|ADDRESS", help="as 'ray up' reads it, or of a dashboard")],
    setup: Annotated[
        bool, typer.Option(help="run a file's setup commands here, in a home directory of their own: minutes")
    ] = True,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="have all machines of a cluster that is up write and read there", show_default=False
        ),
    ] = None,
) -> None:
    """Find out what would fail before it costs money; of a cluster that is up, what it is and what it allows."""
    if "://" in target or (":" in target and not Path(target).exists()):
        from distrl.runs.clusters import check_up

        findings = check_up(_cluster(target), _warn, storage)
    elif storage is not None:
        raise UserError("--storage is for a cluster that is up: give its address, such as http://127.0.0.1:8265.")
    else:
        from distrl.execution.cluster_files import check_file

        findings = check_file(Path(target), _note if setup else None)
    healthy = True
    for finding in findings:
        healthy = healthy and finding.wrong is None
        sign = ("ok    ", "green") if finding.wrong is None else ("wrong ", "bold red")
        out.print(Text.assemble(sign, f"{finding.what}: {finding.found if finding.wrong is None else finding.wrong}"))
    if not healthy:
        raise typer.Exit(1)


def _follow(cluster: Cluster, job: str, place: Path) -> None:
    """Until it is over; then get its results, and leave as the run did."""
    try:
        ended = cluster.follow(job, _write, _warn)
    except KeyboardInterrupt:
        err.print(f"{job} goes on: 'distrl logs -f {job}' follows, 'distrl stop {job}' ends it.")
        raise
    if ended.exit_code is None and ended.status == "FAILED":
        _warn(f"the job failed before or beside its run: {' '.join(ended.message.split())[-1000:]}")
    try:
        cluster.fetch(job, place, _warn)
        err.print(f"Fetched to {place}")
    except UserError as error:
        if ended.code == 0:
            raise
        if ended.code != 2:  # a run that was refused left nothing
            _warn(str(error))
    raise typer.Exit(ended.code)


def _cluster(address: str | None) -> Cluster:
    from distrl.execution.jobs import Cluster

    if address is None:
        raise UserError(
            "Which cluster? Give --address URL, of its dashboard, or set RAY_API_SERVER_ADDRESS; 'ray dashboard FILE' opens "
            "http://127.0.0.1:8265."
        )
    return Cluster(address)


def _status(job: Job) -> str:
    return job.status if job.exit_code in (None, 0) else f"{job.status} ({job.exit_code})"


def _times(job: Job) -> tuple[str, str]:
    if job.started is None:
        return "", ""
    minutes = ((job.ended or time.time()) - job.started) / 60
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)), f"{minutes:.1f}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(message: str) -> None:
    err.print(Text(f"trying {message}"))


def _warn(message: str) -> None:
    err.print(Text.assemble(("warning: ", "yellow"), message))
