"""A policy acts by the same numbers in training, evaluation, play, videos and MLflow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toys import WALK, layout_of, settings

from distrl.acting.codings import Bins
from distrl.acting.spaces import action_distribution, stochastic_policy
from distrl.acting.tables import TablePolicy
from distrl.envs.make import describe_env, make_env
from distrl.models.play import by_policy
from distrl.models.player import load_policy
from distrl.models.store import write_model
from distrl.models.video import record_video
from distrl.settings import RolloutSettings
from distrl.tracking.mlflow_model import GreedyPolicy
from distrl.types import Array, Spread, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.runner import Runner

BELOW = 0.5 - 1e-12  # as float64 in the first of two bins, as float32 in the second


class Edge(gym.Env[Array, int]):
    """Stays on the edge of two bins for 3 steps; the reward is the action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(0, 1, (1,), np.float64)
    action_space: gym.Space[Any] = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self.steps = 0
        return np.array([BELOW]), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.array([BELOW]), float(action), self.steps == 3, False, {}

    def render(self) -> Any:
        return np.zeros((16, 16, 3), np.uint8)


if "toys/Edge-v0" not in gym.registry:
    gym.register("toys/Edge-v0", Edge)
EDGE = settings("toys/Edge-v0")


@pytest.fixture
def policy() -> TablePolicy:
    """Takes action b in bin b."""
    policy = TablePolicy(layout_of((1,)), Bins((2,), (0.0,), (1.0,), ("0",)), actions=2)
    policy.load(np.array([1.0, 0.0, 0.0, 1.0, 0.0]))
    return policy


def test_a_table_sees_the_same_tile_everywhere(policy: TablePolicy, tmp_path: Path) -> None:
    weights = Weights(0, policy.vector)
    _, fragment = Runner(EDGE, RolloutSettings(envs_per_shard=2, steps=6), 1, policy).rollout(0, 0, weights, None)
    assert fragment.obs.dtype == np.float32
    assert fragment.action.tolist() == [[1, 1]] * 6  # the bin that the learner finds in the fragment

    for greedy in (True, False):
        assert Evaluator(EDGE, 1, policy).evaluate(weights, 0, 2, greedy, 0).returns == Spread(3, 0, 3, 3)
        assert record_video(by_policy(policy, 1, greedy), EDGE, tmp_path / "v.gif", 1, 1).returns == (3.0,)
    write_model(tmp_path, policy, policy.vector, {})
    player, served = load_policy(tmp_path), GreedyPolicy()
    served.load_context(SimpleNamespace(artifacts={"model": str(tmp_path)}))
    assert player.act([BELOW]) == player.act(np.array([BELOW]), greedy=False) == 1
    assert player.act([[BELOW], [0.2]]).tolist() == [1, 0]
    assert served.predict(None, np.array([[BELOW], [0.2]])).tolist() == [1, 0]


def test_mlflow_serves_what_the_player_plays_of_dicts_and_masks(tmp_path: Path) -> None:
    """Arrays by name, as it knows no nested ones."""
    env = settings(WALK, obs="dict", action="dict", mask="info")
    info, game = describe_env(env), make_env(env)
    policy = stochastic_policy(info, action_distribution(info))
    policy.load(policy.initial(np.random.default_rng(0)))
    tensors = {"observation": info.obs_layout.tensors(info.observation_space)}
    write_model(tmp_path, policy, policy.network.vector, tensors)
    player, served = load_policy(tmp_path), GreedyPolicy()
    served.load_context(SimpleNamespace(artifacts={"model": str(tmp_path)}))
    for seed in range(5):
        obs, said = game.reset(seed=seed)
        played = player.act(obs, action_mask=said["action_mask"])
        given = {
            "grid": obs["grid"],
            "more.0": obs["more"][0],
            "more.1": obs["more"][1],
            "place": np.array(obs["place"]),
        }
        given = {name: array[None] for name, array in (given | said).items()}
        assert {x["name"]: (x["shape"], x["dtype"]) for x in tensors["observation"]} == {
            name: (list(array.shape[1:]), str(array.dtype)) for name, array in given.items()
        }
        action = served.predict(None, given)
        assert sorted(action) == ["go.0", "go.1", "on"]
        assert action["go.0"][0] == played["go"][0]
        assert action["go.1"][0].tolist() == played["go"][1].tolist()
        assert action["on"][0].tolist() == played["on"].tolist()
