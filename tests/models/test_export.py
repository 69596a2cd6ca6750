"""Exported files: each does what the policy does, on observations as the env gives them, or is not written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from processes import distrl
from toys import ENVS, settings

from distrl.acting.make import initial_weights, make_policy
from distrl.acting.network import unflatten
from distrl.acting.normalise import NormalisedPolicy, without
from distrl.acting.policies import EpsilonGreedyPolicy
from distrl.config import load_config
from distrl.envs.make import describe_env, make_env
from distrl.errors import UserError
from distrl.learning import greedy
from distrl.models import trial
from distrl.models.evaluate import load_model, play_episodes
from distrl.models.player import Player, load_policy
from distrl.models.store import weights_sha256, write_model
from distrl.settings import EnvSettings
from distrl.tools.export import FORMATS, export
from distrl.types import Array, Policy

README = Path(__file__).parents[2] / "README.md"
SAMPLES = "toys/Samples-v0"
SPACES: dict[str, gym.Space[Any]] = {
    "image": Box(0, 255, (3, 40, 37), np.uint8),
    "channels last": Box(0, 255, (40, 37, 3), np.uint8),
    "small": Box(0, 255, (7, 8, 3), np.uint8),
    "bools": Box(0, 1, (10, 10, 6), bool),
    "float16": Box(-1, 1, (3,), np.float16),
    "float64": Box(-np.inf, np.inf, (2, 2), np.float64),
    "uint16": Box(0, 60_000, (3,), np.uint16),
    "uint32": Box(0, 2**32 - 1, (3,), np.uint32),
    "int32": Box(-9, 9, (3,), np.int32),
    "multi": MultiDiscrete([[2, 5], [3, 4]], start=[[0, -1], [2, 3]]),
    "discrete": Discrete(3, start=-1),
    "bits": MultiBinary((2, 3)),
    "plane": Box(np.array([[-1, 5], [0, -2]], np.float32), np.array([[1, 1005], [0.5, np.inf]], np.float32)),
    "bounded": Box(np.array([-1, 5]), np.array([1, 8]), dtype=np.float64),
    "unbounded": Box(-np.inf, np.inf, (3,), np.float32),
}
SPACES["nested"] = Dict(
    {"a": Tuple((SPACES["image"], SPACES["multi"])), "b": Dict({"c": SPACES["float64"]}), "d": SPACES["bits"]}
)
SPACES["floats"] = Dict({"a": SPACES["float16"], "b": SPACES["small"], "c": SPACES["float64"]})
SPACES["labelled"] = Dict({"a": SPACES["small"], "b": SPACES["discrete"], "c": SPACES["multi"]})
SPACES["unnamed"] = Tuple((SPACES["small"], SPACES["discrete"]))
SPACES["named as the action"] = Dict({"action": SPACES["small"], "b": SPACES["discrete"]})
SPACES["actions"] = Dict({"a": Tuple((SPACES["plane"], SPACES["multi"])), "b": SPACES["int32"], "c": SPACES["bits"]})


class Samples(gym.Env[Any, Any]):
    """Any observations, whatever is done."""

    def __init__(self, obs: str = "float64", action: str = "discrete") -> None:
        self.observation_space, self.action_space = SPACES[obs], SPACES[action]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 0.0, False, False, {}


if SAMPLES not in gym.registry:
    gym.register(SAMPLES, Samples)


def samples(**kwargs: str) -> EnvSettings:
    return settings(SAMPLES, 100, **kwargs)


def model(directory: Path, name: str, env: EnvSettings, normalize: bool = False, **options: Any) -> Path:
    """A model directory of an algorithm with random weights."""
    data: dict[str, Any] = {
        "normalize": {"obs": normalize},
        "env": env.model_dump(),
        "algorithm": {"name": name, "hidden": [16, 16], **options},
    }
    if name == "q":
        del data["algorithm"]["hidden"]
    config, info = load_config(data), describe_env(env)
    policy = make_policy(config, info)
    vector = initial_weights(config, policy)
    vector = vector + np.random.default_rng(0).normal(0, 0.2, vector.shape).astype(vector.dtype)
    if name in ("dqn", "q"):
        vector[-1] = 0.3  # epsilon
    if name != "q":  # not the same action everywhere
        policy.load(vector)
        obs, network = starts(env), without(policy).network  # type: ignore[attr-defined]
        found = network(policy.normalised(obs) if isinstance(policy, NormalisedPolicy) else obs)
        unflatten(vector, policy.shapes())["head.bias"][:] -= found[:, : network.spec.outputs].mean(axis=0)
    about = {
        "algorithm": name,
        "env": env.model_dump(mode="json"),
        "observation": info.obs_layout.tensors(info.observation_space),
        "action": info.action_layout.tensors(info.action_space),
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_model(directory, policy, vector, about | {"version": 3, "env_steps": 4})
    return directory


def starts(env: EnvSettings) -> Array:
    """Some first observations, flat."""
    game, layout = make_env(env), describe_env(env).obs_layout
    seen = [game.reset(seed=seed) for seed in range(20)]
    return np.stack([layout.pack(obs, info.get("action_mask")) for obs, info in seen])


def parts_of(value: Any, name: str = "") -> dict[str, Any]:
    """The arrays of nested Dicts and Tuples by dotted names."""
    if isinstance(value, dict | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        below = [parts_of(x, f"{name}.{key}".removeprefix(".")) for key, x in items]
        return {key: x for part in below for key, x in part.items()}
    return {name: value}


def acts_alike(run: Any, names: list[str], outputs: list[str], player: Player, env: EnvSettings) -> None:
    """`run` on one observation at a time, as a user would call it, against what distrl's own player does.

    Observations are of other episodes than those that an export is tried on.
    """
    game, seen = make_env(env), set()
    for episode in range(30):
        obs, info = game.reset(seed=1000 + episode)
        mask = info.get("action_mask")
        wanted = {
            f"action.{key}".removesuffix("."): x for key, x in parts_of(player.act(obs, action_mask=mask)).items()
        }
        given = {key or "obs": x for key, x in parts_of(obs).items()} | ({} if mask is None else {"action_mask": mask})
        actions = dict(zip(outputs, run({name: np.asarray(given[name])[None] for name in names}), strict=True))
        assert actions.keys() == wanted.keys()
        for key, action in actions.items():
            assert action.shape == (1, *np.shape(wanted[key]))
            np.testing.assert_allclose(action[0], wanted[key], rtol=1e-5, atol=1e-5)
        seen.add(str(wanted))
    assert len(seen) > 1, "always the same action: this says little"


def in_onnxruntime(path: Path) -> tuple[Any, list[str], list[str]]:
    session = onnxruntime.InferenceSession(str(path))
    wide = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}  # what uint16 and the like come as
    types = {x.name: wide.get(x.type) for x in session.get_inputs()}

    def run(inputs: dict[str, Array]) -> list[Array]:
        return list(
            session.run(None, {name: x if types[name] is None else x.astype(types[name]) for name, x in inputs.items()})
        )

    return run, list(types), [x.name for x in session.get_outputs()]


def in_torch(path: Path) -> tuple[Any, list[str], list[str]]:
    texts = {"inputs": "", "outputs": ""}
    loaded = torch.jit.load(str(path), _extra_files=texts)
    names, outputs = json.loads(texts["inputs"]), json.loads(texts["outputs"])

    def run(inputs: dict[str, Array]) -> list[Array]:
        wide = {"uint16": np.int32, "uint32": np.int64}
        arrays = [x.astype(wide.get(str(x.dtype), x.dtype)) for x in inputs.values()]
        return [action.numpy() for action in loaded(*map(torch.from_numpy, arrays))]

    return run, names, outputs


READERS = {"onnx": in_onnxruntime, "torchscript": in_torch}
WALKS = [
    (name, env)
    for env in ENVS
    for name in ("ppo", "a2c", "dqn")
    if name != "dqn" or "action" not in str(ENVS[env].kwargs.keys())
]
OPTIONS: dict[str, dict[str, Any]] = {
    "layer norm": {"name": "ppo", "layer_norm": True},
    "dueling": {"name": "dqn", "dueling": True, "layer_norm": True, "hidden": [24, 16]},
    "relu": {"name": "a2c", "activation": "relu", "hidden": []},
    "state dependent": {"name": "ppo", "action": "unbounded", "state_dependent_std": True},
    "normalised": {"name": "ppo", "action": "plane", "normalize": True},
    "normalised parts": {"name": "a2c", "obs": "floats", "normalize": True},
    "squashed": {"name": "ppo", "action": "bounded", "squash": True},
    "own network": {"name": "dqn", "obs": "float16", "network": "own_nets:Small"},
    "own network of parts": {"name": "a2c", "obs": "labelled", "network": "own_nets:Parts"},
    "own network, normalised": {"name": "ppo", "obs": "float16", "network": "own_nets:Small", "normalize": True},
}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize(("name", "env"), WALKS)
def test_every_space_and_mask(name: str, env: str, format: str, tmp_path: Path) -> None:
    where, told = export(model(tmp_path, name, ENVS[env]), format, None)
    assert told
    assert all(
        re.search(
            r"^action(.[\w.]+)?: (largest difference \d.* over 1,000 observations|0 of 1,000 actions differ)$", line
        )
        for line in told
    )
    acts_alike(*READERS[format](where), load_policy(tmp_path), ENVS[env])


def test_in_onnx_a_name_is_of_one_part(tmp_path: Path) -> None:
    directory = model(tmp_path / "model", "ppo", samples(obs="named as the action"))
    with pytest.raises(UserError, match=r"'action' is a part of the observations and of the actions.*torchscript"):
        export(directory, "onnx", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export(directory, "torchscript", tmp_path / "x")


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize(
    "obs", ["image", "channels last", "small", "bools", "float16", "float64", "uint16", "uint32", "nested", "unnamed"]
)
def test_observations_of_every_type(obs: str, format: str, tmp_path: Path) -> None:
    env = samples(obs=obs)
    where, _ = export(model(tmp_path, "ppo", env), format, tmp_path / "x")
    assert where == tmp_path / ("x" + Path(FORMATS[format].name).suffix)
    acts_alike(*READERS[format](where), load_policy(tmp_path), env)


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize(
    "action", ["plane", "bounded", "unbounded", "float16", "int32", "uint16", "multi", "bits", "actions"]
)
def test_actions_of_every_type(action: str, format: str, tmp_path: Path) -> None:
    env = samples(action=action)
    where, _ = export(model(tmp_path, "ppo", env), format, None)
    run, names, outputs = READERS[format](where)
    acts_alike(run, names, outputs, load_policy(tmp_path), env)
    for name, array in parts_of(SPACES[action].sample()).items():
        number = outputs.index(f"action.{name}".removesuffix("."))
        own = run({"obs": np.zeros((5, 2, 2))})[number]
        assert own.shape == (5, *np.shape(array))
        assert str(own.dtype) == {"uint16": "int32"}.get(str(np.asarray(array).dtype), str(np.asarray(array).dtype))


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_networks_and_distributions(options: dict[str, Any], format: str, tmp_path: Path) -> None:
    given = dict(options)
    env = samples(obs=given.pop("obs", "float64"), action=given.pop("action", "discrete"))
    where, _ = export(model(tmp_path, given.pop("name"), env, **given), format, None)
    acts_alike(*READERS[format](where), load_policy(tmp_path), env)


def test_a_table_of_masks(tmp_path: Path) -> None:
    """Taxi's: the state says what may be done."""
    env = settings("Taxi-v4", 50)
    where, _ = export(model(tmp_path, "ppo", env), "onnx", None)
    policy, _, _ = load_model(tmp_path)
    run, names, _ = in_onnxruntime(where)
    (action,) = run({"obs": np.arange(500)})
    assert names == ["obs"]
    assert policy.obs_layout.table[np.arange(500), action].all() and not policy.obs_layout.table.all()
    assert (action == policy.greedy(np.arange(500))).all()


