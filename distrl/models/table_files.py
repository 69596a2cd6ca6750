"""A table of action values as a file that people and other programs read, and back.

    .csv    one line a state: what is seen of it, the value of each action, the best action
    .json   the same, with all that is needed to act by it again
    .npz    arrays, without pickle, and the same description as JSON text

States of `bins` are shown by the lower edges of their bins, rows of `tiles` by their numbers.
"""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from distrl.acting.codings import Bins, Product
from distrl.acting.policies import from_description
from distrl.acting.tables import TablePolicy, masked
from distrl.errors import reading
from distrl.files import draft
from distrl.json_format import json_text
from distrl.types import Array, Policy

KIND = "distrl table"


def export(policy: Policy, about: dict[str, Any], out: Path) -> list[str]:
    """Write a table in the format of the suffix. Raises `UserError` where `out` cannot be written."""
    assert isinstance(policy, TablePolicy)
    with draft(out) as path:
        {".csv": _write_csv, ".npz": _write_npz, ".json": _write_json}[out.suffix](policy, about, path)
    return []


def read_export(path: Path) -> tuple[TablePolicy, dict[str, Any]]:
    """The policy of an exported .json or .npz, and what is known about it. Raises `UserError` for any other file."""
    with reading(f"{path} is not a table that 'distrl export' wrote as .json or .npz"):
        if path.suffix == ".npz":
            if not zipfile.is_zipfile(path):  # NumPy would take it for a pickle, and advise the user to load it
                raise ValueError("it is no archive of arrays")
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(str(file["about"]))
                arrays = {name: file[name] for name in file.files if name not in ("about", "states")}
        else:
            head = json.loads(path.read_text(encoding="utf-8"))
            table = [state["values"] for state in head.pop("states")]
            arrays = {"table": np.array(table, np.float64), "epsilon": np.array([head.pop("epsilon")])}
            if "keys" in head:
                arrays["keys"] = np.array(head.pop("keys"), np.float64)
        if head.pop("kind") != KIND:
            raise ValueError("it is of another kind")
        policy = from_description(head.pop("policy"))
        shapes = policy.shapes()
        if not isinstance(policy, TablePolicy) or {n: a.shape for n, a in arrays.items()} != shapes:
            raise ValueError("its arrays do not have the shapes that it names")
        vector = np.concatenate([arrays[name].ravel() for name in shapes]).astype(np.float64)
        if not np.isfinite(vector).all():
            raise ValueError("a value is not finite")
        policy.load(vector)
    return policy, head


def states(policy: TablePolicy) -> Array:
    """What is known of the state of each row, [rows, ...]; -1 for the last row of a hash, which all unknown states share."""
    coding = policy.coding
    number = np.arange(coding.size)
    if policy.capacity is not None:
        keys = policy.arrays()["keys"]
        number = np.append(keys, -1).astype(np.int64)
    if isinstance(coding, Product | Bins):
        digits = np.stack(np.unravel_index(np.maximum(number, 0), coding.n), axis=1)
        if isinstance(coding, Product):
            seen = digits + np.array(coding.start)
        else:
            low, high = np.array(coding.low), np.array(coding.high)
            seen = low + digits * (high - low) / np.array(coding.n)
        return np.where(number[:, None] < 0, -1, seen)
    return np.where(number < 0, -1, number + getattr(coding, "start", 0))


def _write_csv(policy: TablePolicy, about: dict[str, Any], path: Path) -> None:
    seen, table = states(policy), policy.table
    best = masked(table, policy.allowed)
    names = ["state"] if seen.ndim == 1 else [f"input {name}" for name in _names(policy, seen.shape[1])]
    actions = range(policy.first_action, policy.first_action + policy.actions)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *(f"q{a}" for a in actions), "best"])
        for row, values, action in zip(seen.tolist(), table.tolist(), best.argmax(axis=1).tolist(), strict=True):
            writer.writerow([*(row if isinstance(row, list) else [row]), *values, policy.first_action + action])


def _names(policy: TablePolicy, count: int) -> list[str]:
    return list(getattr(policy.coding, "inputs", ())) or list(map(str, range(count)))


def _head(policy: TablePolicy, about: dict[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in about.items() if name != "sha256"}  # of another file
    return {"kind": KIND, **known, "policy": policy.describe()}


def _write_json(policy: TablePolicy, about: dict[str, Any], path: Path) -> None:
    rows = [
        {"state": state, "values": values}
        for state, values in zip(states(policy).tolist(), policy.table.tolist(), strict=True)
    ]
    data: dict[str, Any] = _head(policy, about) | {"epsilon": policy.epsilon}
    if policy.capacity is not None:
        data["keys"] = policy.arrays()["keys"].astype(np.int64).tolist()
    lines = ",\n".join(json_text(row) for row in rows)
    path.write_text(json_text(data)[:-1] + ',\n"states": [\n' + lines + "\n]}\n", encoding="utf-8")


def _write_npz(policy: TablePolicy, about: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        arrays: dict[str, Any] = dict(policy.arrays())
        np.savez_compressed(file, about=np.array(json_text(_head(policy, about))), states=states(policy), **arrays)
