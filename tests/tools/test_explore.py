"""What `distrl env ID` finds, in good environments and in broken ones."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from distrl.cli.machine import render_exploration
from distrl.envs.make import describe_env
from distrl.errors import EnvError, UserError
from distrl.registry import ALGORITHMS
from distrl.settings import EnvSettings
from distrl.tools.env_checks import Played, play_warnings
from distrl.tools.explore import Exploration, explore
from distrl.types import Array

SECONDS = 0.1
made = itertools.count()  # differs between two copies


class Sound(gym.Env[Array, int]):
    """Nothing is wrong with it; the others break one thing each, or many."""

    observation_space: gym.Space[Any] = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space: gym.Space[Any] = gym.spaces.Discrete(2)
    reward: float | None = 1.0  # None: random

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = self.reward if self.reward is not None else self.np_random.random()
        return self.observe(), reward, self.t == 300, False, {}


class Chaos(Sound):
    """Wrong in everything that one array of observations can be wrong in."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2, start=1)
    reward = -5000.0

    def observe(self) -> Any:
        return np.array([1e6 * self.t, float(next(made))])


class Forgetful(Sound):
    """Equal in fresh copies; its reset leaves something of the past."""

    def __init__(self) -> None:
        self.past = 0

    def observe(self) -> Any:
        return np.array([0.0, (self.past % 97) / 100], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.past += 1 + int(action)
        return super().step(action)


class Masked(Sound):
    """Forbids actions for reasons of its own."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"action_mask": np.array([1, 0], np.int8)}


class MaskedInVain(Sound):
    """Masks numbers, of which there is no choice."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], {"action_mask": np.ones(1, np.int8)}


class Photo(Sound):
    observation_space = gym.spaces.Box(0, 1, (48, 64, 3), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def observe(self) -> Any:
        return np.zeros((48, 64, 3), np.float32)


class Nested(Sound):
    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (2,), np.float32)})

    def observe(self) -> Any:
        return {"a": np.zeros(2, np.float32)}


class Worded(Sound):
    observation_space = gym.spaces.Text(5)

    def observe(self) -> Any:
        return "go"


class Outside(Sound):
    def observe(self) -> Any:
        return np.array([0.5, 1.5], np.float32)


class Misshapen(Sound):
    def observe(self) -> Any:
        return np.zeros(3, np.float32)


class NotANumber(Sound):
    reward = float("nan")


class Noisy(Sound):
    reward = None


class Raising(Sound):
    def step(self, action: Any) -> Any:
        raise ZeroDivisionError("no friction")


ENVS: tuple[Any, ...] = (
    Sound,
    Chaos,
    Forgetful,
    Masked,
    MaskedInVain,
    Photo,
    Nested,
    Worded,
    Outside,
    Misshapen,
    NotANumber,
    Noisy,
    Raising,
)


@pytest.fixture(autouse=True, scope="module")
def _envs() -> Iterator[None]:
    for cls in ENVS:
        limit = None if cls is Chaos else 50
        gym.register(f"Explore{cls.__name__}-v0", cls, max_episode_steps=limit)
    yield
    for cls in ENVS:
        del gym.registry[f"Explore{cls.__name__}-v0"]


def look_at(env: type[Sound] | str) -> Exploration:
    return explore(
        EnvSettings(id=env if isinstance(env, str) else f"Explore{env.__name__}-v0"), seed=1, seconds=SECONDS
    )


def rendered(exploration: Exploration) -> str:
    out = io.StringIO()
    render_exploration(exploration, Console(file=out, width=100))
    return out.getvalue()


def test_cartpole_is_described_and_sound() -> None:
    e = look_at("CartPole-v1")
    assert e.warnings == ()
    assert (e.info.max_episode_steps, e.info.reward_threshold, e.native) == (500, 475, True)
    assert e.info.render_modes == ("human", "rgb_array")
    assert e.reward_range == (1.0, 1.0)
    assert e.returns == tuple(map(float, e.lengths))
    assert 8 < np.mean(e.lengths) < 100
    assert e.single_steps_per_s > 0
    assert e.shard_steps_per_s is not None
    assert e.shard_steps_per_s > 0
    assert e.algorithms["ppo"] is None


