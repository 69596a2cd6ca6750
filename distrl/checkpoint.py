"""Directories that appear whole or not at all, and run no code when they are read. Floor 4.

A *model* directory holds what acts: `policy.json` and `policy.safetensors`.
A *checkpoint* is a model directory with all else that a run needs to go on bit for bit: `learner.safetensors`,
`driver.npz`, `replay.npz` where there is a replay, `run.json`, and a `manifest.json` with the format, versions, config and the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as tensor_bytes

from distrl.errors import UserError
from distrl.files import write_directory
from distrl.policy import flatten, from_description
from distrl.types import Arrays, Policy

FORMAT = 1
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
PACKAGES = ("distrl", "ray", "torch", "gymnasium", "numpy", "mlflow")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def weights_sha256(policy: Policy) -> str:
    """sha256 over the policy's arrays (little-endian bytes), in the order of their names."""
    digest = hashlib.sha256()
    for _, array in sorted(policy.arrays().items()):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def write_model(directory: Path, policy: Policy, about: Mapping[str, Any]) -> None:
    """`about`: JSON of the env, the algorithm and the training behind the policy."""
    _write_tensors(directory / "policy.safetensors", policy.arrays())
    sha256 = _sha256(directory / "policy.safetensors")
    text = json.dumps({"format": FORMAT, "sha256": sha256, "policy": policy.describe(), **about}, indent=1)
    (directory / "policy.json").write_text(text, encoding="utf-8")


def read_model(path: Path) -> tuple[Policy, dict[str, Any]]:
    """A policy with its weights, and what was written about it. Raises `UserError` where it is none."""
    try:
        about = _read_json(path / "policy.json")
        _check_format(path, about)
        if _sha256(path / "policy.safetensors") != about["sha256"]:
            raise ValueError("policy.safetensors is not what was written")
        policy = from_description(about["policy"])
        policy.load(flatten(load_file(path / "policy.safetensors"), policy.shapes()))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a model directory: it has no {Path(error.filename).name}.") from None
    except (*_UNREADABLE, SafetensorError) as error:
        raise UserError(f"The model in {path} is corrupt or not of distrl: {error}.") from None
    return policy, about


def find_model(path: str | Path) -> Path:
    """The model directory meant by a run (its best model, else its newest checkpoint), a checkpoint or a model."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no run or model at {str(path)!r}.")
    if (path / "policy.json").exists():
        return path
    if (path / "best" / "policy.json").exists():
        return path / "best"
    if (newest := newest_checkpoint(path)) is not None:
        return newest
    raise UserError(
        f"{path} holds no model yet: neither best/ nor a checkpoint. Train further with 'distrl train --resume {path}'."
    )


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
        _write_tensors(directory / "learner.safetensors", learner)
        np.savez(directory / "driver.npz", **driver)  # type: ignore[arg-type]
        if replay:
            np.savez(directory / "replay.npz", **replay)  # type: ignore[arg-type]
        (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
        (directory / "config.yaml").write_text(config, encoding="utf-8")
        files = {file.name: _sha256(file) for file in sorted(directory.iterdir())}
        manifest = {"format": FORMAT, "versions": versions(), "sha256": files}
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    write_directory(path, write)


def read_checkpoint(path: Path) -> tuple[Arrays, Arrays, dict[str, Any], str]:
    """`learner`, `driver`, `run` and `config` as they were written.

    Raises:
        UserError: a file is missing, was changed, or is of a newer format.
    """
    try:
        manifest = _read_json(path / "manifest.json")
        _check_format(path, manifest)
        for name, sha256 in manifest["sha256"].items():
            if _sha256(path / name) != sha256:
                raise UserError(f"The checkpoint {path} is corrupt: {name} is not what was written. {_other(path)}")
        learner = load_file(path / "learner.safetensors")
        with np.load(path / "driver.npz", allow_pickle=False) as file:
            driver = {name: file[name] for name in file.files}
        run = _read_json(path / "run.json")
        return learner, driver, run, (path / "config.yaml").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"The checkpoint {path} has no {Path(error.filename).name}. {_other(path)}") from None
    except (*_UNREADABLE, SafetensorError) as error:
        raise UserError(f"The checkpoint {path} is corrupt: {error}. {_other(path)}") from None


def read_replay(path: Path) -> Arrays:
    """The replay's state in a checkpoint that `read_checkpoint` found to be whole; {} where there is none."""
    if not (path / "replay.npz").exists():
        return {}
    with np.load(path / "replay.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    directory = run_dir / "checkpoints"
    return sorted(p for p in directory.iterdir() if p.name.isdigit()) if directory.is_dir() else []


def newest_checkpoint(run_dir: Path) -> Path | None:
    return next(reversed(list_checkpoints(run_dir)), None)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping; ValueError names the file where it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not a JSON mapping")
    return data


def _other(path: Path) -> str:
    others = [p for p in list_checkpoints(path.parent.parent) if p.name != path.name]
    return f"Resume from another one: --resume {others[-1]}." if others else "There is no other one in this run."


def _check_format(path: Path, data: Mapping[str, Any]) -> None:
    if data["format"] > FORMAT:
        raise UserError(
            f"{path} has format {data['format']}; this distrl {importlib.metadata.version('distrl')} reads up to {FORMAT}. Update distrl."
        )


def _write_tensors(path: Path, arrays: Arrays) -> None:
    """As safetensors; written from here, so that a full disk is an OSError as for any other file."""
    path.write_bytes(tensor_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
