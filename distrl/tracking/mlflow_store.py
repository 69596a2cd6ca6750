"""What a store of MLflow must have before something can be logged there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from distrl.tracking.where import database_path


def make_store(database: Path) -> None:
    """Make a SQLite store where there is none, whole or not at all: MLflow can never use one that is half made."""
    from mlflow import MlflowClient

    with database.with_name(f".{database.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs that begin together wait for the first of them
        if database.exists() and database.stat().st_size:
            return
        draft = database.with_name(f".{database.name}.tmp")
        draft.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        os.replace(draft, database)


def experiment_id(client: Any, name: str, uri: str) -> str:
    """Of the experiment of that name, which is made where there is none."""
    from mlflow import MlflowException

    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    # By itself MLflow would put the artifacts of a SQLite store into the directory where it happens to be started.
    location = (database_path(uri).parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(client, name, uri)  # another run was faster
