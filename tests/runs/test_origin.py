"""Runs that begin with the weights of another one: which they take, what they refuse, that they need it no more."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from conftest import CARTPOLE, DQN, config_of
from processes import distrl, result_of, write
from test_registry import REINFORCE

from distrl import train
from distrl.acting.network import unflatten
from distrl.acting.normalise import NormalisedPolicy
from distrl.errors import UserError
from distrl.models.evaluate import load_model, play_episodes
from distrl.models.store import newest_checkpoint, read_model, weights_sha256
from distrl.reports.card import model_card
from distrl.reports.runs import group_runs, read_run
from distrl.runs.plan import Plan, plan_run
from distrl.runs.resume import load_resumed_config
from distrl.tools.export import export
from distrl.types import Arrays, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner

QUIET = ["track.mlflow=false", "track.video=false"]
SHORT = [*QUIET, "stop.env_steps=512", "evaluation.every=0", "evaluation.final_episodes=0"]
NORMALISED = {**CARTPOLE, "normalize": {"obs": True, "reward": True}}
TABLE: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "Taxi-v4", "max_episode_steps": 50},
    "algorithm": {"name": "q", "method": "double_q", "visit_power": 1, "initial": 0.25},
}
HASHED: dict[str, Any] = {
    **TABLE,
    "env": {"id": "MountainCar-v0", "max_episode_steps": 40},
    "algorithm": {"name": "q", "coding": {"kind": "bins", "n": [30, 30]}, "capacity": 500},
}
REMEMBERING = ["algorithm.memory={kind: gru, size: 8}", "algorithm.shared_body=true"]
MEMORY = {**CARTPOLE, "algorithm": {**CARTPOLE["algorithm"], "memory": {"size": 8}, "shared_body": True}}
BASES = {
    "ppo": CARTPOLE, "dqn": DQN, "normalised": NORMALISED, "memory": MEMORY, "table": TABLE, "hashed": HASHED,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short runs of every kind of policy."""
    directory = tmp_path_factory.mktemp("sources")
    for name, base in BASES.items():
        train(config_of(base, *SHORT, f"run_dir={directory / name}"), local=True, quiet=True)
    return {name: directory / name for name in BASES}


def planned(base: dict[str, Any], source: Path, *overrides: str) -> Plan:
    return plan_run(config_of(base, *QUIET, "seed=9", f"init_from={source}", *overrides))


def learner(plan: Plan) -> Learner:
    return Learner(plan.config, plan.policy, None, plan.origin)


@pytest.mark.parametrize("name", BASES)
def test_version_0_plays_as_the_model_that_it_is_of(name: str, sources: dict[str, Path]) -> None:
    plan = planned(BASES[name], sources[name])
    wanted, env = play_episodes(sources[name], 8, greedy=True, seed=3)
    found = Evaluator(env, 3, plan.policy).evaluate(Weights(0, plan.initial_weights), 0, 8, True, 0)
    assert (found.returns, found.lengths) == (wanted.returns, wanted.lengths)
    own = plan_run(config_of(BASES[name], *QUIET, "seed=9")).initial_weights
    assert own.shape == plan.initial_weights.shape and own.dtype == plan.initial_weights.dtype
    assert (own != plan.initial_weights).any()
    assert learner(plan).weights().vector.tobytes() == plan.initial_weights.tobytes()  # and so does the learner


def test_dqn_begins_with_both_networks_and_its_own_epsilon(sources: dict[str, Path]) -> None:
    plan = planned(DQN, sources["dqn"], "algorithm.epsilon.start=0.5", "algorithm.ladder=2")
    found, theirs = unflatten(plan.initial_weights, plan.policy.shapes()), load_model(sources["dqn"])[0].arrays()
    assert found["epsilon"] == 0.5 != theirs["epsilon"]
    assert all((found[key] == theirs[key]).all() for key in theirs if key != "epsilon")
    state: Arrays = learner(plan).algorithm.state()
    assert state["target"].tobytes() == plan.initial_weights[:-1].tobytes()


