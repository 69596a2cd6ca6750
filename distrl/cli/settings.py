"""`distrl config`: every setting, with its default, what it takes and what it means."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from distrl.cli.app import app, out
from distrl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from distrl.schema import Setting


@app.command()
def config(
    algorithm: Annotated[str | None, typer.Argument(metavar="[ALGO]", help="default: all", show_default=False)] = None,
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="one setting, or a part of them", show_default=False)
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="a JSON schema of a whole config, for editors")] = False,
) -> None:
    """Show every setting, e.g. `distrl config ppo`, `distrl config ppo algorithm.lr`, `distrl config rollout`."""
    from distrl.aliases import elsewhere
    from distrl.registry import ALGORITHMS
    from distrl.schema import json_schema, settings

    if algorithm is not None and key is None and _is_key(algorithm):
        algorithm, key = None, algorithm
    if schema:
        if key is not None:
            raise UserError(f"--schema is of a whole config. Leave {key!r} out.")
        print(json.dumps(json_schema(algorithm), indent=1))
        return
    names = list(ALGORITHMS.names()) if algorithm is None else [algorithm]
    found = {name: settings(name) for name in names}
    if key is not None:
        found = {name: [s for s in rows if s.key == key or s.key.startswith(f"{key}.")] for name, rows in found.items()}
        if not any(found.values()):
            known = dict.fromkeys(s.key for name in names for s in settings(name))
            whose = "No algorithm" if algorithm is None else algorithm
            hint = elsewhere(key.rpartition(".")[2], algorithm or "none", known) or did_you_mean(key, known)
            raise UserError(f"{whose} has no setting {key!r}.{hint} 'distrl config' shows all.")
    if algorithm is not None:
        _show(f"algorithm.name={algorithm}", found[algorithm], key)
        return
    own = {name: [s for s in rows if s.key.partition(".")[0] == "algorithm"] for name, rows in found.items()}
    name, rows = next(iter(found.items()))
    _show("whatever the algorithm", [s for s in rows if s not in own[name]], key)
    for name, rows in own.items():
        _show(f"algorithm.name={name}", rows, key)


def _is_key(word: str) -> bool:
    """Whether it is a place in a config rather than an algorithm."""
    from distrl.settings import Config

    return word.partition(".")[0] in Config.model_fields


def _show(title: str, settings: Iterable[Setting], asked: str | None) -> None:
    """As a table; what stands inside of something that is mostly given whole only where that was `asked` for."""
    from rich.table import Table

    table = Table("setting", "default", "takes", "meaning", title=title, title_justify="left", box=None, pad_edge=False)
    shown = [s for s in settings if s.key == asked or (not s.section and (asked is not None or not s.inside))]
    for s in shown:
        table.add_row(s.key, s.default, s.rule, s.meaning)
    if shown:
        out.print(table, soft_wrap=False)
