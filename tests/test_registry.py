"""Names: what is built in, what packages bring, what a user's own module is; and what a file may not name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
import yaml
from conftest import bring, config_of, run_trainer

from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.models.store import list_checkpoints, read_model, write_model
from distrl.registry import ALGORITHMS, POLICIES, algorithm_module
from distrl.tools.explore import explore

# A whole algorithm in one file, of which distrl knows nothing.
REINFORCE = '''
"""REINFORCE (Williams 1992) with a linear softmax policy and the mean return as baseline, in NumPy."""

import numpy as np

from distrl.acting.network import unflatten
from distrl.acting.spaces import action_distribution, stochastic_policy
from distrl.settings import AlgorithmSettings

NEEDS_TORCH = False


class Settings(AlgorithmSettings):
    lr: float = 1.0
    gamma: float = 0.99


def make_policy(settings, info):
    return stochastic_policy(info, action_distribution(info), hidden=())


def initial_weights(settings, policy, seed):
    return np.zeros(policy.network.spec.parameters, np.float32)


def make(settings, policy, seed, device):
    return Reinforce(settings, policy, seed)


class Reinforce:
    def __init__(self, settings, policy, seed):
        self.settings, self.shapes = settings, policy.shapes()
        self.vector = initial_weights(settings, policy, seed)

    def update(self, fragments, iteration, progress):
        gradient = np.zeros_like(self.vector)
        head = unflatten(self.vector, self.shapes)
        for f in fragments:
            left = np.zeros_like(f.reward)
            later = np.zeros(f.reward.shape[1])
            for t in reversed(range(len(f.reward))):
                left[t] = later = f.reward[t] + self.settings.gamma * later * ~f.ended[t]
            logits = f.obs[:-1] @ head["head.weight"].T + head["head.bias"]
            probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            chosen = np.eye(probs.shape[-1])[f.action]
            push = (chosen - probs) * (left - left.mean())[..., None] / left.size
            gradient += np.append(np.einsum("tna,tno->ao", push, f.obs[:-1]).ravel(), push.sum(axis=(0, 1)))
        self.vector = self.vector + np.float32(self.settings.lr) * gradient
        return {"gradient": float(np.abs(gradient).max())}

    def weights(self):
        return self.vector.copy()

    def state(self):
        return {"vector": self.vector.copy()}

    def load_state(self, state):
        self.vector = state["vector"].copy()
'''
BANDIT: dict[str, Any] = {
    "env": {"id": f"toys:{toys.BANDIT}"},
    "algorithm": {"name": "toy_reinforce"},
    "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 8},
    "stop": {"env_steps": 64 * 20},
    "evaluation": {"every": 5, "episodes": 4, "final_episodes": 20},
    "checkpoint": {"every": 6},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the module path, with `toy_reinforce.py` in it; its modules are forgotten afterwards."""
    (tmp_path / "toy_reinforce.py").write_text(REINFORCE)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# --- an algorithm of one's own -------------------------------------------------------------------------------------


def test_an_algorithm_is_one_file_that_trains_is_interrupted_and_resumes(own: Path) -> None:
    reference = run_trainer(config_of(BANDIT), LocalExecution(), own / "whole")
    assert reference.trainer.evaluations.final is not None
    assert reference.trainer.evaluations.final.mean == 1.0  # by chance 0.5
    asked = iter(range(9))
    first = run_trainer(
        config_of(BANDIT),
        LocalExecution(),
        own / "cut",
        interrupted=lambda: None if next(asked, None) is not None else "interrupted",
    )
    assert 0 < first.trainer.progress.iteration < 20
    second = run_trainer(config_of(BANDIT), LocalExecution(), own / "cut", start=list_checkpoints(own / "cut")[-1])
    second.observer.rows = first.observer.rows + second.observer.rows
    assert second.facts == reference.facts


