"""Maps of grid worlds: what is drawn is where the real environment goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.figure import Figure

from distrl import load_config, train
from distrl.reports.maps import ARROWS, WORLDS, plot_map

ENVS: dict[str, dict[str, Any]] = {
    "FrozenLake-v1": {"is_slippery": False},
    "FrozenLake8x8-v1": {"is_slippery": False},
    "CliffWalking-v1": {},
    "Taxi-v4": {},
}


@pytest.mark.parametrize("env_id", ENVS)
def test_every_arrow_leads_where_it_points(env_id: str) -> None:
    """By the env's own transition table, from every cell of every map, in every direction."""
    env: Any = gym.make(env_id, **ENVS[env_id]).unwrapped
    world = WORLDS[type(env).__name__](env)
    rows, columns = world.over.shape
    for state in world.panels.values():
        for (row, column), word in np.ndenumerate(world.over):
            for action, name in enumerate(world.actions):
                if word or name not in ARROWS:
                    continue
                right, up = ARROWS[name]
                there = min(max(row - up, 0), rows - 1), min(max(column + right, 0), columns - 1)
                if (row, column if right > 0 else column - 1) in world.walls and right:
                    there = row, column
                expected = (
                    state[np.nonzero(world.marks == "start")][0] if world.over[there] == "cliff" else state[there]
                )
                assert env.P[state[row, column]][action][0][1] == expected, (row, column, name)


@pytest.mark.parametrize("env_id", ENVS)
def test_where_nothing_is_done_the_episode_is_over_or_never_is(env_id: str) -> None:
    env: Any = gym.make(env_id, **ENVS[env_id]).unwrapped
    world = WORLDS[type(env).__name__](env)
    ends = {z for row in env.P.values() for moves in row.values() for _, z, _, over in moves if over}
    for state in world.panels.values():
        for z, word in zip(state.ravel().tolist(), world.over.ravel().tolist(), strict=True):
            assert (z in ends) == (word in ("hole", "goal")), (z, word)
    assert set(np.flatnonzero(env.initial_state_distrib)) <= {
        z for s in world.panels.values() for z in s.ravel().tolist()
    }


@pytest.mark.parametrize(("config", "maps"), [("q_taxi", 16), ("q_frozenlake", 1)])
def test_a_run_is_drawn(config: str, maps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["stop.env_steps=1", "evaluation.final_episodes=2", "track.mlflow=false", "track.video=false"]
    run = train(load_config(f"configs/{config}.yaml", [*overrides, f"run_dir={tmp_path}/run"]), local=True, quiet=True)
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    assert plot_map(run.run_dir, tmp_path / "map.png") == tmp_path / "map.png"
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert len([axes for axes in figures[0].axes if axes.images]) == maps
    gamma = load_config(f"configs/{config}.yaml").model_dump()["algorithm"]["gamma"]
    assert f"value of the best action, discount {gamma:g}" in [axes.get_ylabel() for axes in figures[0].axes]


def test_what_is_no_grid_world_is_not_drawn(tmp_path: Path) -> None:
    overrides = ["stop.env_steps=1", "evaluation.final_episodes=2", "track.mlflow=false", f"run_dir={tmp_path}/run"]
    train(load_config("configs/q_blackjack.yaml", overrides), local=True, quiet=True)
    assert plot_map(tmp_path / "run", tmp_path / "map.png") is None
    assert plot_map(tmp_path / "nothing", tmp_path / "map.png") is None
    assert not (tmp_path / "map.png").exists()
