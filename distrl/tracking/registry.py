"""Trained models in MLflow's registry: under a name and perhaps an alias, tried before it is told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow import MlflowClient, MlflowException

from distrl.acting.network import flatten
from distrl.acting.normalise import without
from distrl.acting.recurrent import RecurrentPolicy
from distrl.errors import UserError
from distrl.models.evaluate import load_to_play, one_of
from distrl.models.export import played
from distrl.models.store import write_model
from distrl.tracking.follower import model_name
from distrl.tracking.mlflow_files import digest, hush, log_model, spaces, tried
from distrl.tracking.mlflow_store import experiment_id, make_store
from distrl.tracking.where import MODEL, check_tracking, database_path, read_json, uri_of
from distrl.types import Policy

VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Registered:
    """A version of a model in the registry."""

    name: str
    version: str
    alias: str | None
    store: str  # without credentials
    told: list[str]  # how it fared against the policy

    @property
    def uri(self) -> str:
        """What MLflow loads and serves."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


def register(
    run: Path, name: str, alias: str | None = None, modules: Sequence[str] = (), agent: str | None = None
) -> Registered:
    """Put the model of a run (or a checkpoint, or a model directory) into the registry of the store that the run is in.

    The same model under the same name is the same version. What the registry gives is run on real observations and held
    against the policy before the alias is given.

    Args:
        modules: see `distrl.models.evaluate.load_to_play`
        agent: of several policies: whose one is meant
    Raises:
        UserError: there is no model, MLflow refuses a name, or what it would serve does something else
    """
    _check_name(name)
    whole, _, about = load_to_play(run, modules)
    policy, about, team = one_of(whole, about, run, agent)
    if isinstance(without(policy), RecurrentPolicy):
        raise UserError(
            "This policy remembers the episode, and MLflow asks for actions of observations alone. Use "
            f"distrl.load_policy({str(run)!r}), or 'distrl export --format safetensors'."
        )
    uri = uri_of(read_json(run / "track.json").get("uri"), run.absolute())
    check_tracking(uri)
    info, trial = played(policy, about, team)
    try:
        with _tracked_at(uri) as client:
            model_id = _logged(client, run, policy, about | spaces(info), uri)
            version = _version(client, name, model_id)
            told = tried(policy, trial, f"models:/{name}/{version}", name)
            if alias is not None:
                client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise UserError(f"MLflow refuses {name!r}{f' or {alias!r}' if alias else ''}: {error.message}") from None
    return Registered(name, version, alias, uri, told)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[^/:.%\"'\s][^/:%\"']*", name):
        raise UserError(
            f"--name is {name!r}; a name in the registry has no slash, colon or quotation mark: flappy_dqn."
        )


@contextmanager
def _tracked_at(uri: str) -> Iterator[MlflowClient]:
    before, named = mlflow.get_tracking_uri(), os.environ.get(VARIABLE)
    hush()
    if uri.startswith("sqlite:"):
        make_store(database_path(uri))
    mlflow.set_tracking_uri(uri)
    try:
        yield MlflowClient()
    finally:
        mlflow.set_tracking_uri(before)  # which names it in the environment, too
        os.environ.pop(VARIABLE, None)
        os.environ.update({} if named is None else {VARIABLE: named})


def _logged(client: MlflowClient, run: Path, policy: Policy, about: dict[str, Any], uri: str) -> str:
    """The id of the model in MLflow; it is logged where its run did not do so."""
    known = read_json(run / "mlflow.json")
    experiment = known.get("experiment_id") or experiment_id(client, "distrl", uri)
    with TemporaryDirectory() as temporary:
        model = Path(temporary) / "model"
        model.mkdir()
        kept = {key: value for key, value in about.items() if key not in ("sha256", "checksum")}
        write_model(model, policy, flatten(policy.arrays(), policy.shapes()), kept)
        condition = f"tags.`{MODEL}` = '{digest(model)}'"
        if found := client.search_logged_models([experiment], condition, max_results=1):
            return str(found[0].model_id)
        source = client.get_run(known["run_id"]) if known else None
        name = model_name("-".join(filter(None, (run.name, about.get("group")))), str(about.get("algorithm", "policy")))
        return log_model(client, experiment, name, model, about, source)


def _version(client: MlflowClient, name: str, model_id: str) -> str:
    source = f"models:/{model_id}"
    for version in client.search_model_versions(f"name = '{name}'"):
        if source in (version.source, f"models:/{version.model_id}"):
            return str(version.version)
    return str(mlflow.register_model(source, name).version)