def test_an_onnx_file_says_what_it_is(tmp_path: Path) -> None:
    env = ENVS["mask of multi"]
    where, _ = export(model(tmp_path, "ppo", env), "onnx", None)
    session = onnxruntime.InferenceSession(str(where))
    said = session.get_modelmeta().custom_metadata_map
    policy, _, about = load_model(tmp_path)
    assert said["weights_sha256"] == weights_sha256(policy)
    assert EnvSettings(**json.loads(said["env"])) == env and said["env_id"] == env.id
    assert said["action_space"] == str(make_env(env).action_space)
    assert said["observation_space"] == str(make_env(env).observation_space)
    assert json.loads(said["versions"])["distrl"] and (said["version"], said["env_steps"]) == ("3", "4")
    inputs = [(x.name, x.shape, x.type) for x in session.get_inputs()]
    types = {"int8": "int8", "int64": "int64", "uint8": "uint8", "float64": "double"}
    assert inputs == [(x["name"], ["N", *x["shape"]], f"tensor({types[x['dtype']]})") for x in about["observation"]]
    assert [name for name, _, _ in inputs] == ["seen.grid", "seen.more.0", "seen.more.1", "seen.place", "action_mask"]


@pytest.mark.parametrize(
    ("name", "env"), [("ppo", "dict actions"), ("dqn", "mask in the info"), ("q", "mask in a dict"), ("q", "discrete")]
)
def test_mlflow_serves_what_it_was_given(name: str, env: str, tmp_path: Path) -> None:
    where, told = export(model(tmp_path / "model", name, ENVS[env]), "mlflow", tmp_path / "served")
    assert told and all("0" in line for line in told)
    served = mlflow.pyfunc.load_model(str(where))
    layout = load_policy(tmp_path / "model").policy
    names, outputs = trial.input_names(layout), trial.output_names(layout)

    def run(inputs: dict[str, Array]) -> list[Array]:
        action = served.predict(inputs["obs"] if list(inputs) == ["obs"] else inputs)
        return list(action.values()) if isinstance(action, dict) else [action]

    acts_alike(run, names, outputs, load_policy(tmp_path / "model"), ENVS[env])
    with pytest.raises(UserError, match=r"exists\. Choose another name"):
        export(tmp_path / "model", "mlflow", where)