def test_statistics_go_on_from_where_they_were(sources: dict[str, Path]) -> None:
    """With the weight of the env steps that are behind them."""
    plan, (source, _, about) = planned(NORMALISED, sources["normalised"]), load_model(sources["normalised"])
    assert isinstance(source, NormalisedPolicy)
    state = learner(plan).algorithm.state()
    assert state["normalize.obs.count"] == about["env_steps"] == 512
    np.testing.assert_allclose(state["normalize.obs.mean"], source.mean, rtol=1e-6)
    np.testing.assert_allclose(1 / np.sqrt(state["normalize.obs.variance"] + 1e-8), source.scale, rtol=1e-6)
    checkpoint = newest_checkpoint(sources["normalised"])
    assert checkpoint is not None and len(source.mean) == 4 and np.ptp(source.scale) > 0


def test_a_table_counts_what_it_knows_as_seen_once(sources: dict[str, Path]) -> None:
    plan, source = planned(TABLE, sources["table"]), load_model(sources["table"])[0].arrays()
    state = learner(plan).algorithm.state()
    assert all((table == source["table"]).all() for table in state["tables"])
    assert (state["visits"][1] == (source["table"] != 0.25)).all() and 0 < state["visits"][1].sum() < 3000
    hashed, source = planned(HASHED, sources["hashed"]), load_model(sources["hashed"])[0].arrays()
    assert learner(hashed).algorithm.state()["keys"].tolist() == [key for key in source["keys"].tolist() if key >= 0]


def test_a2c_takes_what_ppo_has_learnt_and_an_exported_file_will_do(sources: dict[str, Path], tmp_path: Path) -> None:
    file, _ = export(sources["ppo"], "safetensors", tmp_path / "policy")
    plan = planned({**CARTPOLE, "algorithm": {"name": "a2c", "hidden": [32, 32]}}, file)
    policy, _, about = load_model(sources["ppo"])
    assert plan.origin is not None
    assert plan.origin.source == {"path": str(file), "weights_sha256": weights_sha256(policy)}
    assert plan.origin.env_steps == about["env_steps"]
    assert flat(policy.arrays()) == plan.initial_weights.tobytes()


def flat(arrays: Arrays) -> bytes:
    return np.concatenate([array.ravel() for array in arrays.values()]).tobytes()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "message", "remedy"),
    [
        ("ppo", ["algorithm.hidden=[16]"], r"network.hidden \(\[32, 32\] there, \[16\] here\)", "algorithm.hidden=[32, 32]"),
        ("ppo", ["algorithm.activation=relu"], "Its network is another one", 'algorithm.activation="tanh"'),
        ("ppo", ["algorithm.layer_norm=true"], "Its network is another one", "algorithm.layer_norm=false"),
        ("dqn", ["algorithm.dueling=false"], "Its network is another one", "algorithm.dueling=true"),
        ("normalised", ["normalize.obs=false"], "sees normalised observations", "normalize.obs=true"),
        ("ppo", ["normalize.obs=true"], "sees observations as they are", "normalize.obs=false"),
        ("ppo", REMEMBERING, "It remembers nothing", "algorithm.memory=null"),
        ("memory", ["algorithm.memory=null"], "It remembers", 'algorithm.memory={"kind": "gru", "size": 8} algorithm.shared_body=true'),
        ("memory", ["algorithm.memory.kind=lstm"], "Its network is another one", 'algorithm.memory.kind="gru"'),
        ("memory", ["algorithm.memory.size=9"], "Its network is another one", "algorithm.memory.size=8"),
        ("hashed", ["algorithm.capacity=501"], "Its network is another one", "algorithm.capacity=500"),
    ],
)  # fmt: skip
def test_another_network_is_refused_with_what_to_set(
    name: str, overrides: list[str], message: str, remedy: str, sources: dict[str, Path]
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        planned(BASES[name], sources[name], *overrides)
    told = str(refused.value)
    assert told.startswith(f"init_from: the model of {sources[name]} does not fit this run.")
    assert told.endswith(f" Set {remedy}.")
    planned(BASES[name], sources[name], *overrides, *re.split(r" (?=algorithm)", remedy))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"id": "Acrobot-v1"}, "Observations of CartPole-v1, which it was trained on, are not those of Acrobot-v1"),
        ({"id": f"toys:{toys.SCRIPT}"}, "Observations of CartPole-v1"),
    ],
)
def test_other_spaces_are_refused(env: dict[str, Any], message: str, sources: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=f"{message}.*Take a model whose env has the same spaces"):
        planned({**CARTPOLE, "env": env}, sources["ppo"])
    with pytest.raises(UserError, match=message):  # which setting normalize.obs would not mend
        planned({**CARTPOLE, "env": env}, sources["normalised"])


