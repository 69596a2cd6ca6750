"""Environments by id: what is found, what is refused, and with which advice."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import bring
from toys import settings

from distrl.envs.make import describe_env, find_spec, make_env
from distrl.errors import EnvError, UserError


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("CartPol-v1", ["'CartPol-v1' is not registered", "Did you mean 'CartPole-v1'?"]),
        ("CartPole-v9", ["'CartPole-v9' is not registered", "Did you mean 'CartPole-v1'?"]),
        ("LunarLander-v2", ["Did you mean 'LunarLander-v3'?"]),
        ("", ["'' is not registered"]),
        ("x/y/z", ["'x/y/z' is not registered"]),
        ("simple_spread_v3", ["several agents: write env.id=mpe2/simple_spread_v3."]),
        ("mpe/simple-v3", ["several agents: write env.id=mpe2/simple_v3."]),
        ("FlappyBird-v9", ["'FlappyBird-v9' is not registered", "Did you mean 'FlappyBird-v0'?"]),
        (
            "no_such_module:Env-v0",
            ["'no_such_module'", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'. Install"],
        ),
        ("gymnasium:CartPol-v1", ["'gymnasium:CartPol-v1' is not registered"]),
    ],
)
def test_an_unknown_id_is_refused_with_advice(env_id: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        make_env(settings(env_id))
    assert [part for part in parts if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == 1


def test_an_id_that_an_installed_package_registers_when_it_is_imported_names_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "toy_roads"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import gymnasium\n\ngymnasium.register(\n    id='toy-road-v0', entry_point='toy_roads:Road')\n"
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv as Road\n"
    )
    bring(tmp_path, "")
    info = tmp_path / "toy-1.0.dist-info"
    (info / "RECORD").write_text("toy_roads/__init__.py,,\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Dist: gymnasium>=1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        make_env(settings("toy-road-v0"))
    advice = "env.id=toy_roads:toy-road-v0"
    assert str(caught.value) == f"env.id 'toy-road-v0' is registered by importing toy_roads: write {advice}."
    assert make_env(settings(advice.removeprefix("env.id="))).observation_space.shape == (4,)
    monkeypatch.delitem(sys.modules, "toy_roads")
    del gym.registry["toy-road-v0"]


def test_gymnasium_makes_our_env_by_its_module(tmp_path: Path) -> None:
    """Gymnasium 1 has no entry points for environments any more."""
    for code in (
        "import gymnasium; env = gymnasium.make('distrl:distrl/FlappyBirdPixels-v0')",
        "import gymnasium, distrl; env = gymnasium.make('distrl/FlappyBirdPixels-v0')",
        "import distrl, gymnasium; env = gymnasium.make('distrl:distrl/FlappyBirdPixels-v0')",
    ):
        code += "; print(env.reset(seed=0)[0].shape)"
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert made.stdout == "(4, 84, 84)\n", made.stderr


@pytest.mark.parametrize(
    ("env_id", "module", "arguments"),
    [
        ("ALE/Pong-v5", "ale_py", "ale-py"),
        ("PongNoFrameskip-v4", "ale_py", "ale-py"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "--no-deps minigrid"),
        ("MinAtar/Breakout-v1", "minatar", "MinAtar"),
        ("HalfCheetah-v5", "mujoco", '"gymnasium[mujoco]"'),
        ("HalfCheetah-v5", "imageio", '"gymnasium[mujoco]"'),
    ],
)
def test_a_missing_package_is_named_as_pip_knows_it(
    env_id: str, module: str, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith((f"{module}.", "gymnasium.envs.mujoco")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        make_env(settings(env_id))
    assert env_id in str(caught.value) and str(caught.value).endswith(f" pip install {arguments}")


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("LunarLander-v3", {"gravty": -9.0}),
        ("LunarLander-v3", {"gravity": 5.0}),
        ("CartPole-v1", {"disable_env_checker": False}),
    ],
    ids=["unknown", "out of range", "ours"],
)
def test_arguments_that_the_env_refuses_are_the_users_mistake(env_id: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"env.kwargs.*{next(iter(kwargs))}.*{env_id}"):
        make_env(settings(env_id, **kwargs))


def test_ids_with_a_module_import_it_first() -> None:
    assert find_spec("gymnasium:CartPole-v1").id == "CartPole-v1"
    env = make_env(settings("gymnasium.envs:CartPole-v1"))
    assert env.spec is not None
    assert env.spec.id == "CartPole-v1"


def test_flappy_bird_needs_no_import_by_the_user() -> None:
    env = make_env(settings("FlappyBird-v0", 25, use_lidar=False))
    assert env.reset(seed=0)[0].shape == (12,)
    env.close()


@pytest.mark.parametrize(("limit", "length"), [(None, 500), (7, 7)])
def test_the_time_limit_is_the_envs_own_or_the_one_asked_for(limit: int | None, length: int) -> None:
    info = describe_env(settings("CartPole-v1", limit))
    assert info.max_episode_steps == length
    env = make_env(settings("MountainCar-v0", limit))
    env.reset(seed=0)
    ends = [env.step(1)[3] for _ in range(limit or 200)]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_the_wanted_arguments_and_render_mode_reach_the_env() -> None:
    env = make_env(settings("LunarLander-v3", gravity=-3.5), render_mode="rgb_array")
    assert env.unwrapped.gravity == -3.5  # type: ignore[attr-defined]
    assert env.render_mode == "rgb_array"


def test_an_env_is_described_as_it_is() -> None:
    info = describe_env(settings("LunarLander-v3"))
    assert (info.id, info.max_episode_steps, info.reward_threshold) == ("LunarLander-v3", 1000, 200)
    assert info.action_space == gym.spaces.Discrete(4)
    assert info.observation_space.shape == (8,)
    assert "rgb_array" in info.render_modes
    assert info.render_fps == 50


def test_an_env_error_survives_a_process_border() -> None:
    error = EnvError("Toy-v0", 3, 14, 159, 26, "Traceback: ...")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error)
    assert (again.env_id, again.shard, again.env_copy, again.seed, again.step) == ("Toy-v0", 3, 14, 159, 26)
    for part in ("Toy-v0", "shard 3", "env copy 14", "seed 159", "step 26", "Traceback: ..."):
        assert part in str(error)
