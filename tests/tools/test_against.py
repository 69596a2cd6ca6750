"""`distrl bench --against PEER`: the same task for both, in turns."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import CARTPOLE, config_of
from typer.testing import CliRunner

from distrl import load_config
from distrl.acting.make import make_policy
from distrl.acting.normalise import without
from distrl.cli import app
from distrl.envs.make import describe_env, make_env
from distrl.errors import UserError
from distrl.outside import HUGE_PAGES
from distrl.settings import Config, dotted
from distrl.tools import against, peer_rllib, peer_sb3


def needs(name: str) -> pytest.MarkDecorator:
    missing = [module for module in against.PEERS[name].needs if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs the extra {name}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sb3", "--against sb3 needs stable_baselines3, which is not installed: pip install stable-baselines3"),
        (
            "rllib",
            "--against rllib needs tree, lz4, ormsgpack, which is not installed: pip install dm-tree lz4 ormsgpack",
        ),
    ],
)
def test_without_the_peer_one_line_says_how_to_have_it(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        next(against.compare(name, [config_of(CARTPOLE)], 1.0, 1, local=True))
    assert str(refused.value) == says
    assert isinstance(CliRunner().invoke(app, ["bench", "--against", name]).exception, UserError)


@needs("sb3")
def test_what_cannot_be_compared_is_refused() -> None:
    assert "takes sb3 or rllib" in str(CliRunner().invoke(app, ["bench", "--against", "cleanrl"]).exception)
    with pytest.raises(UserError, match=r"compares ppo, a2c, dqn, and algorithm\.name is q\."):
        next(against.compare("sb3", [load_config("q_taxi")], 1.0, 1, local=True))


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("dqn_cartpole", ["algorithm.double=True", "algorithm.layer_norm=True"]),
        ("ppo_hopper", ["algorithm.normalize_value=True"]),
    ],
)
def test_what_a_peer_does_without_is_told(name: str, alone: list[str]) -> None:
    assert against.only_ours(against.PEERS["sb3"], load_config(name)) == alone


def test_what_is_asked_of_a_peer_is_a_setting() -> None:
    known = {key for name in ("ppo_cartpole", "dqn_cartpole") for key in dotted(load_config(name).model_dump())}
    assert set(against.MORE) <= known
    assert all(set(peer.has) <= set(against.MORE) for peer in against.PEERS.values())


@needs("sb3")
@pytest.mark.parametrize(("name", "overrides"), [*against.tasks("sb3"), ("ppo_hopper", ())])
def test_sb3_gets_the_same_task(name: str, overrides: tuple[str, ...]) -> None:
    """By what Stable-Baselines3 itself says that it has: how many steps it collects, and how many minibatches it learns."""
    config = load_config(name, [*overrides, *(["replay.capacity=2000"] if name.startswith("dqn") else [])])
    model = peer_sb3.make(config)
    units: Any = config.algorithm
    assert model.n_envs == config.rollout.shards * config.rollout.envs_per_shard
    assert model.gamma == units.gamma
    sizes = [layer.out_features for layer in model.policy.modules() if hasattr(layer, "out_features")]
    assert set(units.hidden) <= set(sizes)
    if config.replay is None:
        assert model.n_steps * model.n_envs == config.rollout.env_steps
    else:
        learnt = model.gradient_steps * model.batch_size
        assert learnt == model.train_freq.frequency * model.n_envs * config.replay.samples_per_insert
        assert model.batch_size == units.batch_size
    spec: Any = cast(Any, without(make_policy(config, describe_env(config.env)))).network.spec
    critic = (
        units.hidden[-1] + 1 if getattr(units, "shared_body", False) else replace(spec, outputs=1, free=0).parameters
    )
    network, ours = (
        (model.policy, spec.parameters + critic) if config.replay is None else (model.q_net, spec.parameters)
    )
    assert sum(x.numel() for x in network.parameters()) == ours
    image = len(make_env(config.env).observation_space.shape or ()) == 3
    assert [m.in_channels for m in model.policy.modules() if hasattr(m, "in_channels")][:3] == [4, 32, 64][: 3 * image]


@pytest.mark.parametrize("asked", [HUGE_PAGES[1], "glibc.malloc.arena_max=2"])
def test_a_peer_is_without_the_huge_pages_that_distrl_asks_for(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But has what the user tells glibc."""
    (tmp_path / "peer.py").write_text(f"import os\nprint(os.environ.get({HUGE_PAGES[0]!r}))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HUGE_PAGES[0], asked)
    told = against._run(config_of(CARTPOLE), str(tmp_path), "peer", [])
    assert told.strip() == ("None" if asked == HUGE_PAGES[1] else asked)


@needs("rllib")
@pytest.mark.parametrize(("name", "overrides"), against.tasks("rllib"))
def test_rllib_gets_the_same_task(name: str, overrides: tuple[str, ...]) -> None:
    config = load_config(name, overrides)
    units: Any = config.algorithm
    copies = config.rollout.shards * config.rollout.envs_per_shard
    for runners, collecting in ((0, 1), (2, 2)):
        told = peer_rllib.configured(config, runners)
        assert told.num_env_runners == runners
        assert told.num_envs_per_env_runner * collecting == copies
        assert told.get_rollout_fragment_length() == config.rollout.steps
        assert (told.gamma, told.lr) == (units.gamma, units.lr.start)
        if config.replay is None:
            assert told.total_train_batch_size == config.rollout.env_steps
            assert (told.minibatch_size, told.num_epochs) == (units.minibatch_size, units.epochs)
        else:
            assert told.training_intensity == config.replay.samples_per_insert
            assert told.total_train_batch_size == units.batch_size


@needs("rllib")
def test_rllib_sees_the_channels_of_images_last() -> None:
    config = load_config("dqn_flappy_pixels")
    ours, theirs = make_env(config.env), peer_rllib.env_of(config)
    assert theirs.observation_space.shape == (84, 84, 4)
    (mine, _), (turned, _) = ours.reset(seed=1), theirs.reset(seed=1)
    assert turned in theirs.observation_space
    assert np.array_equal(mine[3, 10], turned[10, :, 3])


def test_in_one_process_our_learner_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the config that the run itself wrote down."""
    seen, run = [], against._run

    def watched(config: Config, directory: str, *task: Any) -> str:
        said = run(config, directory, *task)
        seen.append(load_config(f"{directory}/run/config.yaml").learner.threads)
        return said

    monkeypatch.setattr(against, "_run", watched)
    monkeypatch.setattr(against, "cpu_count", lambda: 3)
    assert against._ours(config_of(CARTPOLE, "rollout.steps=16"), 8.0, local=True) > 0
    assert seen == [3]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in against.PEERS])
def test_both_train_in_turns(name: str) -> None:
    task = ["ppo_cartpole", "rollout.steps=16", "--against", name, "--seconds", "8", "--rounds", "2", "--local"]
    shown = CliRunner().invoke(app, ["bench", *task], catch_exceptions=False)
    words = shown.stdout.split()
    assert words[:4] == ["ppo", "on", "CartPole-v1:", "distrl"]
    ours, peer, times = (float(words[i].rstrip(":").replace(",", "")) for i in (4, 8, 9))
    assert ours > 0 and peer > 0
    assert times > 0 and "in 2 turns" in shown.stdout and "stolen" in shown.stdout
