"""What an MLflow model of ours is made of: for the run in MLflow, and for a directory."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec

from distrl.acting.network import flatten
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.layouts import MASK
from distrl.models.export import played
from distrl.models.store import write_model
from distrl.models.trial import compare
from distrl.types import Array, Arrays, Policy


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


def _schema(tensors: list[dict[str, Any]]) -> Any:
    """Of what the env has as one array, a tensor without a name; else tensors by name."""
    alone = len(tensors) == 1 and not tensors[0]["name"]
    return Schema(
        [TensorSpec(np.dtype(x["dtype"]), (-1, *x["shape"]), None if alone else x["name"] or "obs") for x in tensors]
    )


def write(policy: Policy, about: dict[str, Any], out: Path) -> list[str]:
    """Write a directory that `mlflow.pyfunc.load_model` takes. Raises `UserError` where that does something else."""
    if out.exists():
        raise UserError(f"{str(out)!r} exists. Choose another name for --out.")
    info, trial = played(policy, about)
    about = about | {
        "observation": info.obs_layout.tensors(info.observation_space),
        "action": info.action_layout.tensors(info.action_space),
    }
    told: list[str] = []
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every step

    def fill(directory: Path) -> None:
        with TemporaryDirectory() as temporary:
            model = Path(temporary) / "model"
            model.mkdir()
            write_model(model, policy, flatten(policy.arrays(), policy.shapes()), about)
            mlflow.pyfunc.save_model(directory, **parts(model, about))
        served = mlflow.pyfunc.load_model(str(directory))

        def run(inputs: Arrays) -> Sequence[Array]:
            action = served.predict(inputs if len(inputs) > 1 or "obs" not in inputs else inputs["obs"])
            return list(action.values()) if isinstance(action, dict) else [action]

        told[:] = compare(policy, trial, run, f"{out.name} in mlflow.pyfunc")

    write_directory(out, fill)
    return told
