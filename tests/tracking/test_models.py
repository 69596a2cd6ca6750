"""Models in the registry: loaded where there is neither distrl nor torch, and served over HTTP."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import run_trainer
from mlflow import MlflowClient
from processes import distrl
from test_pages import free_port
from toys import WALK, settings

from distrl import load_policy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.models.trial import input_names, observe, output_names
from distrl.settings import EnvSettings
from distrl.tracking.registry import register
from distrl.tracking.ui import running, wait_until_ready

ENV = settings(
    f"toys:{WALK}", 12, obs="dict", action="dict", mask="info"
)  # images, numbers and bytes; two actions; a mask


def trained(home: Path, env: EnvSettings, **more: Any) -> Path:
    """A run that was not tracked."""
    config = load_config(
        {
            "env": env.model_dump(),
            "algorithm": {"name": "ppo", "hidden": [16, 16], "minibatch_size": 32},
            "rollout": {"shards": 2, "envs_per_shard": 2, "steps": 16},
            "stop": {"env_steps": 64 * 4},
            "evaluation": {"every": 2, "episodes": 2, "final_episodes": 2},
            "checkpoint": {"every": 2},
            **more,
        }
    )
    run_trainer(config, LocalExecution(), home / "run")
    return home / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield trained(tmp_path_factory.mktemp("runs"), ENV)


@pytest.fixture(scope="module")
def uri(run: Path) -> str:
    """The store beside the run, where its model is version 1 of 'flappy' and champion."""
    done = register(run, "flappy", "champion", ["toys"])
    assert (done.version, done.uri, done.store) == ("1", "models:/flappy@champion", f"sqlite:///{run.parent}/mlflow.db")
    return done.store


def observed(run: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Observations by the names of the inputs, and what the policy does there, by the names of the actions."""
    player = load_policy(run, modules=["toys"])
    policy = player.policy
    trial = observe(policy, describe_env(ENV), ENV)
    inputs = {name: array[:50] for name, array in trial.inputs.items()}
    action = policy.greedy(trial.flat[:50])
    names = [name.removeprefix("action.") for name in output_names(policy)]
    assert list(inputs) == input_names(policy)
    return inputs, {n: part.of(action).tolist() for n, part in zip(names, policy.action_layout.parts, strict=True)}


def test_what_is_registered_loads_with_neither_distrl_nor_torch_and_runs_no_pickle(
    run: Path, uri: str, tmp_path: Path
) -> None:
    inputs, expected = observed(run)
    np.savez(tmp_path / "obs.npz", **inputs)
    script = f"""
        import json, sys
        sys.path += {site.getsitepackages()!r}
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "ray", "gymnasium"):
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Missing())
        import mlflow, numpy as np
        import pickle, cloudpickle
        def refused(*arguments, **more):
            raise AssertionError("a pickle is run")
        pickle.load = pickle.loads = pickle.Unpickler = cloudpickle.load = cloudpickle.loads = refused
        mlflow.set_tracking_uri({uri!r})
        model = mlflow.pyfunc.load_model("models:/flappy@champion")
        import distrl.models
        assert "/code/distrl/" in distrl.models.__file__, distrl.models.__file__
        signature = model.metadata.signature
        example = model.input_example
        assert set(example) == set(signature.inputs.input_names()), (set(example), signature)
        model.predict({{name: np.asarray(x) for name, x in example.items()}})
        obs = dict(np.load({str(tmp_path / "obs.npz")!r}))
        print(json.dumps({{name: x.tolist() for name, x in model.predict(obs).items()}}))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_it_is_served_over_http(run: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # of uvicorn
    inputs, expected = observed(run)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/flappy@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w+b") as log, running(command, {}, log) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/ping", log)
        body = json.dumps({"inputs": {name: array.tolist() for name, array in inputs.items()}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer) == {"predictions": expected}
        request.data = b'{"inputs": {"unheard": [1]}}'
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert caught.value.code == 400


def test_the_same_model_is_the_same_version_and_another_one_the_next(
    run: Path, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))  # of toys
    words = ("--name", "flappy", "--alias", "best", "--env-module", "toys")
    done = distrl("register", str(run), *words, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "flappy, version 1" in done.stdout and "models:/flappy@best" in done.stdout
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient(uri)
    assert [str(version.version) for version in client.search_model_versions("name='flappy'")] == ["1"]
    assert len(client.search_logged_models(["1"])) == 1
    [newest, *_] = sorted((run / "checkpoints").iterdir())  # not the best one
    assert (
        register(newest, "flappy").uri == "models:/flappy/1" or len(client.search_model_versions("name='flappy'")) == 2
    )
    aliases = client.get_registered_model("flappy").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1", "best": "1"}
    assert mlflow.get_tracking_uri() != uri and "MLFLOW_TRACKING_URI" not in os.environ  # left as it was


def test_what_cannot_be_registered_is_told(run: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no slash, colon"):
        register(run, "a/b")
    with pytest.raises(UserError, match=r"MLflow refuses 'flappy' or 'v1'"):
        register(run, "flappy", "v1", ["toys"])
    with pytest.raises(UserError, match="There is no run or model"):
        register(tmp_path / "nowhere", "a")
    memory = {
        "algorithm": {"name": "ppo", "hidden": [16], "memory": {"size": 8}, "shared_body": True, "minibatch_size": 32}
    }
    with pytest.raises(UserError, match=r"remembers.*load_policy"):
        register(trained(tmp_path, settings(WALK, 12), **memory), "a")
