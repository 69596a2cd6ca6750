"""Trained policies in the formats of others: which formats there are, and which of them fit a policy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrl.acting.normalise import without
from distrl.acting.recurrent import RecurrentPolicy
from distrl.acting.tables import TablePolicy
from distrl.errors import UserError, did_you_mean
from distrl.models.evaluate import load_to_play, one_of
from distrl.types import Policy

# Of a policy, what is known of it, a place, and, of a member of a team, the team: returns lines on how what was written fared.
Write = Callable[..., list[str]]


@dataclass(frozen=True)
class Format:
    place: str  # module:function of the `Write`, imported when it is asked for
    name: str  # of the file, where none is given; its suffix is that of the format
    tables: bool = True  # whether it fits them
    networks: bool = True
    remembering: bool = False

    def fits(self, policy: Policy) -> bool:
        if isinstance(policy, RecurrentPolicy):
            return self.remembering
        return self.tables if isinstance(policy, TablePolicy) else self.networks


TABLES, FILES = "distrl.models.table_files:export", "distrl.models.export"
FORMATS = {  # the first that fits is the default
    "csv": Format(TABLES, "table.csv", networks=False),
    "json": Format(TABLES, "table.json", networks=False),
    "npz": Format(TABLES, "table.npz", networks=False),
    "onnx": Format(f"{FILES}:write_onnx", "policy.onnx", tables=False, remembering=True),
    "torchscript": Format(f"{FILES}:write_torchscript", "policy.pt", tables=False, remembering=True),
    "safetensors": Format(f"{FILES}:write_safetensors", "exported.safetensors", remembering=True),
    "mlflow": Format("distrl.tracking.mlflow_files:write", "mlflow_model"),
}


def export(
    run: Path, format: str | None, out: Path | None, modules: Sequence[str] = (), agent: str | None = None
) -> tuple[Path, list[str]]:
    """Write the policy of a run, a checkpoint, a model or a file.

    Args:
        format: one of `FORMATS`; None: the first that fits
        out: None: beside the model, by the name of the format; else its suffix is added where it lacks
        modules: see `distrl.models.evaluate.load_to_play`
        agent: of several policies: whose one is meant
    Returns:
        what was written, and lines on how it fared against the policy
    Raises:
        UserError: there is no such format, it does not fit the policy, or what was written does something else
    """
    if format is not None and format not in FORMATS:
        raise UserError(
            f"--format is {format!r}; it must be one of {', '.join(FORMATS)}.{did_you_mean(format, FORMATS)}"
        )
    whole, _, about = load_to_play(run, modules)
    policy, about, team = one_of(whole, about, run, agent)
    inner = without(policy)
    fitting = [name for name, known in FORMATS.items() if known.fits(inner)]
    chosen = format or fitting[0]
    if chosen not in fitting:
        raise UserError(
            f"--format {chosen} does not fit a {inner.describe()['type']} policy. Take one of {', '.join(fitting)}."
        )
    where = _where(run, out, FORMATS[chosen].name, about.get("group"))
    if where.name == "policy.safetensors" and (where.parent / "policy.json").exists():
        raise UserError(
            f"{str(where)!r} holds the weights of a model, which would be lost. Leave --out out, or take another name."
        )
    module, _, function = FORMATS[chosen].place.partition(":")
    write: Write = getattr(importlib.import_module(module), function)
    return where, write(policy, about, where, *([] if team is None else [team]))


def _where(run: Path, out: Path | None, name: str, group: str | None) -> Path:
    if out is None:
        where = (run if run.is_dir() else run.parent) / name
        return where if group is None else where.with_stem(f"{where.stem}-{group}")
    suffix = Path(name).suffix
    return out if out.suffix == suffix else out.with_name(out.name + suffix)
