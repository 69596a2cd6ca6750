"""Model directories: `policy.json` and `policy.safetensors`, which run no code when they are read."""

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

from distrl.acting.network import flatten, unflatten
from distrl.acting.policies import from_description
from distrl.errors import UserError
from distrl.json_format import json_text
from distrl.types import Array, Arrays, Policy

FORMAT = 2
# What reading a damaged file raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
PACKAGES = ("distrl", "ray", "torch", "gymnasium", "numpy", "mlflow")


def versions() -> dict[str, str]:
    """The versions on which a result depends."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def weights_sha256(policy: Policy) -> str:
    """sha256 over the policy's arrays (little-endian bytes), in the order of their names."""
    digest = hashlib.sha256()
    for _, array in sorted(policy.arrays().items()):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def write_model(directory: Path, policy: Policy, vector: Array, about: Mapping[str, Any]) -> None:
    """Write a policy with the weights `vector` [P]; `about`: JSON of the env, the algorithm and the training behind it."""
    write_tensors(directory / "policy.safetensors", unflatten(vector, policy.shapes()))
    sha256 = file_sha256(directory / "policy.safetensors")
    text = json_text({"format": FORMAT, "sha256": sha256, "policy": policy.describe(), **about}, indent=1)
    (directory / "policy.json").write_text(text, encoding="utf-8")


def read_model(path: Path) -> tuple[Policy, dict[str, Any]]:
    """A policy with its weights, and what was written about it. Raises `UserError` where `path` holds none."""
    try:
        about = read_json(path / "policy.json")
        check_format(path, about, FORMAT)
        if file_sha256(path / "policy.safetensors") != about["sha256"]:
            raise ValueError("policy.safetensors is not what was written")
        policy = from_description(about["policy"])
        policy.load(flatten(load_file(path / "policy.safetensors"), policy.shapes()))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a model directory: it has no {Path(error.filename).name}.") from None
    except (*UNREADABLE, SafetensorError) as error:
        raise UserError(f"The model in {path} is corrupt or not of distrl: {error}.") from None
    return policy, about


def find_model(path: str | Path) -> Path:
    """The model directory that `path` means: a run (its best model, else its newest checkpoint), a checkpoint, a model."""
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


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    directory = run_dir / "checkpoints"
    return sorted(p for p in directory.iterdir() if p.name.isdigit()) if directory.is_dir() else []


def newest_checkpoint(run_dir: Path) -> Path | None:
    return next(reversed(list_checkpoints(run_dir)), None)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError, with the file's name, where it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not a JSON mapping")
    return data


def check_format(path: Path, data: Mapping[str, Any], known: int) -> None:
    """Raise `UserError` where a directory is of another format than this distrl writes."""
    if data["format"] == known:
        return
    remedy = "Update distrl." if data["format"] > known else "Take the distrl that wrote it."
    raise UserError(
        f"{path} has format {data['format']}; this distrl {importlib.metadata.version('distrl')} reads format {known}. {remedy}"
    )


def write_tensors(path: Path, arrays: Arrays) -> None:
    """Write safetensors. Python writes the file, so that a full disk is an OSError as with any other file."""
    path.write_bytes(tensor_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
