"""The policy as MLflow runs it: MLflow copies this file into the model and executes it there (models from code).

Beside MLflow it needs what acts and no more: numpy, safetensors and threadpoolctl. Nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from distrl.acting.network import single_threaded
from distrl.layouts import MASK
from distrl.models.store import read_model


class GreedyPolicy(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow's types are not read
    """Observations [B, *shape] to the best actions [B, ...]; of Dicts and Tuples arrays by name, and so is a mask."""

    def load_context(self, context: Any) -> None:
        single_threaded()  # as all that act are: several threads give other last bits
        self._policy, _ = read_model(Path(context.artifacts["model"]))

    # MLflow warns about every annotation of the input but this very one.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        given: Any = model_input if isinstance(model_input, dict) else {"obs": model_input}
        layout, actions = self._policy.obs_layout, self._policy.action_layout
        action = self._policy.greedy(layout.join([given[part.name or "obs"] for part in layout.parts], given.get(MASK)))
        if actions.plain:
            return action
        return {part.name: part.of(action) for part in actions.parts}


mlflow.models.set_model(GreedyPolicy())
