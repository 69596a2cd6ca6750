"""What all commands share: the application, its two consoles, common arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reinforcement learning with Ray: the same run, the same weights, on a laptop and on a cluster.",
)
# Texts are printed as they are: nothing that a user's name or path holds is markup or an emoji. Styles come in `Text`.
out = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
err = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)

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
