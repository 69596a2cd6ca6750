"""What a config accepts, what it refuses, and how it says so."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from distrl import aliases
from distrl.config import load_config
from distrl.errors import UserError
from distrl.registry import ALGORITHMS
from distrl.schema import settings
from distrl.settings import Config

BASE: dict[str, Any] = {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}}


def refusal(*overrides: str, base: dict[str, Any] = BASE) -> str:
    """The message with which a config is refused."""
    with pytest.raises(UserError) as caught:
        load_config(base, overrides)
    return str(caught.value)


# --- what is accepted -------------------------------------------------------------------------------------------


def test_little_is_needed_and_the_rest_has_defaults() -> None:
    config = load_config(BASE)
    assert (config.env.id, config.algorithm.name, config.schedule.lag) == ("CartPole-v1", "ppo", 1)
    assert config.rollout.env_steps == config.rollout.shards * config.rollout.envs_per_shard * config.rollout.steps


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("algorithm.value_coef=3e-4", 3e-4),
        ("algorithm.value_coef=1.5e-3", 1.5e-3),
        ("stop.env_steps=1_000_000", 1_000_000),
        ("stop.env_steps=1e6", 1_000_000),
        ("stop.return_mean=auto", "auto"),
        ("stop.return_mean=-1e2", -100.0),
        ("stop.seconds=null", None),
        ("algorithm.hidden=[128, 32]", (128, 32)),
        ("algorithm.hidden=[]", ()),
        ("env.kwargs={gravity: -9.8}", {"gravity": -9.8}),
        ("env.kwargs.gravity=-9.8", {"gravity": -9.8}),
        ("env.kwargs.gravity=-1e1", {"gravity": -10.0}),
        ("track.mlflow=false", False),
        ("run_dir=runs/a=b", "runs/a=b"),
        ("evaluation.every=0", 0),
        ("cluster.runners=7", 7),
    ],
)
def test_overrides_reach_their_key(override: str, value: object) -> None:
    found: Any = load_config(BASE, [override])
    for name in override.partition("=")[0].split("."):
        if isinstance(found, dict):
            found = {name: found[name]}
            break
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_later_overrides_win_and_make_missing_parts() -> None:
    config = load_config(
        {"algorithm": {"name": "ppo"}}, ["env.id=Acrobot-v1", "seed=3", "env.id=MountainCar-v0", "seed=4"]
    )
    assert (config.env.id, config.seed) == ("MountainCar-v0", 4)


def test_overrides_leave_the_source_as_it_was() -> None:
    source = copy.deepcopy(BASE)
    load_config(source, ["env.kwargs.a=1", "algorithm.lr=1", "seed=9", "rollout.steps=64"])
    assert source == BASE


def test_a_config_does_not_change() -> None:
    config = load_config(BASE)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 2
    with pytest.raises(ValidationError, match="frozen"):
        config.rollout.steps = 2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["algorithm.hidden=[32]", "algorithm.lr=1e-5", "env.kwargs={a: [1, {b: null}], c: x}", "stop.seconds=7.5"],
        ["stop.env_steps=null", "stop.return_mean=475", "algorithm.lr=1e-3", "seed=9223372036854775807"],
        ["env.max_episode_steps=9", "cluster.runners=3", "evaluation.every=2", "run_dir=2", "run_dir='no'"],
    ],
)
def test_to_yaml_loads_to_an_equal_config(overrides: list[str], tmp_path: Path) -> None:
    config = load_config(BASE, overrides)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for source in (tmp_path / "config.yaml", str(tmp_path / "config.yaml"), tmp_path, yaml.safe_load(config.to_yaml())):
        again = load_config(source)
        assert again == config
        assert type(again.algorithm) is type(config.algorithm)


KEPT = {
    "texts": ["1e6", "1.5e-3", "1_000", "no", "null", "2024-01-01", "=", "~", "", " a: b", "ä\n", "0x1f", "1:30"],
    "numbers": [1e20, 1e6, -0.0, 5e-324, 0.1, 2**70, True, None],
    "parts": {"a": [{"b": {}}, []]},
}


def test_arguments_of_an_env_are_written_as_they_are(tmp_path: Path) -> None:
    """What a resumed run, a model and an evaluation read again is what the run began with."""
    config = load_config({**BASE, "env": {"id": "x", "kwargs": KEPT}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for again in (
        load_config(tmp_path).env.kwargs,
        json.loads(json.dumps(config.env.model_dump(mode="json")))["kwargs"],
    ):
        assert repr(again) == repr(KEPT)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("{limit: .inf}", "limit is inf"),
        ("{a: [1, .nan]}", "a.1 is nan"),
        ("{start: 2024-01-01}", "start is a date"),
        ("{start: 2024-01-01 10:00:00}", "start is a datetime"),
        ("{goals: !!set {a, b}}", "goals is a set"),
        ("{key: !!binary aGk=}", "key is a bytes"),
        ("{map: {1: a}}", "the key 1 in map is a int"),
        ({"size": (3, 4)}, "size is a tuple"),
        ({"gravity": np.float64(9.8)}, "gravity is a float64"),
    ],
)
def test_arguments_that_a_file_cannot_hold_are_refused(value: str | dict[str, Any], rule: str) -> None:
    if isinstance(value, str):
        message = refusal(f"env.kwargs={value}")
    else:
        message = refusal(base={**BASE, "env": {"id": "x", "kwargs": value}})
    origin = "override" if isinstance(value, str) else "config"
    assert message.startswith(f"{origin}: env.kwargs: {rule}")
    assert len(message.splitlines()) == 1


def test_iterations_cover_the_env_steps() -> None:
    def iterations(env_steps: str) -> Config:
        return load_config(BASE, [f"stop.env_steps={env_steps}", "stop.seconds=1", "algorithm.lr=1e-3"])

    assert [iterations(n).iterations for n in ("1", "2048", "2049", "null")] == [1, 1, 2, None]
    assert iterations("204800").evaluation_every == 10
    assert iterations("2048").evaluation_every == 1
    assert iterations("null").evaluation_every > 0


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("rolout.shards=3", "rolout", "rollout"),
        ("rollout.shrads=3", "rollout.shrads", "shards"),
        ("env.max_episode_step=3", "env.max_episode_step", "max_episode_steps"),
        ("algorithm.gama=0.9", "algorithm.gama", "gamma"),
        ("stop.env_step=9", "stop.env_step", "env_steps"),
        ("cluster.adress=auto", "cluster.adress", "address"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(override: str, key: str, near: str) -> None:
    message = refusal(override)
    assert f"unknown key {key!r}" in message
    assert f"Did you mean {near!r}?" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "known"), [("xyzzy=1", "rollout"), ("algorithm.xyzzy=1", "gamma"), ("env.xyzzy=1", "id")]
)
def test_an_unknown_key_near_to_none_is_refused_with_the_known_ones(override: str, known: str) -> None:
    message = refusal(override)
    assert repr(override.removesuffix("=1")) in message
    assert f" {known}" in message.partition("Known here:")[2]


@pytest.mark.parametrize(
    ("override", "key", "value", "rule"),
    [
        ("seed=abc", "seed", "'abc'", "integer"),
        ("seed=1.5", "seed", "1.5", "integer"),
        ("seed=-1", "seed", "-1", "greater than or equal to 0"),
        ("seed=9223372036854775808", "seed", "9223372036854775808", "less than"),
        ("rollout.shards=0", "rollout.shards", "0", "greater than or equal to 1"),
        ("rollout.steps=null", "rollout.steps", "None", "integer"),
        ("rollout=3", "rollout", "3", "such as rollout={shards: 4"),
        ("env=CartPole-v1", "env", "'CartPole-v1'", "such as env={id: ..."),
        ("env.id=3", "env.id", "3", "string"),
        ("env.kwargs=3", "env.kwargs", "3", "dictionary"),
        ("env.vectorize=sngle", "env.vectorize", "'sngle'", "'single'"),
        ("schedule.lag=2", "schedule.lag", "2", "0 or 1"),
        ("algorithm.lr=fast", "algorithm.lr", "'fast'", "number"),
        ("algorithm.lr=0", "algorithm.lr", "0", "above 0"),
        ("algorithm.max_grad_norm=0", "algorithm.max_grad_norm", "0", "greater than 0"),
        ("algorithm.lr=.nan", "algorithm.lr.start", "nan", "finite"),
        ("algorithm.lr=.inf", "algorithm.lr.start", "inf", "finite"),
        ("algorithm.gamma=1.1", "algorithm.gamma", "1.1", "less than or equal to 1"),
        ("algorithm.hidden=64", "algorithm.hidden", "64", "a list is due"),
        ("algorithm.hidden=[64, 0]", "algorithm.hidden", "0", "greater than or equal to 1"),
        ("algorithm.body=rnn", "algorithm.body", "'rnn'", "'mlp'"),
        ("learner.device=tpu", "learner.device", "'tpu'", "'cuda'"),
        ("track.mlflow=perhaps", "track.mlflow", "'perhaps'", "true or false"),
        ("evaluation.every=-1", "evaluation.every", "-1", "at least 0"),
        ("evaluation.every=often", "evaluation.every", "'often'", "'auto'"),
        ("cluster.runners=0", "cluster.runners", "0", "at least 1"),
        ("cluster.runners=many", "cluster.runners", "'many'", "'auto'"),
        ("stop.return_mean=high", "stop.return_mean", "'high'", "'auto'"),
        ("stop.env_steps=null", "stop", "", "nothing ends this run: set stop.env_steps"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_key_value_and_rule(
    override: str, key: str, value: str, rule: str
) -> None:
    message = refusal(override)
    assert f"override: {key} is {value}" in message if value else f"override: {key}:" in message
    assert rule in message
    assert len(message.splitlines()) == 1


def test_every_mistake_is_told_at_once() -> None:
    message = refusal("seed=x", "rollout.steps=0", "rolout=1")
    assert [line.split()[1] for line in message.splitlines()].count("unknown") == 1
    assert len(message.splitlines()) == 3
    assert "seed is 'x'" in message
    assert "rollout.steps is 0" in message


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"algorithm": {"name": "ppo"}}, "env"),
        ({"algorithm": {"name": "ppo"}, "env": {}}, "env.id"),
        ({"env": {"id": "x"}}, "algorithm.name"),
        ({"env": {"id": "x"}, "algorithm": {}}, "algorithm.name"),
        ({"env": {"id": "x"}, "algorithm": {"name": None}}, "algorithm.name"),
    ],
)
def test_what_is_missing_is_named(data: dict[str, Any], key: str) -> None:
    message = refusal(base=data)
    assert f"{key} is missing" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["algorithm.minibatch_size=500"],
            ["algorithm.minibatch_size is 500", "does not divide the 2048 steps", "such as 4"],
        ),
        (
            ["algorithm.lr={start: 1e-3, end: 0}", "stop.env_steps=null", "stop.seconds=5"],
            ["algorithm.lr goes from 0.001 to 0", "stop.env_steps", "algorithm.lr=0.001"],
        ),
        (
            [
                "algorithm.lr=1e-3",
                "algorithm.clip={start: 0.2, end: 0.1}",
                "stop.env_steps=null",
                "stop.return_mean=5",
            ],
            ["algorithm.clip goes from 0.2 to 0.1", "stop.env_steps"],
        ),
        (
            ["algorithm.lr={start: 1e-3, end: 0, over: 9, unit: episodes}"],
            ["algorithm.lr.unit is 'episodes'", "ppo does not count", "'steps'"],
        ),
        (["algorithm.adaptive_kl=0.01"], ["algorithm.adaptive_kl", "algorithm.lr=0.0003"]),
        (
            ["algorithm.shared_body=true", "algorithm.critic_lr=0.1"],
            ["algorithm.critic_lr", "algorithm.shared_body=false"],
        ),
        (
            ["algorithm.memory=gru"],
            ["algorithm.memory is 'gru'", "such as algorithm.memory={kind: gru, size: 64}"],
        ),
        (["normalize.obs=yess"], ["normalize.obs is 'yess': true or false is due"]),
        (
            ["algorithm={name: dqn}", "normalize.obs=true"],
            ["normalize.obs is true", "ppo and a2c", "is dqn", "Set normalize.obs=false"],
        ),
        (["algorithm={name: dqn, memory: {size: 8}}"], ["ppo and a2c", "this is dqn", "Leave algorithm.memory out"]),
        (["algorithm={name: q, memory: {kind: gru}}"], ["ppo and a2c", "this is q", "Leave algorithm.memory out"]),
        (
            ["algorithm={name: a2c, memory: {}, shared_body: true, network: 'own_nets:Small'}"],
            ["algorithm.memory", "algorithm.network", "Set one of them to null"],
        ),
        (["algorithm.memory={size: 8}"], ["algorithm.memory", "set algorithm.shared_body=true"]),
        (
            ["algorithm={name: ppo, memory: {}, shared_body: true, minibatch_size: 16}"],
            ["algorithm.minibatch_size is 16", "multiple of rollout.steps=32", "or 2048"],
        ),
        (
            ["algorithm={name: a2c, memory: {}, shared_body: true, minibatches: 128}"],
            ["algorithm.minibatches is 128", "64 env copies", "such as 1"],
        ),
        (
            ["algorithm={name: ppo, memory: {}, shared_body: true}", "track.register_as=mine"],
            ["track.register_as is 'mine'", "track.register_as=null"],
        ),
        (
            ["algorithm={name: q}", "normalize={obs: true, reward: true}"],
            ["normalize.obs is true", "is q", "Set normalize.obs=false normalize.reward=false"],
        ),
        (
            ["learner.count=2"],
            [
                "learner.count is 2",
                "learner.slices=1",
                "Set learner.count=1, or learner.slices=2, which gives other bits",
            ],
        ),
        (
            ["learner.count=4", "learner.slices=6"],
            ["learner.count is 4", "Set learner.count=3, or learner.slices=8, which"],
        ),
        (["learner.count=4", "learner.slices=510"], ["Set learner.count=3, or learner.slices=512, which"]),
        (["learner.count=4", "learner.slices=511"], ["Set learner.count=1, or learner.slices=512, which"]),
        (["learner.slices=1000"], ["learner.slices is 1000", "more than the 512 ", "Set at most 512."]),
        (
            ["algorithm={name: ppo, memory: {}, shared_body: true}", "learner.slices=17"],
            ["more than the 16 parts", "whole sequences", "Set at most 16."],
        ),
        (["algorithm={name: a2c}", "learner.slices=2049"], ["more than the 2048 "]),
        (["algorithm={name: dqn}", "learner.slices=65"], ["more than the 64 "]),
        (
            ["algorithm={name: q}", "learner.slices=2", "learner.count=2"],
            ["learner.slices is 2", "q has no minibatches", "Set learner.slices=1 learner.count=1."],
        ),
        (["algorithm={name: q}", "learner.count=2"], ["learner.count is 2", "q has no", "learner.count=1."]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_remedy(
    overrides: list[str], parts: list[str]
) -> None:
    message = refusal(*overrides)
    assert [part for part in parts if part not in message] == []
    assert len(message.splitlines()) == 1


def test_the_divisor_that_is_offered_is_accepted() -> None:
    message = refusal("algorithm.minibatch_size=768")
    offered = message.rpartition("such as ")[2].rstrip(".")
    load_config(BASE, [f"algorithm.minibatch_size={offered}"])


@pytest.mark.parametrize("name", ["pppo", "3", "[ppo]", "{a: 1}"])
def test_an_unknown_algorithm_is_refused_with_the_known_ones(name: str) -> None:
    message = refusal(f"algorithm.name={name}")
    assert str(yaml.safe_load(name)) in message
    assert "must be one of ppo" in message
    assert ("Did you mean 'ppo'?" in message) == (name == "pppo")


@pytest.mark.parametrize("override", ["seed", "=3", "", "seed 3"])
def test_an_override_without_key_or_value_is_refused_with_the_form(override: str) -> None:
    message = refusal(override)
    assert repr(override) in message
    assert "key=value" in message


@pytest.mark.parametrize("override", ["seed.x=1", "env.id.x=1", "algorithm.lr.x=1"])
def test_an_override_inside_a_plain_value_is_refused(override: str) -> None:
    message = refusal(override, base={**BASE, "seed": 1, "algorithm": {"name": "ppo", "lr": 0.1}})
    assert repr(override) in message
    assert "has no keys" in message


@pytest.mark.parametrize("text", ["2024-13-45", "0x_", "[1", "a: b: c"])
def test_what_yaml_cannot_read_in_an_override_is_text(text: str) -> None:
    assert load_config(BASE, [f"run_dir={text}"]).run_dir == text


# --- files ------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "ppo_cartpole.yaml").write_text("")
    with pytest.raises(UserError, match=r"no config file '.*ppo_cartpol\.yaml'\. Did you mean 'ppo_cartpole\.yaml'\?"):
        load_config(tmp_path / "ppo_cartpol.yaml")
    with pytest.raises(UserError, match=r"no config file '.*nowhere/a\.yaml'\.$"):
        load_config(tmp_path / "nowhere" / "a.yaml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"env: [1", "not valid YAML"),
        (b"\x00\x01", "not valid YAML"),
        (b"\x80\xff\x93NUMPY", "cannot be read"),
        (b"- 1\n- 2\n", "must hold a mapping"),
        (b"", "must hold a mapping"),
        (b"CartPole", "must hold a mapping"),
        (b"seed: 1\nenv: {id: x}\nseed: 2\n", "'seed' is given twice[^$]*line 3"),
        (b"env: {id: x, id: y}\n", "'id' is given twice"),
        (b"run_dir: 2024-13-45\nenv: {id: x}\n", "not valid YAML"),
        (b"env: " + b"[" * 2000, "(not valid YAML|nested too deeply)"),
    ],
    ids=["open", "control", "binary", "list", "empty", "word", "key twice", "key below twice", "no such day", "deep"],
)
def test_a_file_that_is_no_config_is_refused_with_its_name(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


def test_a_mistake_in_a_file_is_told_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("env: {id: CartPole-v1}\nalgorithm: {name: ppo, gama: 1}\nrollout: {1: 2}\n")
    with pytest.raises(UserError, match=rf"^{path}: unknown key 'algorithm.gama'\. Did you mean 'gamma'\?$"):
        load_config(path)
    with pytest.raises(UserError, match=rf"^override: algorithm.epochs is 'x'.*\n{path}: unknown key 'algorithm.gama'"):
        load_config(path, ["algorithm.epochs=x"])
    path.write_text("env: {id: CartPole-v1}\nalgorithm: {name: ppo}\nrollout: {1: 2}\n")
    with pytest.raises(UserError, match=rf"^{path}: .*rollout.*string"):
        load_config(path)
    with pytest.raises(UserError, match=r"^override: unknown key 'algoritm'"):  # which holds what was asked for
        load_config({"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}}, ["algoritm.lr=1e-3"])


# --- another algorithm on the command line ------------------------------------------------------------------------


def test_what_another_algorithm_left_is_named_at_once_and_the_remedy_works() -> None:
    base = {**BASE, "algorithm": {"name": "dqn", "n_step": 3, "tau": 0.5, "gamma": 0.9}, "replay": {"capacity": 50_000}}
    message = refusal("algorithm.name=ppo", base=base)
    assert "a config of dqn, and ppo has no algorithm.n_step, algorithm.tau, replay." in message
    assert "'algorithm={name: ppo}' replay=null" in message
    config = load_config(base, ["algorithm={name: ppo}", "replay=null"])
    assert (config.algorithm.name, config.replay) == ("ppo", None)


def test_parts_that_another_algorithm_cannot_take_are_named_too() -> None:
    base = {**BASE, "algorithm": {"name": "a2c"}, "normalize": {"obs": True}, "schedule": {"kind": "async"}}
    message = refusal("algorithm.name=q", base=base)
    assert "q has no normalize, schedule." in message and "'algorithm={name: q}' normalize={} schedule={}" in message
    load_config(base, ["algorithm={name: q}", "normalize={}", "schedule={}"])


def test_another_algorithm_takes_what_it_knows() -> None:
    base = {**BASE, "algorithm": {"name": "ppo", "gamma": 0.9, "lr": 1e-3}, "normalize": {"obs": False}}
    assert load_config(base, ["algorithm.name=dqn"]).algorithm.model_dump()["gamma"] == 0.9


# --- names of other libraries, and of other places ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "hint"),
    [
        ("algorithm.learning_rate", "ppo", "SB3's learning_rate is algorithm.lr."),
        ("learning_rate", "q", "SB3's learning_rate is algorithm.lr."),
        ("rollout.n_steps", "ppo", "SB3's n_steps is rollout.steps."),
        ("algorithm.n_steps", "dqn", "SB3's n_steps is algorithm.n_step."),
        ("n_envs", "a2c", "SB3's n_envs is rollout.shards x rollout.envs_per_shard."),
        ("batch_size", "ppo", "SB3's batch_size is algorithm.minibatch_size."),
        ("batch_size", "dqn", "It is algorithm.batch_size."),
        ("gae_lambda", "ppo", "It is algorithm.gae_lambda."),
        ("device", "ppo", "It is learner.device."),
        ("algorithm.every", "ppo", "It is evaluation.every or checkpoint.every."),
        ("exploration_fraction", "dqn", "SB3's exploration_fraction is algorithm.epsilon.over (in env steps)."),
        ("clip_range", "dqn", "SB3's clip_range is algorithm.clip, which dqn has not."),
        ("algorithm.num_env_runners", "ppo", "RLlib's num_env_runners is cluster.runners."),
        ("train_batch_size", "ppo", "is rollout.shards x rollout.envs_per_shard x rollout.steps."),
        ("policy_kwargs.net_arch", "ppo", "is algorithm.hidden, algorithm.activation and algorithm.network."),
    ],
)
def test_a_name_of_elsewhere_is_understood(key: str, algorithm: str, hint: str) -> None:
    message = refusal(f"{key}=1", base={**BASE, "algorithm": {"name": algorithm}})
    assert "unknown key" in message and message.endswith(hint)


def test_every_name_of_another_library_means_a_setting_that_is_there() -> None:
    keys = {name: {s.key for s in settings(name)} for name in ALGORITHMS.built_in}
    every = set().union(*keys.values())
    wanted = (
        "learning_rate n_steps n_envs ent_coef vf_coef clip_range buffer_size learning_starts train_freq policy_kwargs"
    )
    assert aliases.SB3.keys() >= {*wanted.split(), "target_update_interval", "exploration_fraction", "total_timesteps"}
    for names in (aliases.SB3, aliases.RLLIB):
        for name, meanings in names.items():
            for meant in meanings:
                assert aliases.keys_of(meant) and {*aliases.keys_of(meant)} <= every, name
            assert name not in {key.rpartition(".")[2] for key in set.intersection(*keys.values())}, name


# --- changes in Python --------------------------------------------------------------------------------------------


def test_with_gives_another_config_as_an_override_does() -> None:
    config = load_config({**BASE, "algorithm": {"name": "ppo", "lr": {"start": 1e-3, "end": 0}}})
    other = config.with_(seed=3, **{"algorithm.lr": 5e-4, "algorithm.hidden": (8, 8), "run_dir": Path("there")})
    overrides = [
        "algorithm.lr={start: 1e-3, end: 0}",
        "seed=3",
        "algorithm.lr=5e-4",
        "algorithm.hidden=[8,8]",
        "run_dir=there",
    ]
    assert other == load_config(BASE, overrides) and config.seed == 1
    assert other.with_(seed=1, **{"env.kwargs.a": 1}).env.kwargs == {"a": 1}
    assert config.with_() == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm.lrr": 1}, "unknown key 'algorithm.lrr'. Did you mean 'lr'"),
        ({"rollout.steps": 0}, "rollout.steps is 0"),
        ({"algorithm.minibatch_size": 100}, "does not divide"),
        ({"algorithm.name": "dqn"}, "dqn has no algorithm.gae_lambda"),
        ({"seed.x": 1}, "looks inside 'seed'"),
    ],
)
def test_with_refuses_what_an_override_may_not_say(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(BASE).with_(**changes)