def of_it(about: dict[str, Any]) -> dict[str, Any]:
    """What is known of a policy, whatever file it lies in."""
    return {name: x for name, x in about.items() if name not in ("sha256", "checksum")}


@pytest.mark.parametrize(("name", "env"), [("a2c", "mask of multi"), ("dqn", "grid"), ("q", "multi")])
def test_safetensors_are_read_again(name: str, env: str, tmp_path: Path) -> None:
    where, told = export(model(tmp_path, name, ENVS[env]), "safetensors", tmp_path / "away" / "policy")
    assert told == ["action: 0 of 1,000 actions differ"]
    (policy, settings, about), (own, _, known) = load_model(where), load_model(tmp_path)
    assert weights_sha256(policy) == weights_sha256(own) and policy.describe() == own.describe()
    assert settings == ENVS[env] and of_it(about) == of_it(known)
    assert play_episodes(where, 5, greedy=False, seed=1) == play_episodes(tmp_path, 5, greedy=False, seed=1)
    where.write_bytes(where.read_bytes()[:-9])
    with pytest.raises(UserError, match="not a model that"):
        load_model(where)


# --- what is not the policy is not written --------------------------------------------------------------------------


@pytest.mark.parametrize("format", READERS)
def test_what_differs_is_not_written(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that makes a small mistake: it divides bytes by 256."""
    from distrl.learning.encoders import TorchEncoder

    real = TorchEncoder.__init__

    def wrong(self: TorchEncoder, encoder: Any) -> None:
        real(self, replace(encoder, scale=1 / 256) if encoder.scale != 1 else encoder)

    directory = model(tmp_path / "model", "ppo", samples(obs="image", action="bounded"))
    monkeypatch.setattr(TorchEncoder, "__init__", wrong)
    out = tmp_path / "out" / ("x" + Path(FORMATS[format].name).suffix)
    with pytest.raises(UserError, match="does not do what the policy does, so it was not written"):
        export(directory, format, out)
    assert list(out.parent.iterdir()) == []
    out.write_text("of old")
    with pytest.raises(UserError, match="largest difference"):
        export(directory, format, out)
    assert [(p, p.read_text()) for p in out.parent.iterdir()] == [(out, "of old")]


def judged(policy: Policy, env: EnvSettings, change: Any) -> list[str]:
    """What is said where the policy's own actions, one array a part, are changed."""
    seen = trial.observe(policy, describe_env(env), env)
    rows = iter(range(0, trial.OBSERVATIONS, trial.AT_ONCE))

    def run(inputs: Any) -> list[Array]:
        first = next(rows)
        action = policy.greedy(seen.flat[first : first + trial.AT_ONCE])
        parts = [part.of(action).copy() for part in policy.action_layout.parts]
        if first == trial.AT_ONCE:
            change(parts)
        return parts

    return trial.compare(policy, seen, run, "it")


def put(part: int, value: Any, at: Any = 7) -> Any:
    def change(parts: list[Array]) -> None:
        parts[part][at] = value(parts[part][at]) if callable(value) else value

    return change


def test_a_single_other_action_is_found(tmp_path: Path) -> None:
    walk, _, _ = load_model(model(tmp_path / "a", "ppo", ENVS["mask of a part"]))
    env = ENVS["mask of a part"]
    assert judged(walk, env, lambda parts: None)[1] == "action.go.1: largest difference 0 over 1,000 observations"
    assert (
        judged(walk, env, put(1, lambda x: x + 2e-6))[1]
        == "action.go.1: largest difference 2e-06 over 1,000 observations"
    )
    for part, value in (
        (0, lambda x: (x + 1) % 3),
        (0, 3),
        (0, -1),
        (1, lambda x: x + 1e-3),
        (2, lambda x: 1 - x),
        (2, 2),
    ):
        with pytest.raises(UserError, match=r"1 of 1,000 actions differ|largest difference \d"):
            judged(walk, env, put(part, value))
    multi, _, _ = load_model(model(tmp_path / "b", "ppo", samples(action="multi")))
    with pytest.raises(UserError, match=r"1 of 1,000 actions differ; up to \d"):
        judged(multi, samples(action="multi"), put(0, lambda x: [[0, -1 + (x[0, 1] + 2) % 5], x[1]]))
    whole, _, _ = load_model(model(tmp_path / "c", "ppo", samples(action="int32")))
    with pytest.raises(UserError, match="1 of 1,000 actions differ"):
        judged(whole, samples(action="int32"), put(0, lambda x: x + 1))
    table, _, _ = load_model(model(tmp_path / "d", "q", ENVS["discrete"]))
    with pytest.raises(UserError, match="1 of 1,000 actions differ"):
        judged(table, ENVS["discrete"], put(0, lambda x: x + 1))
    plane, _, _ = load_model(model(tmp_path / "e", "ppo", samples(action="plane")))
    with pytest.raises(UserError, match="largest difference nan"):
        judged(plane, samples(action="plane"), put(0, np.nan, at=(7, 1, 0)))
    seen = trial.observe(plane, describe_env(samples(action="plane")), samples(action="plane"))
    with pytest.raises(UserError, match=r"has shape \[8\], where \[1000, 2, 2\] is due"):
        trial.compare(plane, seen, lambda inputs: [np.zeros(1)], "it")


def test_ties_are_told_as_such(tmp_path: Path) -> None:
    """Two actions of equal logits in the first place: either is the best. A third one is not."""
    env = ENVS["box"]
    policy, _, _ = load_model(model(tmp_path, "dqn", env))
    assert isinstance(policy, EpsilonGreedyPolicy)
    arrays = policy.arrays()
    arrays["head.weight"][:] = 0
    arrays["head.bias"][:] = [5, 1, 5 * (1 - 1e-7)]
    policy.load(policy.vector)
    (line,) = judged(policy, env, put(0, 2))
    assert re.fullmatch(
        r"action: 1 of 1,000 actions differ: ties, decided by float rounding \(numbers at most 5e-07 apart, of up to 5\)",
        line,
    )
    with pytest.raises(UserError, match="up to 4 from being"):
        judged(policy, env, put(0, 1))
    arrays["head.bias"][2] = 5 * (1 - 1e-3)
    policy.load(policy.vector)
    with pytest.raises(UserError, match=r"1 of 1,000 actions differ; up to 0\.005 from being"):
        judged(policy, env, put(0, 2))


def test_a_mask_is_kept_even_in_a_tie(tmp_path: Path) -> None:
    env = ENVS["mask in the info"]
    policy, _, _ = load_model(model(tmp_path, "ppo", env))
    arrays = policy.arrays()
    arrays["head.weight"][:], arrays["head.bias"][:] = 0, 0
    policy.load(np.concatenate([array.ravel() for array in arrays.values()]))
    seen = trial.observe(policy, describe_env(env), env)
    forbidden = int(seen.inputs["action_mask"][trial.AT_ONCE + 7].argmin())
    allowed = int(seen.inputs["action_mask"][trial.AT_ONCE + 7].nonzero()[0][-1])
    assert "ties" in judged(policy, env, put(0, allowed + 1))[0]
    with pytest.raises(UserError, match="up to inf from being"):
        judged(policy, env, put(0, forbidden + 1))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("env", ["box", "mask in the info"])
def test_what_remembers_takes_and_gives_its_memory(env: str, kind: str, tmp_path: Path) -> None:
    """Whole episodes: the file acts as the policy does while it is given back what it gave, and else forgets."""
    settings = ENVS[env]
    run = model(tmp_path, "ppo", settings, env == "box", memory={"kind": kind, "size": 8}, shared_body=True)
    for format in ("onnx", "torchscript", "safetensors"):
        _, lines = export(run, format, None)
        assert len(lines) == 2 and lines[1].startswith("memory_out: largest difference ")
    session = onnxruntime.InferenceSession(str(run / "policy.onnx"))
    player, game = load_policy(run), make_env(settings)
    size = session.get_inputs()[-1].shape[-1]
    forgot, steps = 0, 0
    for episode in range(5):
        player.reset()
        memory, ended = np.zeros((1, size), np.float32), False
        obs, told = game.reset(seed=episode)
        while not ended and steps < 500:
            mask = told.get("action_mask")
            given = {"obs": obs[None]} | ({} if mask is None else {"action_mask": mask[None]})
            action, after = session.run(None, given | {"memory_in": memory})
            lost, _ = session.run(None, given | {"memory_in": np.zeros_like(memory)})
            assert action[0] == player.act(obs, action_mask=mask)
            forgot, steps, memory = forgot + (lost[0] != action[0]), steps + 1, after
            obs, _, terminated, truncated, told = game.step(action[0])
            ended = terminated or truncated
    assert size == (16 if kind == "lstm" else 8) and 0 < forgot < steps


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_format_that_does_not_fit_is_refused_with_those_that_do(tmp_path: Path) -> None:
    network, table = model(tmp_path / "network", "ppo", ENVS["box"]), model(tmp_path / "table", "q", ENVS["discrete"])
    with pytest.raises(
        UserError, match=r"csv does not fit a stochastic policy\. Take one of onnx, torchscript, safetensors, mlflow"
    ):
        export(network, "csv", None)
    with pytest.raises(
        UserError, match=r"onnx does not fit a table policy\. Take one of csv, json, npz, safetensors, mlflow"
    ):
        export(table, "onnx", None)
    with pytest.raises(UserError, match=r"must be one of csv, .*Did you mean 'onnx'\?"):
        export(network, "onxx", None)
    remembers = model(tmp_path / "remembers", "ppo", ENVS["box"], normalize=True, memory={"size": 8}, shared_body=True)
    for format in ("mlflow", "csv"):
        with pytest.raises(
            UserError, match=rf"{format} does not fit a recurrent policy\. Take one of onnx, torchscript, safe"
        ):
            export(remembers, format, None)
    assert export(network, None, None)[0] == network / "policy.onnx"
    assert export(table, None, None)[0] == table / "table.csv"


def test_a_policy_of_another_kind_is_refused_by_its_name() -> None:
    class Other:
        def describe(self) -> dict[str, str]:
            return {"type": "other"}

    with pytest.raises(UserError, match="A policy of type other cannot be made a torch module"):
        greedy.Greedy(Other())  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model(tmp_path, "ppo", ENVS["box"])
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=f"needs the package {name}: pip install onnx onnxruntime"):
                export(directory, "onnx", None)
    assert not (tmp_path / "policy.onnx").exists()


