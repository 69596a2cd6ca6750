"""`env.wrappers`: the same as wrapping by hand, what is refused, and that a wrapped env is trained on like any other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toys
from conftest import CARTPOLE, DQN, bring, config_of, run_trainer
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.wrappers import AtariPreprocessing, ClipReward, FlattenObservation, FrameStackObservation, TimeLimit
from processes import SMALL, distrl, write

from distrl.config import env_settings
from distrl.envs.make import describe_env, make_env
from distrl.envs.shard import make_shard
from distrl.envs.single import SingleShard
from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.models.player import load_policy
from distrl.registry import WRAPPERS
from distrl.settings import EnvSettings
from distrl.tools.explore import explore

Env = gym.Env[Any, Any]
OWN = '''
import gymnasium as gym
from gymnasium.wrappers import FrameStackObservation, NormalizeReward


class Double(gym.RewardWrapper):
    def __init__(self, env, times=2):
        super().__init__(env)
        self.times = times

    def reward(self, reward):
        return self.times * reward


class Whole(gym.Wrapper):
    """Changes nothing, of which distrl can know nothing."""


class Broken(gym.Wrapper):
    def __init__(self, env):
        raise RuntimeError("the toy broke")


def normalised(env):
    return Whole(NormalizeReward(env))


def nothing(env):
    pass


SOMETHING = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the module path, with `toy_wraps.py` in it, which is forgotten afterwards."""
    (tmp_path / "toy_wraps.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("toy_wraps", None)


def wrapped(env_id: str, *wrappers: Any, **more: Any) -> EnvSettings:
    return EnvSettings.model_validate({"id": env_id, "wrappers": wrappers, **more})


def game(env: Env, steps: int = 60) -> list[Any]:
    """All that is seen of some random steps."""
    env.action_space.seed(1)
    seen: list[Any] = [env.reset(seed=3)[0]]
    for number in range(steps):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append((obs, float(reward), terminated, truncated))
        if terminated or truncated:
            seen.append(env.reset(seed=number)[0])
    env.close()
    return seen


# --- the same as by hand -------------------------------------------------------------------------------------------

BY_HAND: dict[str, tuple[EnvSettings, Callable[[], Env]]] = {
    "frame_stack": (
        wrapped("CartPole-v1", "frame_stack"),
        lambda: FrameStackObservation(gym.make("CartPole-v1"), 4),
    ),
    "frame_stack of 2": (
        wrapped("CartPole-v1", {"name": "frame_stack", "kwargs": {"stack_size": 2}}),
        lambda: FrameStackObservation(gym.make("CartPole-v1"), 2),
    ),
    "select": (
        wrapped("CartPole-v1", {"name": "select", "kwargs": {"indices": [2, 0]}}),
        lambda: gym.wrappers.TransformObservation(
            gym.make("CartPole-v1"),
            lambda obs: np.array([obs[2], obs[0]]),
            gym.spaces.Box(np.float32([-0.41887903, -4.8]), np.float32([0.41887903, 4.8])),
        ),
    ),
    "flatten": (wrapped("Blackjack-v1", "flatten"), lambda: FlattenObservation(gym.make("Blackjack-v1"))),
    "clip_reward": (
        wrapped("Pendulum-v1", "clip_reward"),
        lambda: gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda r: -1.0 if r < 0 else float(r > 0)),
    ),
    "clip_reward to bounds": (
        wrapped("Pendulum-v1", {"name": "clip_reward", "kwargs": {"min_reward": -2, "max_reward": -0.5}}),
        lambda: ClipReward(gym.make("Pendulum-v1"), -2, -0.5),
    ),
    "time_limit": (
        wrapped("CartPole-v1", {"name": "time_limit", "kwargs": {"max_episode_steps": 7}}),
        lambda: TimeLimit(gym.make("CartPole-v1"), 7),
    ),
    "a dotted path": (
        wrapped("Blackjack-v1", "gymnasium.wrappers.FlattenObservation"),
        lambda: FlattenObservation(gym.make("Blackjack-v1")),
    ),
    "a place": (
        wrapped("Pendulum-v1", {"name": "gymnasium.wrappers:RescaleAction", "kwargs": {"min_action": 0, "max_action": 1}}),
        lambda: gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), 0, 1),
    ),
    "several": (
        wrapped("Blackjack-v1", "flatten", "frame_stack", "flatten"),
        lambda: FlattenObservation(FrameStackObservation(FlattenObservation(gym.make("Blackjack-v1")), 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_a_wrapped_env_is_that_wrapped_by_hand(name: str) -> None:
    settings, by_hand = BY_HAND[name]
    env, other = make_env(settings), by_hand()
    assert (env.observation_space, env.action_space) == (other.observation_space, other.action_space)
    assert data_equivalence(game(env), game(other))


def test_atari_is_dqns() -> None:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    env = make_env(wrapped("ALE/Pong-v5", "atari"))
    other = FrameStackObservation(AtariPreprocessing(gym.make("ALE/Pong-v5", frameskip=1)), 4)
    seen = game(env, 40)
    assert data_equivalence(seen, game(other, 40))
    assert seen[0].shape == (4, 84, 84) and seen[0].dtype == np.uint8
    info = describe_env(wrapped("ALE/Pong-v5", "atari"))
    assert (info.frame_stack, info.max_episode_steps) == (4, 108_000 // 4)  # that many frames, as the id is registered
    mine = wrapped("ALE/Pong-v5", {"name": "atari", "kwargs": {"screen_size": 42, "stack_size": 2}})
    assert make_env(mine).observation_space.shape == (2, 42, 42)
    with pytest.raises(UserError, match=r"'atari' cannot be put around 'ALE/Pong-v5'.*frame-skipping"):
        make_env(wrapped("ALE/Pong-v5", "atari", kwargs={"frameskip": 4}))


def test_the_first_wrapper_is_the_innermost(own: Path) -> None:
    """Script pays step + action / 10."""
    bounds = {"name": "clip_reward", "kwargs": {"min_reward": 0, "max_reward": 1.5}}
    double = {"name": "toy_wraps.Double", "kwargs": {"times": 3}}

    def rewards(*wrappers: Any) -> list[float]:
        env = make_env(wrapped(f"toys:{toys.SCRIPT}", *wrappers))
        env.reset(seed=0)
        return [float(env.step(0)[1]) for _ in range(3)]

    assert rewards(bounds, double) == [3.0, 4.5, 4.5]
    assert rewards(double, bounds) == [1.5, 1.5, 1.5]


def test_a_package_brings_wrappers_by_name(own: Path) -> None:
    bring(own, "[distrl.wrappers]\ntwice = toy_wraps:Double\nflatten = toy_wraps:Double\n")
    assert list(WRAPPERS.names()) == [*WRAPPERS.built_in, "twice"]
    assert "Double" in str(make_env(wrapped("CartPole-v1", "twice")))
    assert "FlattenObservation" in str(make_env(wrapped("CartPole-v1", "flatten")))  # none replaces what is built in


# --- what is known of it -------------------------------------------------------------------------------------------


def test_what_is_described_is_the_wrapped_env(own: Path) -> None:
    limit = {"name": "time_limit", "kwargs": {"max_episode_steps": 9}}
    info = describe_env(wrapped("CartPole-v1", "frame_stack", limit))
    assert info.observation_space.shape == (4, 4)
    assert (info.max_episode_steps, info.reward_threshold) == (9, 475)
    assert describe_env(wrapped("CartPole-v1", limit, max_episode_steps=5)).max_episode_steps == 5
    for other in ("clip_reward", "toy_wraps.Whole"):  # returns that may be others have no threshold that is known
        assert describe_env(wrapped("CartPole-v1", other)).reward_threshold is None
    taxi = describe_env(wrapped("Taxi-v4", "flatten"))
    assert (taxi.action_mask, taxi.mask_in_info) == (None, True)


@pytest.mark.parametrize(
    ("wrappers", "frame_stack"),
    [
        (["frame_stack"], 4),
        (["flatten", "frame_stack", "clip_reward", {"name": "time_limit", "kwargs": {"max_episode_steps": 9}}], 4),
        (["frame_stack", "flatten"], 0),
        ([{"name": "frame_stack", "kwargs": {"stack_size": 1}}], 0),
        (["frame_stack", "toy_wraps.Whole"], 0),
        (
            [
                {
                    "name": "gymnasium.wrappers.FrameStackObservation",
                    "kwargs": {"stack_size": 3, "padding_type": "zero"},
                }
            ],
            0,
        ),
    ],
)
def test_frames_travel_singly_where_nothing_is_done_to_their_stack(
    wrappers: list[Any], frame_stack: int, own: Path
) -> None:
    settings = wrapped("CartPole-v1", *wrappers)
    assert describe_env(settings).frame_stack == frame_stack
    assert make_shard(settings, 1, 0, 2).frame_stack == frame_stack


@pytest.mark.parametrize("base", [CARTPOLE, DQN], ids=["ppo", "dqn"])
def test_training_is_the_same_on_frames_and_on_whole_stacks(base: dict[str, Any], own: Path) -> None:
    """Of the second nobody knows that they are stacks, so that they travel, and lie in the replay, as they are."""
    facts = []
    for wrappers in (["frame_stack"], ["frame_stack", "toy_wraps.Whole"]):
        config = config_of(base | {"env": {"id": "CartPole-v1", "wrappers": wrappers}, "stop": {"env_steps": 256 * 4}})
        facts.append(run_trainer(config, LocalExecution(), own / f"run{len(facts)}").facts)
    assert facts[0] == facts[1]
    plain = run_trainer(config_of(base, "stop.env_steps=1024"), LocalExecution(), own / "plain")
    assert plain.facts != facts[0]
    player = load_policy(own / "run0")
    env = player.make_env()
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4, 4) and env.action_space.contains(player.act(obs))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_no_form_that_knows_no_wrappers_is_taken(env_id: str) -> None:
    assert not isinstance(make_shard(wrapped(env_id), 1, 0, 2), SingleShard)
    assert isinstance(make_shard(wrapped(env_id, "clip_reward"), 1, 0, 2), SingleShard)
    for form, reason in {"native": "no vector form", "table": "env.wrappers may change what its table says"}.items():
        with pytest.raises(UserError, match=reason):
            make_shard(wrapped(env_id, "clip_reward", vectorize=form), 1, 0, 2)


# --- packages of envs ----------------------------------------------------------------------------------------------


def test_the_limit_that_minigrid_keeps_by_itself_is_known() -> None:
    pytest.importorskip("minigrid")
    assert describe_env(wrapped("MiniGrid-Empty-5x5-v0")).max_episode_steps == 100
    assert describe_env(wrapped("MiniGrid-Empty-5x5-v0", max_episode_steps=7)).max_episode_steps == 7


@pytest.mark.parametrize(
    ("settings", "module"),
    [
        (wrapped("ALE/Pong-v5", "atari"), "ale_py"),
        (wrapped("MiniGrid-Empty-5x5-v0"), "minigrid"),
        (wrapped("MiniGrid-Empty-5x5-v0", "minigrid.wrappers.ImgObsWrapper"), "minigrid"),
        (wrapped("MinAtar/Breakout-v1"), "minatar"),
        (wrapped("HalfCheetah-v5"), "mujoco"),
    ],
    ids=["ale", "minigrid", "minigrid, image alone", "minatar", "mujoco"],
)
def test_envs_of_packages_can_be_learnt_and_rebuilt(
    settings: EnvSettings, module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(module)
    capfd.readouterr()
    found = explore(settings, seed=1, seconds=0.02)
    assert found.algorithms["ppo"] is None
    assert [text for text in found.warnings if "determin" in text or "reset(seed" in text] == []
    assert capfd.readouterr() == ("", "")  # no greeting, and nothing that each process would tell again


def test_no_episode_of_minatar_begins_with_the_last_action_of_another() -> None:
    """With stickiness 1 all actions are the first, which nobody has taken."""
    pytest.importorskip("minatar")
    env = make_env(wrapped("MinAtar/Breakout-v1", kwargs={"sticky_action_prob": 0.0}))
    env.reset(seed=0)
    env.step(1)
    env.unwrapped.game.sticky_action_prob = 1.0  # type: ignore[attr-defined]
    env.reset(seed=1)
    after = [env.step(2)[0] for _ in range(3)]
    fresh = make_env(wrapped("MinAtar/Breakout-v1", kwargs={"sticky_action_prob": 1.0}))
    fresh.reset(seed=1)
    assert data_equivalence(after, [fresh.step(2)[0] for _ in range(3)])


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "parts"),
    [
        ("frame_stak", ["'frame_stak'; it must be one of atari, clip_reward", "Did you mean 'frame_stack'?"]),
        ("no_such.Thing", ["'no_such:Thing'; it must be one of", "No module named 'no_such'"]),
        ("no_such:Thing", ["or a wrapper in a module", "No module named 'no_such'"]),
        ("gymnasium.wrappers.ClipActoin", ["no attribute 'ClipActoin'. Did you mean 'ClipAction'?"]),
        ("toy_wraps.SOMETHING", ["'toy_wraps.SOMETHING', which is of type int and no wrapper"]),
        ("toy_wraps.nothing", ["is no wrapper: around 'CartPole-v1' it gives a NoneType"]),
        ("toy_wraps.Broken", ["RuntimeError: the toy broke (", "toy_wraps.py, line "]),
        ("atari", ["cannot be put around 'CartPole-v1'", "no env of ale-py"]),
        (
            {"name": "frame_stack", "kwargs": {"size": 4}},
            ["with kwargs {'size': 4}", "argument 'size'; it takes stack_size. Change"],
        ),
        ("time_limit", ["argument: 'max_episode_steps'"]),
        ("select", ["argument: 'indices'"]),
        ({"name": "select", "kwargs": {"indices": [0, 4]}}, ["indices are [0, 4]", "from 0 to 3"]),
        ({"name": "select", "kwargs": {"indices": []}}, ["indices are []", "from 0 to 3"]),
        ("gymnasium.wrappers.vector.ClipReward", ["'gymnasium.wrappers.vector.ClipReward' cannot be put around"]),
        ("normalize_obs", ["statistics", "set normalize.obs=true"]),
        ("normalize_reward", ["statistics", "set normalize.reward=true"]),
        ("gymnasium.wrappers.NormalizeObservation", ["statistics", "set normalize.obs=true"]),
        ("gymnasium.wrappers:NormalizeReward", ["statistics", "set normalize.reward=true"]),
        ("toy_wraps.normalised", ["'toy_wraps.normalised', which keeps statistics", "normalize.reward=true"]),
    ],
    ids=str,
)
def test_what_is_no_wrapper_is_refused_in_one_message(around: Any, parts: list[str], own: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_env(wrapped("CartPole-v1", around))
    assert [part for part in parts if part not in str(caught.value)] == []
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("wrappers", "message"),
    [
        (["frame_stak"], "Did you mean 'frame_stack'"),
        ([{"nam": "flatten"}], "unknown key 'env.wrappers.0.nam'. Did you mean 'name'"),
        ([{"kwargs": {}}], "env.wrappers.name is missing in {'kwargs': {}}"),
        ("flatten", "env.wrappers is 'flatten': a list is due; give it in brackets, env.wrappers=[...]"),
        ([{"name": "flatten", "kwargs": {"a": float("inf")}}], "a is inf"),
    ],
)
def test_a_config_is_checked_before_an_env_is_made(wrappers: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(CARTPOLE | {"env": {"id": "CartPole-v1", "wrappers": wrappers}})
    assert message in str(caught.value)


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_looks_at_the_wrapped_env() -> None:
    limit = "{name: time_limit, kwargs: {max_episode_steps: 9}}"
    info = describe_env(env_settings("CartPole-v1", [], ["frame_stack", limit]))
    assert (info.observation_space.shape, info.max_episode_steps) == ((4, 4), 9)


def test_commands_find_wrappers_where_they_are_given(own: Path) -> None:
    done = distrl("env", "CartPole-v1", "--wrapper", "frame_stack", "--wrapper", "toy_wraps.Whole", cwd=own)
    assert done.returncode == 0 and "(4, 4)" in done.stdout and "copies stepped one by one" in done.stdout
    config = SMALL | {"env": {"id": "CartPole-v1", "wrappers": ["frame_stack", "toy_wraps:Double"]}}
    done = distrl(
        "train", write(own, config), "run_dir=run", "stop.env_steps=512", "-q", cwd=own
    )  # by processes of Ray
    assert done.returncode == 0, done.stderr
    done = distrl("evaluate", "run", "--episodes", "2", cwd=own)
    assert done.returncode == 0, done.stderr
    done = distrl("train", "config.yaml", "env.wrappers=[frame_stak]", "-q", cwd=own)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "Did you mean 'frame_stack'?" in done.stderr
