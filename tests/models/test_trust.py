"""Models from anywhere: nothing that they name is imported unless it is the user's own, or the user says so."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from processes import distrl
from toys import rewrite_model

from distrl.acting.modules import module_spec
from distrl.acting.policies import EpsilonGreedyPolicy
from distrl.errors import UserError
from distrl.layouts import observation_layout
from distrl.models.evaluate import load_model
from distrl.models.player import load_policy
from distrl.models.store import FORMAT, read_model, write_model

MODULE = """
import pathlib, gymnasium
pathlib.Path({mark!r}).write_text("imported")
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
class Around(gymnasium.Wrapper): pass
gymnasium.register("Theirs-v0", CartPoleEnv, max_episode_steps=20)
"""


def model(path: Path, env: dict[str, Any], place: str | None = None) -> Path:
    """A model directory of CartPole's spaces."""
    layout = observation_layout(gym.spaces.Box(-1, 1, (4,)))
    from distrl.acting.spaces import action_distribution, stochastic_policy
    from distrl.types import EnvInfo

    info = EnvInfo("Env-v0", gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), None, None, (), 30)
    policy: Any = stochastic_policy(info, action_distribution(info))
    if place is not None:
        policy = EpsilonGreedyPolicy(module_spec(place, layout, 2), layout)
    size = sum(array.size for array in policy.arrays().values())
    path.mkdir(parents=True)
    about = {"env": env, "algorithm": "ppo", "version": 1, "env_steps": 1}
    write_model(path, policy, np.random.default_rng(0).normal(0, 0.3, size).astype(np.float32), about)
    return path


