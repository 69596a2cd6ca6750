"""A trained policy for other programs: observations as the env gives them, one or many, and actions as it takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from distrl.acting.spaces import action_distribution, stochastic_policy
from distrl.errors import UserError
from distrl.models.player import Player, load_policy
from distrl.models.store import write_model
from distrl.types import EnvInfo

BOX, IMAGE = gym.spaces.Box(-4, 4, (2,), np.float32), gym.spaces.Box(0, 255, (1, 9, 9), np.uint8)
PLACE, THREE = gym.spaces.Discrete(9, start=-4), gym.spaces.Discrete(3, start=2)
KINDS: dict[str, tuple[gym.Space[Any], gym.Space[Any]]] = {
    "box": (BOX, THREE),
    "discrete": (PLACE, gym.spaces.MultiBinary(2)),
    "image": (IMAGE, gym.spaces.Box(-2, 2, (1,), np.float32)),
    "parts": (
        gym.spaces.Dict({"image": IMAGE, "more": gym.spaces.Tuple([BOX, PLACE])}),
        gym.spaces.Tuple([THREE, BOX]),
    ),
    "masked": (gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(3), "box": BOX}), THREE),
}
every = pytest.mark.parametrize("kind", KINDS)


def player_for(kind: str, path: Path, seed: int = 0) -> Player:
    """One with random weights, read from a directory."""
    info = EnvInfo("Env-v0", *KINDS[kind], None, None, (), 30)
    policy = stochastic_policy(info, action_distribution(info))
    weights = np.random.default_rng(0).normal(0, 0.3, policy.network.spec.parameters).astype(np.float32)
    write_model(path, policy, weights, {})
    return load_policy(path, seed)


def observations(kind: str, count: int) -> list[Any]:
    space = KINDS[kind][0]
    space.seed(0)
    seen = [space.sample() for _ in range(count)]
    if kind == "masked":
        for one in seen:
            one["action_mask"][0] = 1  # a choice is left
    return seen


def batch_of(seen: list[Any]) -> Any:
    """As gymnasium's vector envs give it: Dicts and Tuples of arrays."""
    if isinstance(seen[0], dict):
        return {key: batch_of([one[key] for one in seen]) for key in seen[0]}
    if isinstance(seen[0], tuple):
        return tuple(batch_of(list(part)) for part in zip(*seen, strict=True))
    return np.stack(seen)


def numbers(action: Any, place: int | None = None) -> list[float]:
    """All numbers of an action, or of that at a place of a batch."""
    parts = action if isinstance(action, tuple) else (action,)
    arrays = [np.asarray(part) if place is None else part[place] for part in parts]
    return np.concatenate([np.ravel(array) for array in arrays]).tolist()


@every
def test_it_acts_for_one_as_for_many_and_in_the_envs_own_actions(kind: str, tmp_path: Path) -> None:
    player, seen = player_for(kind, tmp_path), observations(kind, 20)
    space = KINDS[kind][1]
    singles = [player.act(one) for one in seen]
    assert all(space.contains(single) for single in singles)
    assert len({str(single) for single in singles}) > 1
    many = player.act(batch_of(seen))
    for place, single in enumerate(singles):
        assert numbers(many, place) == pytest.approx(numbers(single), rel=1e-3)  # other shapes have other last bits


@every
def test_sampled_actions_are_the_seeds_and_stay_in_the_space(kind: str, tmp_path: Path) -> None:
    space = KINDS[kind][1]
    runs = []
    for seed in (1, 1, 2):
        player = player_for(kind, tmp_path, seed)
        runs.append([player.act(one, greedy=False) for one in observations(kind, 30)])
    assert all(space.contains(act) for run in runs for act in run)
    assert str(runs[0]) == str(runs[1]) != str(runs[2])


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("box", np.zeros(3, np.float32), r"shape \[3\], the space says \[2\]"),
        ("image", np.zeros((9, 9), np.uint8), r"the space says \[1, 9, 9\]"),
        ("parts", {"image": np.zeros((1, 9, 9), np.uint8)}, "is missing"),
        ("masked", {"box": np.zeros(2, np.float32)}, "'action_mask'"),
        ("masked", {"box": np.zeros(2, np.float32), "action_mask": np.zeros(3, np.int8)}, "allows nothing"),
    ],
)
def test_what_is_no_observation_is_refused(kind: str, wrong: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        player_for(kind, tmp_path).act(wrong)


def test_where_there_is_no_model_the_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no run or model at '{tmp_path / 'nowhere'}'"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no model yet"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("box", r"the observation has 1 NaN, the first at \[1\]"), ("parts", r"'more.0' of the observation has 1 NaN")],
)
def test_nan_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    player = player_for(kind, tmp_path)
    one = observations(kind, 1)[0]
    player.act(one)
    (one if kind == "box" else one["more"][0])[1] = np.nan
    for greedy in (True, False):
        with pytest.raises(ValueError, match=message):
            player.act(one, greedy=greedy)


def test_nan_is_refused_in_a_batch_and_an_infinity_is_not(tmp_path: Path) -> None:
    player = player_for("box", tmp_path)
    batch = np.zeros((3, 2), np.float64)
    batch[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"the first at \[2, 0\]"):
        player.act(batch)
    batch[2, 0] = np.inf
    assert player.act(batch).shape == (3,)
