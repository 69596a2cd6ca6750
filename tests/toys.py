"""Small environments whose every number is known beforehand. Importing this module registers them with gymnasium."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.acting.distributions import Categorical
from distrl.acting.encoders import Convolution, Encoder
from distrl.acting.network import NetworkSpec
from distrl.acting.policies import StochasticPolicy
from distrl.envs.journal import Journal, Underway, compact
from distrl.envs.shard import Shard
from distrl.layouts import Layout, Part, discrete_layout, observation_layout
from distrl.models.store import WITHOUT_CHECKSUM
from distrl.settings import EnvSettings
from distrl.types import Array, Snapshot

SCRIPT, BANDIT, DIE, RECALL, TWIN, WALK = (
    f"toys/{_name}-v0" for _name in ("Script", "Bandit", "Die", "Recall", "Twin", "Walk")
)
BREAK = 2  # the action that makes Script raise

on_make: Callable[[], None] = lambda: None  # called by Script when it is made
on_step: Callable[[], None] = lambda: None  # and in each step
_ticks = itertools.count()  # the world outside an env, which no seed brings back


class Script(gym.Env[Array, Any]):
    """Shows how many steps the episode has had, and a number that its seed gave it. Reward: step + action / 10."""

    def __init__(
        self,
        terminate_at: int | None = None,
        truncate_at: int | None = None,
        unsteady: float = 0.0,
        first_action: int = 0,
        dtype: str = "float64",
        broken_reset: bool = False,
    ) -> None:
        on_make()
        self.terminate_at, self.truncate_at, self.unsteady = terminate_at, truncate_at, unsteady
        self.broken_reset = broken_reset
        high = 255 if dtype == "uint8" else np.inf
        self.observation_space = gym.spaces.Box(0, high, (2,), np.dtype(dtype).type)
        self.action_space = gym.spaces.Discrete(3, start=first_action)
        self.first_action = first_action
        self.steps, self.number = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        if self.broken_reset:
            raise RuntimeError("the toy broke in reset")
        self.steps, self.number = 0, int(self.np_random.integers(256))
        return self.show(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        on_step()
        if action == self.first_action + BREAK:
            raise RuntimeError("the toy broke in step")
        self.steps += 1
        reward = self.steps + float(action - self.first_action) / 10
        return self.show(), reward, self.steps == self.terminate_at, self.steps == self.truncate_at, {}

    def show(self) -> Array:
        drift = next(_ticks) if self.number < 256 * self.unsteady else 0
        return np.array([self.steps, self.number + drift], self.observation_space.dtype)


class Bandit(gym.Env[Array, Any]):
    """One step: 1 for naming the lit one of two lamps, else 0. An odd `swap` pays for the dark one instead."""

    def __init__(self, swap: int = 0) -> None:
        self.swap = swap
        self.observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.lit = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.lit = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.lit], {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return np.eye(2, dtype=np.float32)[self.lit], float(action == (self.lit + self.swap) % 2), True, False, {}


class Die(gym.Env[Array, Any]):
    """An episode lasts 1 or 21 steps, as a fair coin says at its start, and pays 1 a step: 11 on average."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([1, 21]))
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


class Recall(gym.Env[Array, Any]):
    """Shows a bit at first, and nothing of it later. The action `wait` steps on, when a light is on, pays 1 if it is the bit."""

    def __init__(self, wait: int = 4) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.wait, self.steps, self.bit = wait, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.bit = 0, int(self.np_random.integers(2))
        return np.array([2 * self.bit - 1, 0], np.float32), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        over, paid = self.steps == self.wait, self.steps == self.wait and action == self.bit
        self.steps += 1
        return np.array([0, self.steps == self.wait], np.float32), float(paid), over, False, {}


class Twin(gym.Env[Any, Any]):
    """Spaces that not every algorithm can take."""

    def __init__(self, action: str = "discrete", obs: str = "box") -> None:
        box = gym.spaces.Box(0, 1, (2,), np.float32)
        self.action_space = {
            "discrete": gym.spaces.Discrete(2),
            "box": box,
            "unbounded": gym.spaces.Box(-1, np.inf, (2,), np.float32),
            "text": gym.spaces.Text(5),
        }[action]
        self.observation_space = {
            "box": box,
            "discrete": gym.spaces.Discrete(4),
            "text": gym.spaces.Text(5),
            "square": gym.spaces.Box(0, 1, (2, 2), np.float32),
            "square of bits": gym.spaces.MultiBinary([2, 2]),
            "pair": gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (1,), np.float32), "b": gym.spaces.Discrete(2)}),
            "image": gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
            "small image": gym.spaces.Box(0, 255, (3, 20, 84), np.uint8),
        }[obs]