def test_other_actions_are_refused(tmp_path: Path) -> None:
    walk = {**CARTPOLE, "env": {"id": f"toys:{toys.WALK}", "max_episode_steps": 12, "kwargs": {"action": "multi"}}}
    train(config_of(walk, *SHORT, f"run_dir={tmp_path / 'run'}"), local=True, quiet=True)
    for kwargs in ("{}", "{action: bits}", "{action: box}", "{action: multi, first_action: 1}", "{action: dict}"):
        with pytest.raises(UserError, match=r"^init_from.*Actions of toys:toys/Walk-v0, which.*Take a model whose env"):
            planned(walk, tmp_path / "run", f"env.kwargs={kwargs}")
    with pytest.raises(UserError, match=r"^init_from.*Observations of .*Take a model whose env"):
        planned(walk, tmp_path / "run", "env.kwargs={action: multi, mask: info}")


def test_another_kind_of_policy_and_no_model_are_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"policy is epsilon_greedy, and this run trains one that is stochastic.*trained by dqn"
    ):
        planned(CARTPOLE, sources["dqn"])
    with pytest.raises(UserError, match="init_from: There is no run or model at"):
        planned(CARTPOLE, tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"init_from: .* holds no model yet"):
        planned(CARTPOLE, tmp_path)


def test_how_it_explores_may_differ(sources: dict[str, Path]) -> None:
    planned(CARTPOLE, sources["ppo"], "algorithm.action_probs=[0.9,0.1]", "algorithm.log_std_init=-1")
    planned(DQN, sources["dqn"], "algorithm.action_probs=[0.9,0.1]", "algorithm.ladder=7")


def test_an_algorithm_that_begins_with_weights_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "origin_reinforce.py").write_text(REINFORCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = {**CARTPOLE, "algorithm": {"name": "origin_reinforce"}}
    train(config_of(base, *SHORT, f"run_dir={tmp_path / 'run'}"), local=True, quiet=True)
    again = config_of(base, *SHORT, f"init_from={tmp_path / 'run'}", f"run_dir={tmp_path / 'again'}")
    refusal = "init_from: origin_reinforce does not begin with the weights that it is given. Its make() must take them"
    with pytest.raises(UserError, match=re.escape(refusal)):
        train(again, local=True, quiet=True)
    (tmp_path / "again.yaml").write_text(again.to_yaml())
    refused = distrl("train", "again.yaml", "run_dir=on_ray", "cluster.start=wait", "-q", cwd=tmp_path)
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
    assert f"error: {refusal}" in refused.stderr
    heeding = REINFORCE.replace("= initial_weights(settings, policy, seed)", "= policy.network.vector.copy()")
    (tmp_path / "origin_reinforce.py").write_text(heeding)
    done = distrl("train", "again.yaml", "run_dir=heeding", "--local", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- a run of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "dqn", "normalised", "hashed"])
