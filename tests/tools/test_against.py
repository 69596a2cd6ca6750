"""`distrl bench --against sb3`: the same task for both, in turns."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from conftest import CARTPOLE, config_of
from typer.testing import CliRunner

from distrl import load_config
from distrl.cli import app
from distrl.errors import UserError
from distrl.tools import against

needs_sb3 = pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra sb3")


def test_without_the_peer_one_line_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        next(against.compare([config_of(CARTPOLE)], 1.0, 1, local=True))
    assert str(refused.value) == (
        "--against sb3 needs Stable-Baselines3, which is not installed: pip install stable-baselines3"
    )
    assert isinstance(CliRunner().invoke(app, ["bench", "--against", "sb3"]).exception, UserError)


@needs_sb3
def test_what_cannot_be_compared_is_refused() -> None:
    assert "takes sb3" in str(CliRunner().invoke(app, ["bench", "--against", "rllib"]).exception)
    with pytest.raises(UserError, match=r"compares ppo, a2c, dqn, and algorithm\.name is q\."):
        next(against.compare([load_config("q_taxi")], 1.0, 1, local=True))


@needs_sb3
@pytest.mark.parametrize(("name", "overrides"), against.TASKS)
def test_the_peer_gets_the_same_task(name: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """By what Stable-Baselines3 itself says that it has: how many steps it collects, and how many minibatches it learns."""
    import stable_baselines3

    config, made = load_config(name, overrides), list[Any]()
    cls: Any = getattr(stable_baselines3, config.algorithm.name.upper())
    monkeypatch.setattr(cls, "learn", lambda self, *arguments, **settings: made.append(self))
    against._train_peer(config, 0.1)
    [model] = made
    assert model.n_envs == config.rollout.shards * config.rollout.envs_per_shard
    assert model.gamma == config.algorithm.gamma  # type: ignore[attr-defined]
    sizes = [layer.out_features for layer in model.policy.modules() if hasattr(layer, "out_features")]
    assert set(config.algorithm.hidden) <= set(sizes)  # type: ignore[attr-defined]
    if config.replay is None:
        assert model.n_steps * model.n_envs == config.rollout.env_steps
    else:  # an update of 64 steps for each 2 that are collected
        assert model.gradient_steps * 2 == model.train_freq.frequency * model.n_envs
        assert model.batch_size == 64


@needs_sb3
def test_both_train_in_turns() -> None:
    shown = CliRunner().invoke(
        app,
        ["bench", "ppo_cartpole", "rollout.steps=16", "--against", "sb3", "--seconds", "1", "--rounds", "2", "--local"],
        catch_exceptions=False,
    )
    words = shown.stdout.split()
    assert words[:4] == ["ppo", "on", "CartPole-v1:", "distrl"]
    ours, peer, times = (float(words[i].rstrip(":").replace(",", "")) for i in (4, 8, 9))
    assert ours > 0 and peer > 0
    assert times > 0 and "in 2 turns" in shown.stdout and "stolen" in shown.stdout
