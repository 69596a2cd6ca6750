"""The policy as MLflow runs it: MLflow copies this file into the model and executes it there (models from code).

Beside MLflow it needs what acts and no more: numpy, safetensors and threadpoolctl. Nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from distrl.acting.policies import policy_input
from distrl.models.store import read_model
from distrl.types import Array


class GreedyPolicy(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow's types are not read
    """Observations [B, *shape] to the best actions [B]."""

    def load_context(self, context: Any) -> None:
        self._policy, _ = read_model(Path(context.artifacts["model"]))

    # MLflow warns about every annotation of the input but this very one.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Array:
        return np.asarray(self._policy.greedy(policy_input(model_input)), np.int64)


mlflow.models.set_model(GreedyPolicy())
