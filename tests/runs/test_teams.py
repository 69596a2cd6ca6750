"""A run of several agents from its config to all that is done with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import config_of
from typer.testing import CliRunner

from distrl import load_policy, train
from distrl.cli import app
from distrl.config import load_config
from distrl.envs.multi import Team
from distrl.errors import UserError
from distrl.models.evaluate import load_to_play, play_episodes
from distrl.models.play import by_policy
from distrl.models.play import play_episodes as moments
from distrl.models.video import record_video
from distrl.reports.curves import plot_runs
from distrl.runs.plan import plan_run
from distrl.seeding import derive
from distrl.tools.export import export
from distrl.tracking.metrics import read_metrics

BASE: dict[str, Any] = {
    "env": {"id": "mpe2/simple_spread_v3", "kwargs": {"N": 2, "max_cycles": 8}},
    "algorithm": {"name": "ppo", "minibatch_size": 64, "hidden": [16]},
    "rollout": {"shards": 2, "envs_per_shard": 4, "steps": 16},
    "stop": {"env_steps": 640},
    "evaluation": {"every": 2, "episodes": 3, "final_episodes": 5},
    "track": {"mlflow": False},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("runs") / "team"
    train(load_config(BASE | {"run_dir": str(where)}), local=True, quiet=True)
    return where


def test_returns_are_sums_over_agents_everywhere(run_dir: Path) -> None:
    evaluation = json.loads((run_dir / "result.json").read_text())["evaluation"]
    assert sorted(evaluation["agents"]) == ["agent_0", "agent_1"]
    assert evaluation["mean"] == pytest.approx(sum(of["mean"] for of in evaluation["agents"].values()))
    assert evaluation["length"]["mean"] == 8
    row = [row for row in read_metrics(run_dir / "metrics.jsonl") if "train/return_mean" in row][-1]
    parts = [row[f"train/agents/agent_{i}_mean"] for i in range(2)]
    assert row["train/return_mean"] == pytest.approx(sum(parts)) and row["env_steps"] == 640
    found, _ = play_episodes(run_dir, 5, greedy=True, seed=1)
    assert found.mean == pytest.approx(sum(of.mean for of in found.agents.values()))
    assert (run_dir / "plots" / "learning_curve.png").exists() and (run_dir / "videos" / "best.webm").exists()


def test_people_are_told_what_each_reached(run_dir: Path) -> None:
    told = CliRunner().invoke(app, ["evaluate", str(run_dir), "--episodes", "3"])
    assert told.exit_code == 0 and "agents: agent_0 -" in told.output
    card = (run_dir / "best" / "README.md").read_text()
    assert "Agents: agent_0 -" in card and "action = policy.act(obs, agent=name)" in card


def test_each_agent_is_acted_for_by_its_name(run_dir: Path) -> None:
    """A plain loop of PettingZoo with `load_policy`, against the episode that is recorded."""
    player = load_policy(run_dir)
    policy, _env, _ = load_to_play(run_dir)
    team = player.make_env()
    assert isinstance(team, Team)
    played = list(moments(by_policy(policy, 3), team, 3, 1))
    game, total = team.game, 0.0
    obs, _ = game.reset(seed=derive(3, "play episode", 0))
    for moment in played[1:]:
        action = {agent: player.act(obs[agent], agent=agent) for agent in game.agents}
        assert action == moment.action
        obs, reward, *_ = game.step(action)
        assert moment.rewards == dict(reward)
        total += sum(reward.values())
    assert not game.agents and total == pytest.approx(sum(moment.reward for moment in played))
    batch = np.stack([obs["agent_1"]] * 3)
    assert player.act(batch, agent="agent_1").tolist() == [player.act(obs["agent_1"], agent="agent_1")] * 3
    for agent, message in ((None, "agent is None; it must be one of agent_0, agent_1"), ("x", "agent is 'x'")):
        with pytest.raises(UserError, match=message):
            player.act(obs["agent_0"], agent=agent)


def test_each_agent_remembers_for_itself(tmp_path: Path) -> None:
    memory = {**BASE["algorithm"], "memory": {"size": 8}, "shared_body": True, "lr": 0.05}
    train(load_config(BASE | {"run_dir": str(tmp_path / "run"), "algorithm": memory}), local=True, quiet=True)
    player = load_policy(tmp_path / "run")
    policy, _env, _ = load_to_play(tmp_path / "run")
    team, total = player.make_env(), 0.0
    played = list(moments(by_policy(policy, 3), team, 3, 1))
    assert isinstance(team, Team)
    obs, _ = team.game.reset(seed=derive(3, "play episode", 0))
    acted = []
    for moment in played[1:]:
        action = {agent: player.act(obs[agent], agent=agent) for agent in team.game.agents}
        assert action == moment.action
        acted.append(tuple(action.values()))
        obs, reward, *_ = team.game.step(action)
        total += sum(reward.values())
    assert total == pytest.approx(sum(moment.reward for moment in played)) and len(acted) == 8


def test_it_is_recorded_plotted_and_exported(run_dir: Path, tmp_path: Path) -> None:
    policy, env, _ = load_to_play(run_dir)
    recording = record_video(by_policy(policy, 1), env, tmp_path / "a.gif", 1, episodes=1)
    assert recording.complete and recording.lengths == (8,)
    assert plot_runs([run_dir], tmp_path / "curves.png").stat().st_size > 1000
    for name in ("onnx", "safetensors", "mlflow"):
        where, told = export(run_dir, name, tmp_path / name)
        assert where.exists() and told


def test_a_masked_game_of_turns_is_learnt_and_exported(tmp_path: Path) -> None:
    data = BASE | {"env": {"id": "classic/tictactoe_v3"}, "run_dir": str(tmp_path / "run")}
    result = train(load_config(data), local=True, quiet=True)
    evaluation = result.data["evaluation"]
    assert evaluation["mean"] == 0 and set(evaluation["agents"]) == {"player_1", "player_2"}
    assert export(result.run_dir, "onnx", tmp_path / "policy.onnx")[1]
    game, player = load_policy(result.run_dir).make_env().game, load_policy(result.run_dir)
    game.reset(seed=1)
    for agent in game.agent_iter():
        obs, _, terminated, truncated, _ = game.last()
        action = None if terminated or truncated else player.act(obs, agent=agent)
        assert action is None or obs["action_mask"][action] == 1
        game.step(action)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "turns": (
        {"env.id": "classic/tictactoe_v3", "env.kwargs": {}, "algorithm": {"name": "dqn"}},
        "wait for their turns",
    ),
    "memory": (
        {
            "env.id": "classic/tictactoe_v3",
            "env.kwargs": {},
            "algorithm.memory": {},
            "algorithm.shared_body": True,
        },
        "algorithm.memory is of agents that act at every step",
    ),
    "memory and a central critic": (
        {"algorithm.memory": {}, "algorithm.critic": "central"},
        "Set algorithm.critic=own, or algorithm.memory=null and algorithm.shared_body=false",
    ),
    "table": ({"algorithm": {"name": "q"}}, "A table is of one agent here, or of two in turns"),
    "replay": (
        {"algorithm": {"name": "dqn"}, "replay": {"capacity": 600, "start": 100}},
        "replay.capacity is 600",
    ),
    "unlike": ({"env.id": "mpe2/simple_tag_v3", "env.kwargs": {}}, "agents whose observations differ"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_one_message(name: str, tmp_path: Path) -> None:
    changes, message = MISTAKES[name]
    config = config_of(BASE | {"run_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=message):
        plan_run(config.with_(**changes))
