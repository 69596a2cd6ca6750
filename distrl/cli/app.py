"""What all commands share: the application, its two consoles, common arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Texts are printed as they are: nothing that a user's name or path holds is markup or an emoji. Styles come in `Text`.
# What is read by a program is as wide as it needs to be: a row of a table is a line.
WIDE = 100_000


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else WIDE
    return Console(stderr=stream is sys.stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


out, err = _console(sys.stdout), _console(sys.stderr)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from distrl import __version__

        print(f"distrl {__version__}")
        raise typer.Exit


@app.callback()
def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="show the version and leave")
    ] = False,
) -> None:
    """Reinforcement learning with Ray: the same run, the same weights, on a laptop and on a cluster."""


Run = Annotated[Path, typer.Argument(help="a run directory, a checkpoint or a model directory")]
Sampled = Annotated[bool, typer.Option("--sampled", help="sample actions instead of taking the best")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the episodes")]
EnvModules = Annotated[
    list[str] | None,
    typer.Option(
        "--env-module",
        metavar="NAME",
        help="a module that the model names and that may be imported, which runs its code, though it lies outside of this "
        "directory; may be repeated",
        show_default=False,
    ),
]