@pytest.mark.parametrize("env", ["LunarLander-v3", "FrozenLake-v1", Sound, Noisy])
def test_sound_envs_get_no_warning(env: type[Sound] | str) -> None:
    e = look_at(env)
    assert e.warnings == ()
    assert not e.native


def test_random_play_depends_on_the_seed_alone() -> None:
    one, two = look_at(Noisy), look_at(Noisy)
    assert one.returns[0] == two.returns[0]


@pytest.mark.parametrize(
    ("env", "warnings"),
    [
        (
            Chaos,
            ["time limit", "float64", "numbered from 1", "-5000", "badly scaled", "no bounds", "not deterministic"],
        ),
        (Forgetful, ["reset(seed=...) does not set back everything"]),
        (Photo, ["images are float32"]),
        (Nested, []),
        (Worded, []),
        (Outside, ["component [1] is 1.5, outside [-1, 1]"]),
        (Misshapen, ["its shape is [3], the space says [2]", "cannot be stepped together"]),
        (NotANumber, ["NaN"]),
        (Masked, ["action_mask after a step, but not after a reset"]),
        (MaskedInVain, ["action_mask, which is not used: actions are Box(-1.0, 1.0, (1,), float32)"]),
        ("Taxi-v4", []),
    ],
)
def test_what_is_wrong_is_told_and_nothing_else(env: type[Sound] | str, warnings: list[str]) -> None:
    found = look_at(env).warnings
    for warning in warnings:
        assert any(warning in line for line in found), (warning, found)
    for line in found:
        assert any(warning in line for warning in warnings), line


def test_algorithms_say_why_they_do_not_fit() -> None:
    reasons = look_at(Worded).algorithms
    assert reasons.keys() == ALGORITHMS.names().keys()
    assert all(reason and "Text" in reason for reason in reasons.values())
    assert look_at(Nested).algorithms["ppo"] is None


TEAMS = {  # what is told of envs of several agents
    "mpe2/simple_spread_v3": ["distrl's, in arrays", "a step of an agent", "25 steps"],
    "classic/tictactoe_v3": ["distrl's, in arrays", "-1 to 1 a step of an agent", "(9,), int8"],
    "sisl/multiwalker_v9": ["copies stepped one by one", "500 steps"],
    "mpe2/simple_tag_v3": ["per_agent, or groups of those that are alike", "agent_0: Box(-inf, inf, (14,), float32)"],
}


@pytest.mark.parametrize("env", TEAMS)
def test_several_agents_are_told_of(env: str) -> None:
    text = rendered(look_at(env))
    assert all(word in text for word in TEAMS[env]) and "no time limit" not in text


def test_remedies_are_those_that_several_agents_have() -> None:
    info = describe_env(EnvSettings(id="teams:Crowd"))
    [limit, told] = play_warnings(info, Played(returns=[-500.0], reward_low=-500.0, reward_high=1.0))
    assert "env.max_episode_steps" in limit and told.endswith("Set normalize.reward=true (ppo, a2c).")


def test_env_that_raises_is_told_with_its_traceback() -> None:
    with pytest.raises(EnvError, match="no friction"):
        look_at(Raising)


def test_unknown_id_is_told() -> None:
    with pytest.raises(UserError, match="Did you mean 'CartPole"):
        look_at("CartPoel-v1")


def test_rendering_shows_all_of_it() -> None:
    text = rendered(look_at("CartPole-v1"))
    for word in (
        "CartPole-v1",
        "Discrete(2)",
        "(4,), float32",
        "500 steps",
        "475",
        "native",
        "env steps/s",
        "ppo",
        "fits",
    ):
        assert word in text
    assert "no warnings" in text
    assert "[-4.8 -inf" in text  # brackets are no markup
    text = rendered(look_at(Outside))
    assert "warning an observation is not in the observation space" in text
    assert "does not fit" in text
