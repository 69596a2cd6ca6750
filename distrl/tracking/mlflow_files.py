"""What an MLflow model of ours is made of: for the run in MLflow, and for a directory."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from distrl.acting.network import flatten
from distrl.acting.team import TeamPolicy
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.layouts import MASK
from distrl.models.export import played
from distrl.models.store import write_model
from distrl.models.trial import Trial, compare
from distrl.tracking.where import MODEL, read_json
from distrl.types import Array, Arrays, EnvInfo, Policy

SOURCE = ("mlflow.source.", "mlflow.user")  # tags that a model shares with its run


def parts(model: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Arguments of MLflow for a model directory; `about`: its policy.json."""
    inputs, outputs = (_schema(about[kind]) for kind in ("observation", "action"))
    example: Any = {x["name"] or "obs": np.zeros((2, *x["shape"]), x["dtype"]) for x in about["observation"]}
    if MASK in example:
        example[MASK][:] = 1
    return {
        "python_model": str(Path(__file__).with_name("mlflow_model.py")),
        "code_paths": [str(Path(__file__).parent.parent)],
        "artifacts": {"model": str(model)},
        "signature": ModelSignature(inputs=inputs, outputs=outputs),
        "input_example": example["obs"] if list(example) == ["obs"] else example,
        "pip_requirements": [
            f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "safetensors", "threadpoolctl")
        ],
    }


def digest(model: Path) -> str:
    """The checksum of all that a model directory says, its weights among it."""
    return str(read_json(model / "policy.json")["checksum"])


def log_model(
    client: Any,
    experiment: str,
    name: str,
    model: Path,
    about: dict[str, Any],
    run: Any | None,
    register_as: str | None = None,
) -> str:
    """Log a model directory as a model of MLflow's, at the env steps that it was trained for, and return its id.

    Args:
        about: its policy.json
        run: in MLflow, that the model is of
        register_as: a name in the registry, too
    """
    env = about.get("env") or {}
    known = {"algorithm": about.get("algorithm"), "env": env.get("id"), "env_steps": about.get("env_steps")}
    tags = {key: str(value) for key, value in known.items() if value is not None} | {MODEL: digest(model)}
    params, run_id = {}, None
    if run is not None:
        run_id, params = run.info.run_id, dict(run.data.params)
        tags |= {key: text for key, text in run.data.tags.items() if key.startswith(SOURCE)}
    made = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=tags, params=params)
    # With `run_id` MLflow would give the model whatever the run logged at some step, what the machine did among it.
    place: dict[str, Any] = {"artifact_path": None, "name": name, "model_id": made.model_id}
    Model.log(**place, flavor=mlflow.pyfunc, **parts(model, about), registered_model_name=register_as)
    if run_id is not None:
        client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step=int(about.get("env_steps", 0)))])
    return str(made.model_id)


def _schema(tensors: list[dict[str, Any]]) -> Any:
    """Of what the env has as one array, a tensor without a name; else tensors by name."""
    alone = len(tensors) == 1 and not tensors[0]["name"]
    return Schema(
        [TensorSpec(np.dtype(x["dtype"]), (-1, *x["shape"]), None if alone else x["name"] or "obs") for x in tensors]
    )


def write(policy: Policy, about: dict[str, Any], out: Path, team: TeamPolicy | None = None) -> list[str]:
    """Write a directory that `mlflow.pyfunc.load_model` takes. Raises `UserError` where that does something else."""
    if out.exists():
        raise UserError(f"{str(out)!r} exists. Choose another name for --out.")
    info, trial = played(policy, about, team)
    about = about | spaces(info)
    told: list[str] = []
    hush()

    def fill(directory: Path) -> None:
        with TemporaryDirectory() as temporary:
            model = Path(temporary) / "model"
            model.mkdir()
            write_model(model, policy, flatten(policy.arrays(), policy.shapes()), about)
            mlflow.pyfunc.save_model(directory, **parts(model, about))
        told[:] = tried(policy, trial, str(directory), out.name)

    write_directory(out, fill)
    return told


def hush() -> None:
    """Keep MLflow from telling of every step, and from a bar for files that are on this machine."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def spaces(info: EnvInfo) -> dict[str, Any]:
    """The arrays of an env, as policy.json tells of them."""
    return {
        "observation": info.obs_layout.tensors(info.observation_space),
        "action": info.action_layout.tensors(info.action_space),
    }


def tried(policy: Policy, trial: Trial, uri: str, name: str) -> list[str]:
    """Hold a model of MLflow's against the policy: lines on how it fared. Raises `UserError` where it does something else."""
    served = mlflow.pyfunc.load_model(uri)

    def run(inputs: Arrays) -> Sequence[Array]:
        action = served.predict(inputs if len(inputs) > 1 or "obs" not in inputs else inputs["obs"])
        return list(action.values()) if isinstance(action, dict) else [action]

    return compare(policy, trial, run, f"{name} in mlflow.pyfunc")