def read(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Shows how long a text is."""
    return gym.wrappers.TransformObservation(
        env, lambda text: np.array([len(text)], np.float32), gym.spaces.Box(0, 9, (1,), np.float32)
    )


def written(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Takes a number of words for a text."""
    return gym.wrappers.TransformAction(env, lambda words: "go " * words, gym.spaces.Discrete(3))


class Walk(gym.Env[Any, Any]):
    """A walk between two cliffs, pushed by the action and by chance, that pays 1 for a push to the middle.

    It is seen and pushed in many spaces. With `mask` one of the pushes, drawn at every step, is forbidden: it says so in
    the info, or in a Dict around what is seen.
    """

    FAR = 4

    def __init__(
        self, obs: str = "box", action: str = "discrete", first_action: int = 0, mask: str = "", bad_mask: Any = None
    ) -> None:
        """`bad_mask`: what the third mask is instead."""
        self.obs, self.action, self.first_action, self.mask = obs, action, first_action, mask
        places, bytes_ = 2 * self.FAR + 1, (0, 255)
        self.action_space = {
            "discrete": gym.spaces.Discrete(3, start=first_action),
            "multi": gym.spaces.MultiDiscrete([2, 3], start=[5, first_action]),
            "bits": gym.spaces.MultiBinary(2),
            "box": gym.spaces.Box(np.array([-6.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float64),
            "dict": gym.spaces.Dict(
                {"go": gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2, 1)))), "on": gym.spaces.MultiBinary(2)}
            ),
        }[action]  # fmt: skip
        seen: dict[str, gym.Space[Any]] = {
            "box": gym.spaces.Box(-self.FAR, self.FAR, (2,), np.float32),
            "discrete": gym.spaces.Discrete(places, start=-self.FAR),
            "multi": gym.spaces.MultiDiscrete([places, 2], start=[-self.FAR, 0]),
            "bits": gym.spaces.MultiBinary(places),
            "image": gym.spaces.Box(*bytes_, (1, 36, 36), np.uint8),
            "grid": gym.spaces.Box(*bytes_, (places, 7, 3), np.uint8),
        }
        nested = gym.spaces.Tuple((seen["bits"], gym.spaces.Box(-9, 9, (2,), np.float64)))
        seen["dict"] = gym.spaces.Dict(
            {"grid": seen["grid"], "more": nested, "place": seen["discrete"], "text": gym.spaces.Text(9)}
        )
        self.observation_space = seen[obs]
        self.choices = {"discrete": 3, "multi": 5, "dict": 3}.get(action, 0)
        if mask == "dict":
            space = gym.spaces.MultiBinary(self.choices)
            self.observation_space = gym.spaces.Dict({"action_mask": space, "seen": seen[obs]})
        self.place, self.forbidden, self.bad_mask, self.masks = 0, -1, bad_mask, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(-2, 3))
        return self.show()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        push = self.push(action)
        assert push + 1 != self.forbidden, "a forbidden push"
        reward = float(push * self.place < 0)
        self.place = int(np.clip(self.place + push + self.np_random.integers(-1, 2), -self.FAR, self.FAR))
        obs, info = self.show()
        return obs, reward, abs(self.place) == self.FAR, False, info

    def push(self, action: Any) -> int:
        match self.action:
            case "discrete":
                return int(action) - self.first_action - 1
            case "multi":
                return int(action[1]) - self.first_action - 1
            case "bits":
                return int(action[0]) - int(action[1])
            case "box":
                return int(np.sign(action[0] + 2))
        return int(action["go"][0]) - 1

    def show(self) -> tuple[Any, dict[str, Any]]:
        if not self.mask:
            return self.look(self.obs), {}
        self.forbidden = int(self.np_random.integers(3))
        allowed = np.ones(self.choices, np.int8)
        allowed[self.choices - 3 + self.forbidden] = 0
        self.masks += 1
        if self.bad_mask is not None and self.masks == 3:
            allowed = np.array(self.bad_mask)
        if self.mask == "info":
            return self.look(self.obs), {"action_mask": allowed}
        return {"seen": self.look(self.obs), "action_mask": allowed}, {}

    def look(self, obs: str) -> Any:
        column = self.place + self.FAR
        match obs:
            case "discrete":
                return self.place
            case "box":
                return np.array([self.place, 1], np.float32)
            case "multi":
                return np.array([self.place, self.place > 0])
            case "bits":
                return np.eye(2 * self.FAR + 1, dtype=np.int8)[column]
            case "dict":
                more = (self.look("bits"), np.array([self.place, np.pi]))
                return {"grid": self.look("grid"), "more": more, "place": self.place, "text": "go"}
            case "grid":
                grid = np.zeros((2 * self.FAR + 1, 7, 3), np.uint8)
                grid[column] = 3
                return grid
        image = np.zeros((1, 36, 36), np.uint8)
        image[0, :, 4 * column :][:, :4] = 255
        return image


