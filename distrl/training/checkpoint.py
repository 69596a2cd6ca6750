"""All that a run is between two iterations: one value, written to a directory and read back.

A *checkpoint* is a model directory (see distrl.models.store) with all else that a run needs to go on bit for bit:
`learner.safetensors`, `driver.npz`, `replay.npz` where there is a replay, `run.json`, `config.yaml`, and a `manifest.json`
with the format, versions and the sha256 of every file. It appears whole or not at all, and runs no code when it is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from distrl.acting.network import flatten
from distrl.acting.opponents import apart
from distrl.errors import UserError, reading
from distrl.files import open_arrays, write_directory
from distrl.json_format import json_text
from distrl.models.store import (
    check_format,
    file_sha256,
    list_checkpoints,
    read_json,
    read_model,
    versions,
    write_model,
    write_tensors,
)
from distrl.training.progress import Progress
from distrl.types import Array, Arrays, Batch, Fragment, Policy, Snapshot, Weights

FORMAT = 3
NEEDED = ("config.yaml", "driver.npz", "learner.safetensors", "policy.json", "policy.safetensors", "run.json")
Tree = Mapping[str, "Array | Tree"]  # arrays in named groups


@dataclass(frozen=True)
class Owed:
    """An update that was left, or not begun: what is learnt from, and the row that its metrics complete."""

    row: dict[str, float]
    inputs: list[Any]  # fragments, or batches of replays


@dataclass
class RunState:
    """All that a run is between two iterations. Can be written, handed to another execution, resumed."""

    progress: Progress
    weights: dict[int, Array]  # by version: the newest, what acts in the next fragments, what is being evaluated
    snapshots: dict[int, Snapshot | None]  # by shard, before its next fragment; None: its beginning
    learner: Arrays = field(default_factory=dict)  # empty: the beginning
    replay: dict[str, Arrays] = field(default_factory=dict)  # by replay; empty: none, or not kept
    best: Weights | None = None
    owed: list[Owed] = field(default_factory=list)  # updates that it has still to make, the oldest first

    @property
    def version(self) -> int:
        """Of the newest weights."""
        return self.progress.iteration - len(self.owed)

    @classmethod
    def beginning(cls, weights: Array, shards: int) -> RunState:
        return cls(Progress(), {0: weights}, dict.fromkeys(range(shards)))


def write_checkpoint(path: Path, state: RunState, policy: Policy, about: Mapping[str, Any], config: str) -> None:
    """`policy`: any of its kind; `about`: JSON of the env and the algorithm; `config`: the resolved one as YAML."""
    k = state.version
    driver: dict[str, Any] = {
        "weights": {str(version): vector for version, vector in state.weights.items() if version != k},
        "shard": {str(shard): _of_snapshot(s) for shard, s in state.snapshots.items() if s is not None},
    }
    _, _, behind = apart(policy, state.weights[k])
    if len(behind):
        driver["opponents"] = {"weights": behind}
    if state.best is not None:
        driver["best"] = {"version": np.array(state.best.version), "vector": state.best.vector}

    def write(directory: Path) -> None:
        counted = {"version": k, "env_steps": state.progress.env_steps * k // max(1, state.progress.iteration)}
        write_model(directory, policy, state.weights[k], {**about, **counted})
        write_tensors(directory / "learner.safetensors", state.learner)
        _write_arrays(directory / "driver.npz", driver)
        if state.owed:
            _write_arrays(directory / "owed.npz", {str(i): _of_owed(owed) for i, owed in enumerate(state.owed)})
        if state.replay:
            _write_arrays(directory / "replay.npz", state.replay)
        (directory / "run.json").write_text(json_text(state.progress.to_json()), encoding="utf-8")
        _seal(directory, config)

    write_directory(path, write)


def adopt_checkpoint(source: Path, path: Path, config: str) -> None:
    """Write the state in `source` as that of a run with another config (as YAML), which goes on from there.

    Raises:
        UserError: `source` is not whole
    """
    with _explained(source):
        _verify(source)

    def write(directory: Path) -> None:
        shutil.copytree(source, directory, dirs_exist_ok=True)
        (directory / "manifest.json").unlink()
        _seal(directory, config)

    write_directory(path, write)


def _seal(directory: Path, config: str) -> None:
    (directory / "config.yaml").write_text(config, encoding="utf-8")
    files = {file.name: file_sha256(file) for file in sorted(directory.iterdir())}
    manifest = {"format": FORMAT, "versions": versions(), "sha256": files}
    (directory / "manifest.json").write_text(json_text(manifest, indent=1), encoding="utf-8")


def read_checkpoint(path: Path, shards: int) -> RunState:
    """The state as it was written.

    Raises:
        UserError: a file is missing, was changed, or is of a newer format.
    """
    with _explained(path):
        _verify(path)
        policy, _ = read_model(path)
        driver: Any = _read_arrays(path / "driver.npz")
        try:
            progress = Progress.from_json(read_json(path / "run.json"))
        except UserError as error:  # which knows not where it lies
            raise ValueError(f"run.json: {error}") from error
        weights = {int(version): vector for version, vector in driver.get("weights", {}).items()}
        best, own = driver.get("best"), flatten(policy.arrays(), policy.shapes())
        behind = driver.get("opponents", {}).get("weights", own[:0])
        owed: Any = _read_arrays(path / "owed.npz") if (path / "owed.npz").exists() else {}
        found = driver.get("shard", {})
        return RunState(
            progress,
            weights | {progress.iteration - len(owed): np.concatenate([own, behind])},
            {shard: _to_snapshot(found[str(shard)]) if str(shard) in found else None for shard in range(shards)},
            load_file(path / "learner.safetensors"),
            _read_arrays(path / "replay.npz") if (path / "replay.npz").exists() else {},
            None if best is None else Weights(int(best["version"]), best["vector"]),
            [_to_owed(owed[str(i)]) for i in range(len(owed))],
        )


def read_checkpoint_config(path: Path) -> str:
    """The config of a whole checkpoint, as YAML. Raises `UserError` as `read_checkpoint` does."""
    with _explained(path):
        _verify(path)
        return (path / "config.yaml").read_text(encoding="utf-8")


def _explained(path: Path) -> AbstractContextManager[None]:
    """What cannot be read is told with the checkpoint to take instead."""
    return reading(f"The checkpoint {path} is corrupt", f"The checkpoint {path} has no {{name}}.", f" {_other(path)}")


def _verify(path: Path) -> None:
    """Every file is what the manifest says. Raises ValueError or OSError."""
    manifest = read_json(path / "manifest.json")
    check_format(path, manifest, FORMAT)
    listed = manifest["sha256"]
    if not isinstance(listed, dict):
        raise ValueError("manifest.json lists no files")
    for name in sorted({file.name for file in path.iterdir()} - listed.keys() - {"manifest.json"}):
        raise ValueError(f"{name} is not listed in manifest.json")
    for name in (n for n in NEEDED if n not in listed):
        raise ValueError(f"manifest.json lists no {name}")
    for name, sha256 in listed.items():
        if Path(name).name != name:
            raise ValueError(f"manifest.json lists {name!r}, which is no name of a file")
        if file_sha256(path / name) != sha256:
            raise ValueError(f"{name} is not what was written")


def _other(path: Path) -> str:
    try:
        others = [p for p in list_checkpoints(path.parent.parent) if p.name != path.name]
    except UserError:  # what is told is why this one cannot be read
        others = []
    return f"Resume from another one: --resume {others[-1]}." if others else "There is no other one in this run."


def _of_snapshot(snapshot: Snapshot) -> Tree:
    counters = {"iteration": np.array(snapshot.iteration), "returns": snapshot.returns, "lengths": snapshot.lengths}
    memory = {} if snapshot.memory is None else {"memory": snapshot.memory}
    return {**counters, **memory, "env": snapshot.env}


def _to_snapshot(tree: Any) -> Snapshot:
    return Snapshot(int(tree["iteration"]), tree["returns"], tree["lengths"], tree["env"], tree.get("memory"))


def _of_owed(owed: Owed) -> Tree:
    inputs = {str(i): _of_input(given) for i, given in enumerate(owed.inputs)}
    return {"names": np.array(list(owed.row)), "values": np.array(list(owed.row.values())), "inputs": inputs}


def _of_input(given: Fragment | Batch) -> Tree:
    named = {f.name: getattr(given, f.name) for f in fields(given)}
    return {name: v if isinstance(v, dict) else np.asarray(v) for name, v in named.items() if v is not None}


def _to_owed(tree: Any) -> Owed:
    row = dict(zip(map(str, tree["names"]), map(float, tree["values"]), strict=True))
    return Owed(row, [_to_input(tree["inputs"][str(i)]) for i in range(len(tree["inputs"]))])


def _to_input(tree: Any) -> Any:
    named: dict[str, Any] = {
        name: int(v) if isinstance(v, np.ndarray) and v.ndim == 0 else v for name, v in tree.items()
    }
    return Batch(**named) if "key" in named else Fragment(**{"extras": {}, **named})


def _write_arrays(path: Path, tree: Tree) -> None:
    """A tree of arrays as an npz, the names of groups before those of what is in them."""
    flat: Arrays = {}

    def put(tree: Tree, prefix: str) -> None:
        for name, below in tree.items():
            if isinstance(below, np.ndarray):
                flat[prefix + name] = below
            else:
                put(below, f"{prefix}{name}/")

    put(tree, "")
    np.savez(path, **flat)  # type: ignore[arg-type]


def _read_arrays(path: Path) -> Any:
    tree: dict[str, Any] = {}
    with open_arrays(path) as file:
        for flat in file.files:
            *groups, name = flat.split("/")
            below = tree
            for group in groups:
                below = below.setdefault(group, {})
            below[name] = file[flat]
    return tree