def test_on_ray_it_is_found_where_the_command_was_given(own: Path) -> None:
    """By the installed command too, which does not look beside itself or in the current directory for modules."""
    reference = run_trainer(config_of(BANDIT), LocalExecution(), own / "local")
    paths = [str(Path(toys.__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    (own / "config.yaml").write_text(yaml.safe_dump(BANDIT))
    for arguments in (
        ["train", "config.yaml", "run_dir=run", "cluster.start=wait", "track.mlflow=false", "track.video=false", "-q"],
        ["evaluate", "run", "--episodes", "3", "--env-module", "toys"],
    ):
        command = [sys.executable, "-P", "-m", "distrl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=own, env=env, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    assert "1.00" in done.stdout
    assert json.loads((own / "run" / "result.json").read_text())["weights_sha256"] == reference.sha256


def test_an_algorithm_may_be_something_in_a_module(own: Path) -> None:
    (own / "toy_several.py").write_text("import toy_reinforce as first\nclass Second(first.Settings):\n    pass\n")
    assert algorithm_module("toy_several:first") is algorithm_module("toy_reinforce")
    with pytest.raises(
        UserError, match=r"is 'toy_several:Second', which is no algorithm: it has no NEEDS_TORCH, Settings"
    ):
        algorithm_module("toy_several:Second")


def test_a_package_brings_algorithms_and_policies_by_name(own: Path) -> None:
    bring(
        own,
        "[distrl.algorithms]\ntoy = toy_reinforce\nppo = toy_reinforce\n[distrl.policies]\ntoy_policy = toy_acts:Toy\n",
    )
    (own / "toy_acts.py").write_text(
        "from distrl.acting.policies import StochasticPolicy\n"
        "class Toy(StochasticPolicy):\n"
        "    def describe(self):\n"
        "        return super().describe() | {'type': 'toy_policy'}\n"
    )
    assert list(ALGORITHMS.names()) == [*ALGORITHMS.built_in, "toy"]
    assert algorithm_module("toy").__name__ == "toy_reinforce"  # type: ignore[attr-defined]
    assert algorithm_module("ppo").__name__ == "distrl.algorithms.ppo"  # type: ignore[attr-defined]
    assert explore(toys.settings("CartPole-v1"), seed=1, seconds=0.05).algorithms["toy"] is None
    plain = toys.categorical(toys.spec_of((2,), 3, hidden=()))
    policy = POLICIES.find("toy_policy").from_description(plain.describe())
    weights = np.arange(9, dtype=np.float32)
    policy.load(weights)
    write_model(own, policy, weights, {})
    again, _ = read_model(own)
    assert type(again) is type(policy)
    assert (again.greedy(np.ones((1, 2))) == policy.greedy(np.ones((1, 2)))).all()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("pppo", ["is 'pppo'; it must be one of ppo, ", "or a module", "Did you mean 'ppo'?"]),
        ("my_package.algo", ["is 'my_package.algo'; it must be one of ppo", "No module named 'my_package'"]),
        ("toy_reinforce.deeper", ["it must be one of ppo", "'toy_reinforce' is not a package"]),
        ("toy_reinforce:Reinforc", ["toy_reinforce:Reinforc cannot be imported", "no attribute 'Reinforc'"]),
        ("toy_needs", ["toy_needs cannot be imported", "No module named 'not_installed'"]),
        ("toy_half", ["which is no algorithm: it has no make_policy, initial_weights, make.", "AlgorithmModule"]),
        ("toy_foreign", ["whose Settings are no subclass of distrl.settings.AlgorithmSettings"]),
        ("toy reinforce", ["is 'toy reinforce'; it must be one of ppo"]),
        ("..toy", ["is '..toy'; it must be one of ppo"]),
        ("a:b:c", ["is 'a:b:c'; it must be one of ppo"]),
        ("", ["is ''; it must be one of ppo"]),
        (3, ["is 3; it must be one of ppo"]),
        (["ppo"], ["is ['ppo']; it must be one of ppo"]),
    ],
)
def test_a_name_that_means_no_algorithm_is_refused(name: Any, parts: list[str], own: Path) -> None:
    (own / "toy_needs.py").write_text("import not_installed\n")
    half = "from distrl.settings import AlgorithmSettings as Settings\nNEEDS_TORCH = False\n"
    (own / "toy_half.py").write_text(half)
    (own / "toy_foreign.py").write_text(REINFORCE.replace("(AlgorithmSettings)", ""))
    with pytest.raises(UserError) as caught:
        config_of({**BANDIT, "algorithm": {"name": name}})
    assert [part for part in parts if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == 1


def test_a_package_whose_algorithm_cannot_be_imported_is_told_and_harms_nothing_else(own: Path) -> None:
    bring(own, "[distrl.algorithms]\nbroken = toy_broken\n")
    (own / "toy_broken.py").write_text("import not_installed\n")
    reasons = explore(toys.settings("CartPole-v1"), seed=1, seconds=0.05).algorithms
    assert reasons["ppo"] is None
    assert "toy_broken cannot be imported: No module named 'not_installed'" in str(reasons["broken"])


@pytest.mark.parametrize(
    "kind", ["toy_trap", "toy_trap:Policy", "distrl.acting.policies:StochasticPolicy", "gaussian", 3]
)
def test_reading_a_model_imports_nothing_that_only_the_file_names(kind: Any, own: Path) -> None:
    (own / "toy_trap.py").write_text(f"open({str(own / 'sprung')!r}, 'w').close()\nclass Policy: pass\n")
    policy = toys.categorical(toys.spec_of((2,), 3, hidden=()))
    write_model(own, policy, np.zeros(9, np.float32), {})
    toys.rewrite_model(own, lambda about: about["policy"].update(type=kind))
    with pytest.raises(
        UserError,
        match=rf"^The model in {own} .*must be one of stochastic, recurrent, epsilon_greedy, table, normalised, team, or .*distrl\.policies",
    ):
        read_model(own)
    assert not (own / "sprung").exists()
    assert "toy_trap" not in sys.modules