_ENVS: dict[str, Any] = {SCRIPT: Script, BANDIT: Bandit, DIE: Die, RECALL: Recall, TWIN: Twin, WALK: Walk}
for _id, _env in _ENVS.items():
    if _id not in gym.registry:
        gym.register(_id, entry_point=_env)


def settings(env_id: str, limit: int | None = None, vectorize: str = "auto", **kwargs: Any) -> EnvSettings:
    return EnvSettings.model_validate(
        {"id": env_id, "max_episode_steps": limit, "vectorize": vectorize, "kwargs": kwargs}
    )


# Every kind of space, by what is told of it.
ENVS: dict[str, EnvSettings] = {
    "box": settings(WALK, 12),
    "box, first action 3": settings(WALK, 12, first_action=3),
    "discrete": settings(WALK, 12, obs="discrete", first_action=-1),
    "multi": settings(WALK, 12, obs="multi"),
    "bits": settings(WALK, 12, obs="bits"),
    "image": settings(WALK, 12, obs="image"),
    "grid": settings(WALK, 12, obs="grid"),
    "dict": settings(WALK, 12, obs="dict"),
    "multi actions": settings(WALK, 12, action="multi", first_action=2),
    "bits actions": settings(WALK, 12, action="bits"),
    "continuous": settings(WALK, 12, action="box"),
    "dict actions": settings(WALK, 12, obs="dict", action="dict"),
    "mask in a dict": settings(WALK, 12, obs="discrete", mask="dict"),
    "mask in the info": settings(WALK, 12, mask="info", first_action=1),
    "mask of multi": settings(WALK, 12, obs="dict", action="multi", mask="dict"),
    "mask of a part": settings(WALK, 12, action="dict", mask="info"),
}


class Played:
    """A shard, with what a runner and the driver keep of it: so it has snapshots."""

    def __init__(self, shard: Shard) -> None:
        self.shard, self.underway, self.journal, self.fragments = shard, Underway(len(shard.obs)), Journal(None), 0

    def play(self, actions: Array) -> list[list[Array]]:
        """A fragment of the actions [T, N]. Returns a copy of all that each step says."""
        steps = []
        for action in actions:
            step = self.shard.step(action)
            self.underway.count(step)
            steps.append([step.obs.copy(), step.reward, step.terminated, step.truncated, np.array(step.final_obs)])
        self.fragments += 1
        returns, lengths = self.underway.returns.copy(), self.underway.lengths.copy()
        after = Snapshot(self.fragments, returns, lengths, self.shard.arrays())
        self.journal.add(after, compact(actions) if self.shard.replays else None)
        return steps

    def snapshot(self) -> Snapshot:
        """As another process gets it: pickled, read-only."""
        again: Snapshot = pickle.loads(pickle.dumps(self.journal.before(self.fragments)))  # noqa: S301
        for array in (again.returns, again.lengths, *again.env.values()):
            array.flags.writeable = False
        return again


def states(count: int, actions: int, allowed: Array | None = None, start: int = 0) -> Layout:
    """Of a Discrete space, and the masks of its states."""
    return observation_layout(gym.spaces.Discrete(count, start=start), (actions,), states=allowed)


def layout_of(shape: tuple[int, ...] = (), dtype: str = "float32") -> Layout:
    """Of single arrays."""
    return Layout((Part((), "box", shape, dtype),), shape, dtype)


def spec_of(
    obs_shape: tuple[int, ...],
    outputs: int,
    hidden: tuple[int, ...] = (64, 64),
    conv: tuple[Convolution, ...] = (),
    activation: str = "tanh",
    scale: float = 1.0,
    layer_norm: bool = False,
    dueling: bool = False,
) -> NetworkSpec:
    """For observations that are one array."""
    part = Part((), "box", obs_shape, "uint8" if conv else "float32")
    return NetworkSpec((Encoder(part, conv, scale=scale),), outputs, hidden, activation, layer_norm, dueling)


def obs_layout(spec: NetworkSpec) -> Layout:
    """Of what `spec_of` above sees."""
    part = spec.encoders[0].part
    return layout_of(part.shape, part.dtype)


def categorical(spec: NetworkSpec, first_action: int = 0, probs: tuple[float, ...] = ()) -> StochasticPolicy:
    actions = Categorical(spec.outputs, first_action, probs)
    return StochasticPolicy(spec, actions, obs_layout(spec), discrete_layout(spec.outputs, first_action))


def same(left: Array, right: Array) -> bool:
    """Equal in type, shape and every bit."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def rewrite_model(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the policy.json of a model, as that of the format from before there was a checksum of it."""
    file = path / "policy.json"
    about = json.loads(file.read_text())
    del about["checksum"]
    about["format"] = WITHOUT_CHECKSUM
    change(about)
    file.write_text(json.dumps(about))
    return path
