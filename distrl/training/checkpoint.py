"""Directories that appear whole or not at all, and run no code when they are read.

A *model* directory holds what acts: `policy.json` and `policy.safetensors`.
A *checkpoint* is a model directory with all else that a run needs to go on bit for bit: `learner.safetensors`,
`driver.npz`, `replay.npz` where there is a replay, `run.json`, and a `manifest.json` with the format, versions, config and the sha256 of every file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from distrl.errors import UserError
from distrl.files import write_directory
from distrl.models.store import (
    FORMAT,
    UNREADABLE,
    check_format,
    file_sha256,
    list_checkpoints,
    read_json,
    versions,
    write_model,
    write_tensors,
)
from distrl.types import Arrays, Policy, Snapshot


def write_checkpoint(
    path: Path,
    policy: Policy,
    about: Mapping[str, Any],
    learner: Arrays,
    driver: Arrays,
    run: Mapping[str, Any],
    config: str,
    replay: Arrays | None = None,
) -> None:
    """`driver`: shard snapshots and acting weights; `run`: counters and the like as JSON; `config`: the resolved config as YAML."""

    def write(directory: Path) -> None:
        write_model(directory, policy, about)
        write_tensors(directory / "learner.safetensors", learner)
        np.savez(directory / "driver.npz", **driver)  # type: ignore[arg-type]
        if replay:
            np.savez(directory / "replay.npz", **replay)  # type: ignore[arg-type]
        (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
        (directory / "config.yaml").write_text(config, encoding="utf-8")
        files = {file.name: file_sha256(file) for file in sorted(directory.iterdir())}
        manifest = {"format": FORMAT, "versions": versions(), "sha256": files}
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    write_directory(path, write)


def read_checkpoint(path: Path) -> tuple[Arrays, Arrays, dict[str, Any], str]:
    """`learner`, `driver`, `run` and `config` as they were written.

    Raises:
        UserError: a file is missing, was changed, or is of a newer format.
    """
    try:
        manifest = read_json(path / "manifest.json")
        check_format(path, manifest)
        for name, sha256 in manifest["sha256"].items():
            if file_sha256(path / name) != sha256:
                raise UserError(f"The checkpoint {path} is corrupt: {name} is not what was written. {_other(path)}")
        learner = load_file(path / "learner.safetensors")
        with np.load(path / "driver.npz", allow_pickle=False) as file:
            driver = {name: file[name] for name in file.files}
        run = read_json(path / "run.json")
        return learner, driver, run, (path / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"The checkpoint {path} has no {Path(error.filename).name}. {_other(path)}") from None
    except (*UNREADABLE, SafetensorError) as error:
        raise UserError(f"The checkpoint {path} is corrupt: {error}. {_other(path)}") from None


def read_replay(path: Path) -> Arrays:
    """The replay's state in a checkpoint that `read_checkpoint` found to be whole; {} where there is none."""
    if not (path / "replay.npz").exists():
        return {}
    with np.load(path / "replay.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _other(path: Path) -> str:
    others = [p for p in list_checkpoints(path.parent.parent) if p.name != path.name]
    return f"Resume from another one: --resume {others[-1]}." if others else "There is no other one in this run."


def _snapshot_arrays(prefix: str, snapshot: Snapshot | None) -> Arrays:
    if snapshot is None:
        return {}
    arrays = {"iteration": np.array(snapshot.iteration), "returns": snapshot.returns, "lengths": snapshot.lengths}
    arrays |= {f"env.{name}": array for name, array in snapshot.env.items()}
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _snapshot_from_arrays(prefix: str, arrays: Arrays) -> Snapshot | None:
    if f"{prefix}.iteration" not in arrays:
        return None
    env_prefix = f"{prefix}.env."
    return Snapshot(
        iteration=int(arrays[f"{prefix}.iteration"]),
        returns=arrays[f"{prefix}.returns"],
        lengths=arrays[f"{prefix}.lengths"],
        env={name.removeprefix(env_prefix): array for name, array in arrays.items() if name.startswith(env_prefix)},
    )