def module(path: Path) -> Path:
    """A module that leaves a mark when it is imported; returns the mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = path.with_suffix(".mark")
    path.write_text(MODULE.format(mark=str(mark)))
    return mark


ENVS = {
    "env.id": {"id": "theirs:Theirs-v0"},
    "env.wrappers": {"id": "CartPole-v1", "wrappers": [{"name": "theirs.Around"}]},
}


@pytest.mark.parametrize("where", ENVS)
def test_a_foreign_module_is_imported_only_where_the_user_names_it(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, home = module(tmp_path / "elsewhere" / "theirs.py"), tmp_path / "home"
    run = model(home / "run", ENVS[where])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "elsewhere"), os.environ.get("PYTHONPATH", "")]))
    for command in (["evaluate", "run", "--episodes", "1"], ["record", "run"], ["play", "run"], ["export", "run", "-f", "safetensors"]):  # fmt: skip
        done = distrl(*command, cwd=home)
        assert done.returncode == 2
        assert where in done.stderr and "--env-module theirs" in done.stderr and "Traceback" not in done.stderr
    assert not mark.exists()
    done = distrl("evaluate", "run", "--episodes", "1", "--env-module", "theirs", cwd=home)
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    player = load_policy(run)
    mark.unlink()
    with pytest.raises(UserError, match=r"modules=\['theirs'\]"):
        player.make_env()
    assert not mark.exists()
    load_policy(run, modules=["theirs"]).make_env().close()
    assert mark.exists()
    sys.modules.pop("theirs")
    gym.registry.pop("Theirs-v0")


@pytest.mark.parametrize("where", ENVS)
def test_nothing_changes_for_a_project_of_ones_own(where: str, tmp_path: Path) -> None:
    mark = module(tmp_path / "theirs.py")
    model(tmp_path / "runs" / "run" / "best", ENVS[where])
    done = distrl("evaluate", "runs/run", "--episodes", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mark.exists()


def test_what_lies_beside_a_model_is_no_project_of_the_users(tmp_path: Path) -> None:
    model(tmp_path / "got" / "best", {"id": "got.best.theirs:Theirs-v0"})
    mark = module(tmp_path / "got" / "best" / "theirs.py")
    done = distrl("evaluate", "got", "--episodes", "1", cwd=tmp_path)
    assert (done.returncode, mark.exists()) == (2, False), done.stderr
    assert "--env-module got.best.theirs" in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {"id": "antigravity:Env-v0"},
        {"id": "time:Env-v0"},
        {"id": "CartPole-v1", "wrappers": [{"name": "os:system"}]},
        {"id": "CartPole-v1", "wrappers": [{"name": "distrl.files:shutil.rmtree"}]},
        {"id": "CartPole-v1", "wrappers": [{"name": "numpy.array"}]},
    ],
)
def test_neither_the_standard_library_nor_what_a_known_module_imports_is_vouched_for(
    env: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--env-module"):
        load_policy(model(tmp_path / "run", env)).make_env()


def test_gymnasiums_own_wrappers_need_no_word(tmp_path: Path) -> None:
    env = {"id": "CartPole-v1", "wrappers": [{"name": "gymnasium.wrappers.ClipAction"}, {"name": "time_limit"}]}
    with pytest.raises(UserError, match="cannot be put around"):  # CartPole's actions are no Box
        load_policy(model(tmp_path / "run", env)).make_env()


def test_a_network_is_imported_only_where_the_user_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = model(tmp_path / "run", {"id": "CartPole-v1"}, "own_nets:Small")
    obs = np.zeros(4, np.float32)
    known = load_policy(run, modules=["own_nets"]).act(obs)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("own_nets")
    with pytest.raises(UserError, match=r"algorithm.network.*--env-module own_nets"):
        load_policy(run).act(obs)
    assert "own_nets" not in sys.modules
    assert load_policy(run, modules=["own_nets"]).act(obs) == known
    monkeypatch.chdir(Path(__file__).parents[1])
    assert load_policy(run).act(obs) == known


def test_the_checksum_covers_all_of_a_model(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"id": "CartPole-v1"})
    text = (run / "policy.json").read_text()
    for old, new in (('"tanh"', '"relu"'), ('"CartPole-v1"', '"CartPole-v0"'), (f'"format": {FORMAT}', f'"format": {FORMAT - 1}'), ('"checksum"', '"checksom"')):  # fmt: skip
        assert old in text
        (run / "policy.json").write_text(text.replace(old, new))
        with pytest.raises(UserError, match="corrupt"):
            read_model(run)
    (run / "policy.json").write_text(json.dumps(json.loads(text), sort_keys=True))  # the same, written otherwise
    read_model(run)


def test_a_model_from_before_there_was_a_checksum_is_read(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"id": "CartPole-v1"})
    action = [load_policy(run).act(obs) for obs in np.eye(4, dtype=np.float32)]
    rewrite_model(run, lambda about: None)
    assert [load_policy(run).act(obs) for obs in np.eye(4, dtype=np.float32)] == action
    (run / "policy.safetensors").write_bytes((run / "policy.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"policy.safetensors is not what was written"):
        read_model(run)


def at(*path: Any) -> Any:
    """Puts a value at a place of a description."""
    *parents, leaf, value = path

    def put(about: Any) -> None:
        for key in parents:
            about = about[key]
        about[leaf] = value

    return put


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (at("policy", "network", "activation", "tanj"), "'tanh' or 'relu'"),
        (at("policy", "type", "stochastik"), "stochastic"),
        (at("policy", "distribution", "kind", "categorial"), "categorical"),
        (at("policy", "distribution", "start", 1.5), "integer"),
        (at("policy", "network", "hidden", "64"), "hidden"),
        (at("policy", "network", "hidden", [64, 32]), "shapes"),
        (at("policy", "network", "layers", 3), "layers"),
        (at("policy", "obs_layout", "parts", 0, "kind", "boxx"), "'box'"),
        (at("policy", "obs_layout", "dtype", "object"), "dtype"),
        (at("policy", "network", "outputs", 10**30), "It is of no model"),
        (at("policy", "network", "outputs", 7), "for a distribution"),
        (at("policy", "network", "hidden", [10**15, 10**15]), "."),
        (at("format", "two"), "no whole number"),
        (at("format", True), "no whole number"),
        (at("format", 10**400), "Update distrl"),
    ],
)
def test_what_no_policy_can_have_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    run = rewrite_model(model(tmp_path / "run", {"id": "CartPole-v1"}), change)
    with pytest.raises(UserError) as caught:
        read_model(run)
    assert says in str(caught.value) and len(str(caught.value)) < 2000


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    run = model(tmp_path / "run", {"id": "CartPole-v1"})
    policy, about = read_model(run)
    weights = np.full(sum(array.size for array in policy.arrays().values()), np.nan, np.float32)
    write_model(run, policy, weights, {"env": about["env"]})
    with pytest.raises(UserError, match="not finite"):
        read_model(run)


@pytest.mark.parametrize("env", [None, [], {"id": 3}, {"id": "CartPole-v1", "color": 1}])
def test_a_model_that_names_no_env_can_still_act(env: Any, tmp_path: Path) -> None:
    run = rewrite_model(model(tmp_path / "run", {"id": "CartPole-v1"}), at("env", env))
    load_policy(run).act(np.zeros(4, np.float32))
    with pytest.raises(UserError, match="names no env"):
        load_policy(run).make_env()
    with pytest.raises(UserError, match="names no env"):
        load_model(run)
