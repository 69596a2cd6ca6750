"""Model directories: `policy.json` and `policy.safetensors`, which run no code when they are read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save as tensor_bytes

from distrl.acting.kinds import network_places
from distrl.acting.network import flatten, unflatten
from distrl.acting.opponents import apart
from distrl.acting.policies import from_description
from distrl.errors import UserError, reading, reason, shown
from distrl.json_format import json_text
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Policy

MODEL = "model"  # of a sweep's winner, in the sweep's directory
FORMAT = 3
WITHOUT_CHECKSUM = 2  # the format before, in which that of the weights is all there is
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
    """Write a policy with the weights `vector` [P], without its opponents.

    `about`: JSON of the env, the algorithm and the training behind it.
    """
    policy, vector, _ = apart(policy, vector)
    write_tensors(directory / "policy.safetensors", unflatten(vector, policy.shapes()))
    sha256 = file_sha256(directory / "policy.safetensors")
    told = described(policy, {**about, "sha256": sha256})
    (directory / "policy.json").write_text(json_text(told, indent=1), encoding="utf-8")


def described(policy: Policy, about: Mapping[str, Any]) -> dict[str, Any]:
    """A policy and what is known about it, with the checksum of all of that; what `read_described` takes."""
    told = {**about, "format": FORMAT, "policy": policy.describe()}
    return told | {"checksum": _checksum(told)}


def read_described(path: Path, about: Mapping[str, Any]) -> Policy:
    """The policy that `described` told of, without weights yet. Raises `UserError` or ValueError for any other."""
    check_format(path, about, WITHOUT_CHECKSUM, FORMAT)
    if (about["format"] == FORMAT or "checksum" in about) and about["checksum"] != _checksum(about):
        raise ValueError("its description is not what was written")
    return from_description(about["policy"])


def load_weights(policy: Policy, arrays: Arrays) -> None:
    """Give a policy weights that were read. Raises ValueError for other ones than it has, and where one is not finite."""
    vector = flatten(arrays, policy.shapes())
    if not np.isfinite(vector).all():
        raise ValueError("a weight is not finite")
    policy.load(vector)
    try:
        if not any(network_places(policy.describe())):  # else it would import what it names
            policy.greedy(policy.obs_layout.examples())
    except Exception as error:
        raise ValueError(f"its parts do not fit together ({reason(error)})") from error


def read_model(path: Path) -> tuple[Policy, dict[str, Any]]:
    """A policy with its weights, and what was written about it. Raises `UserError` where `path` holds none."""
    with reading(
        f"The model in {path} is corrupt or not of distrl", f"{path} is not a model directory: it has no {{name}}."
    ):
        about = read_json(path / "policy.json")
        policy = read_described(path, about)
        if file_sha256(path / "policy.safetensors") != about["sha256"]:
            raise ValueError("policy.safetensors is not what was written")
        load_weights(policy, load_file(path / "policy.safetensors"))
    return policy, about


def env_of(path: Path, about: Mapping[str, Any]) -> EnvSettings:
    """The env that a model says it is for; `path`: of the model. Raises `UserError` where it says none."""
    with reading(f"The model in {path} names no env that can be made"):
        return EnvSettings.model_validate(about["env"])


def _checksum(about: Mapping[str, Any]) -> str:
    """sha256 of a description, whatever the order and the spaces in which it is written."""
    told = {name: value for name, value in about.items() if name != "checksum"}
    text = json.dumps(json.loads(json_text(told)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def find_model(path: str | Path) -> Path:
    """The model directory that `path` means: a run (its best model, else its newest checkpoint), a checkpoint, a model, or a
    sweep (its winner's)."""
    path = Path(path)
    with reading(f"{shown(str(path))} cannot be read"):
        return _find_model(path)


def _find_model(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"There is no run or model at {str(path)!r}.")
    if (path / "policy.json").exists():
        return path
    for name in ("best", MODEL):
        if (path / name / "policy.json").exists():
            return path / name
    if (newest := newest_checkpoint(path)) is not None:
        return newest
    if (path / "sweep.yaml").exists():
        raise UserError(
            f"The sweep in {path} has no model yet: it has that of its winner at its end. Go on with 'distrl tune --resume "
            f"{path.name}', or name one of its runs, such as {path}/trials/0000/seed-1."
        )
    raise UserError(
        f"{path} holds no model yet: neither best/ nor a checkpoint. Train further with 'distrl train --resume {path}'."
    )


def list_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    directory = run_dir / "checkpoints"
    with reading(f"The checkpoints of {run_dir} cannot be read"):
        return sorted(p for p in directory.iterdir() if p.name.isdecimal()) if directory.is_dir() else []


def newest_checkpoint(run_dir: Path) -> Path | None:
    return next(reversed(list_checkpoints(run_dir)), None)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError, with the file's name, where it holds none."""
    return parse_json(path.read_text(encoding="utf-8"), path.name)


def parse_json(text: str, name: str) -> dict[str, Any]:
    """The mapping that a text of that name holds, as `read_json`."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name} is not a JSON mapping")
    return data


def check_format(path: Path, data: Mapping[str, Any], *known: int) -> None:
    """Raise `UserError` where a directory is of another format than this distrl reads; ValueError where it says none."""
    found = data["format"]
    if type(found) is not int:
        raise ValueError(f"its format is {shown(found)}, which is no whole number")
    if found in known:
        return
    remedy = "Update distrl." if found > max(known) else "Take the distrl that wrote it."
    formats = " and ".join(map(str, known))
    raise UserError(
        f"{path} has format {shown(found)}; this distrl {importlib.metadata.version('distrl')} reads format {formats}. {remedy}"
    )


def write_tensors(path: Path, arrays: Arrays) -> None:
    """Write safetensors. Python writes the file, so that a full disk is an OSError as with any other file."""
    path.write_bytes(tensor_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