def test_the_program_of_the_readme_needs_neither_distrl_nor_torch(tmp_path: Path) -> None:
    """It plays an episode of CartPole by the file alone, and gets what distrl gets."""
    env = settings("CartPole-v1")
    directory = model(tmp_path / "model", "ppo", env)
    done = distrl("export", str(directory), "--format", "onnx", "--out", "policy.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["policy.onnx", " action: 0 of 1,000 actions differ"]
    (program,) = [b for b in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S) if "onnxruntime" in b]
    (tmp_path / "program.py").write_text(program)
    blocked = "import sys, runpy; sys.modules['distrl'] = sys.modules['torch'] = None; runpy.run_path('program.py')"
    for name in ("distrl", "torch"):
        tried = subprocess.run(
            [sys.executable, "-c", blocked.replace("runpy.run_path('program.py')", f"import {name}")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ImportError" in tried.stderr or "ModuleNotFoundError" in tried.stderr
    played = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert played.returncode == 0, played.stderr
    game, player, total, ended = make_env(env), load_policy(directory), 0.0, False
    obs, _ = game.reset(seed=1)
    while not ended:
        obs, reward, terminated, truncated, _ = game.step(player.act(obs))
        total, ended = total + float(reward), terminated or truncated
    assert played.stdout.strip() == f"{total}"


def test_mistakes_are_one_message(tmp_path: Path) -> None:
    directory = model(tmp_path / "model", "ppo", settings("CartPole-v1"))
    for words, message in (
        (["--format", "csv"], "does not fit a stochastic policy"),
        (["--format", "pickle"], "must be one of csv"),
        (["--out", str(directory / "policy.json" / "x.onnx")], "cannot be written"),
        (["--format", "safetensors", "--out", str(directory / "policy")], "holds the weights of a model"),
    ):
        refused = distrl("export", str(directory), *words, cwd=tmp_path)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False), refused.stderr
        assert message in refused.stderr.replace("\n", " ")
    assert sorted(p.name for p in directory.iterdir()) == ["policy.json", "policy.safetensors"]
    assert distrl("export", str(directory), "--format", "safetensors", cwd=tmp_path).returncode == 0
    load_policy(directory)