def test_the_same_bits_in_one_process_resumed_and_again_without_the_source(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    source, run_dir = tmp_path / "source", tmp_path / "whole"
    shutil.copytree(sources[name], source)
    told = {"path": str(source), "weights_sha256": weights_sha256(load_model(source)[0])}
    options = [*SHORT, "stop.env_steps=1536", "seed=9"]
    begun = config_of(BASES[name], *options, f"init_from={source}", f"run_dir={run_dir}")
    whole = train(begun, local=True, quiet=True).data
    fresh = train(config_of(BASES[name], *options, f"run_dir={tmp_path / 'fresh'}"), local=True, quiet=True).data
    assert whole["weights_sha256"] != fresh["weights_sha256"]
    assert (whole["init_from"], fresh["init_from"]) == (told, None)
    shutil.rmtree(source)
    for where, point in (("resumed", "checkpoints/00000003"), ("killed before its first checkpoint", "")):
        shutil.copytree(run_dir, tmp_path / where)
        shutil.rmtree(tmp_path / where / "checkpoints" / "00000006")
        if not point:
            shutil.rmtree(tmp_path / where / "checkpoints")
        config = load_resumed_config(tmp_path / where / point, [])
        result = train(config, local=True, quiet=True, resume=tmp_path / where / point).data
        assert (result["weights_sha256"], result["init_from"]) == (whole["weights_sha256"], told)
    config = config_of(
        json.loads(json.dumps(load_resumed_config(run_dir, []).model_dump(mode="json"))),
        f"run_dir={tmp_path / 'again'}",
    )
    assert config.init_from == str(run_dir / "init")
    again = train(config, local=True, quiet=True).data
    assert (again["weights_sha256"], again["init_from"]) == (whole["weights_sha256"], told)
    assert read_model(run_dir / "best")[1]["init_from"] == told
    assert f"the weights of {source.name} (sha256 {told['weights_sha256']})" in model_card(run_dir)
    groups = group_runs([read_run(tmp_path / where) for where in ("whole", "again", "fresh")])
    assert sorted(map(len, groups.values())) == [1, 2]
    assert any(f"init_from={told['weights_sha256'][:12]}" in label for label in groups)


def test_the_same_bits_over_1_and_2_runners(sources: dict[str, Path], tmp_path: Path) -> None:
    file, ray = write(tmp_path, CARTPOLE), "cluster.start=wait"
    found = set()
    for number, arguments in enumerate((["--local"], [ray, "cluster.runners=1"], [ray, "cluster.runners=2"])):
        options = [*SHORT, "seed=9", f"init_from={sources['ppo']}", f"run_dir=run{number}"]
        done = distrl("train", file, "-q", *options, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.add(result_of(tmp_path / f"run{number}")["weights_sha256"])
    assert len(found) == 1


def test_the_command_line(sources: dict[str, Path], tmp_path: Path) -> None:
    """Paths are relative to where it is called; the run that goes on takes no other weights."""
    shutil.copytree(sources["ppo"], tmp_path / "source")
    small = {**CARTPOLE, "track": {"mlflow": False, "video": False}, "stop": {"env_steps": 256}, "init_from": "source"}
    words = ["train", write(tmp_path, small)]
    shown = distrl(*words, "--dry-run", cwd=tmp_path)
    assert f"begins with       {tmp_path}/source" in shown.stdout, shown.stderr
    done = distrl(*words, "run_dir=run", "--local", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "init" / "policy.safetensors").exists()
    resumed = distrl(*words, "--resume", "run", "--dry-run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for words_, message in (
        ([*words, "algorithm.hidden=[8]", "run_dir=other"], "Set algorithm.hidden=[32, 32]."),
        (["train", "--resume", "run", "init_from=elsewhere"], "init_from"),
    ):
        refused = distrl(*words_, cwd=tmp_path)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
        assert message in refused.stderr
    assert not (tmp_path / "other").exists()
