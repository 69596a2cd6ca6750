"""Networks of one's own: they act as they learn, by torch's own arithmetic, and what cannot be repeated is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import own_nets
import pytest
import torch
from conftest import CARTPOLE, DQN, config_of, run_trainer
from processes import distrl
from toys import rewrite_model

from distrl.acting.make import initial_weights, make_policy
from distrl.acting.modules import ModuleNetwork, ModuleSpec, module_spec, seen
from distrl.acting.network import unflatten
from distrl.acting.policies import EpsilonGreedyPolicy, StochasticPolicy
from distrl.envs.make import describe_env
from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.layouts import Layout, observation_layout
from distrl.learning.networks import make_network
from distrl.models.store import list_checkpoints, read_model, write_model
from distrl.types import Array

VECTOR = gym.spaces.Box(-1, 1, (5,))
PARTS = gym.spaces.Dict(
    {
        "camera": gym.spaces.Box(0, 255, (3, 4, 4), np.uint8),
        "gear": gym.spaces.Discrete(3, start=2),
        "dice": gym.spaces.MultiDiscrete([2, 6]),
        "speed": gym.spaces.Box(-1, 1, (2,)),
    }
)


def batch(space: gym.Space, layout: Layout, count: int = 7) -> Array:
    space.seed(3)
    return np.stack([layout.pack(space.sample()) for _ in range(count)])


def test_it_is_shown_numbers_as_they_are_and_whole_numbers_one_hot() -> None:
    layout = observation_layout(PARTS)
    sample = {"camera": np.full((3, 4, 4), 255, np.uint8), "gear": 3, "dice": np.array([1, 4]), "speed": np.array([0.5, -1], np.float32)}  # fmt: skip
    found = seen(layout, torch.tensor(layout.pack(sample)[None]))
    assert {name: x.dtype for name, x in found.items()} == dict.fromkeys(PARTS, torch.float32)
    assert found["camera"].shape == (1, 3, 4, 4) and (found["camera"] == 255).all()
    assert found["gear"].tolist() == [[0, 1, 0]]
    assert found["dice"].tolist() == [[0, 1, 0, 0, 0, 0, 1, 0]]
    assert found["speed"].tolist() == [[0.5, -1]]
    assert seen(observation_layout(VECTOR), torch.zeros(2, 5)).shape == (2, 5)


@pytest.mark.parametrize(("space", "place"), [(VECTOR, "own_nets:Small"), (PARTS, "own_nets:Parts")])
def test_it_acts_as_it_learns(space: gym.Space, place: str) -> None:
    layout = observation_layout(space)
    spec = module_spec(place, layout, 3, free=2)
    vector = spec.initial(np.random.default_rng(0), 0.5)
    assert vector.shape == (spec.parameters,) == (sum(np.prod(s, dtype=int) for s in spec.shapes().values()),)
    vector += np.random.default_rng(1).normal(0, 0.1, vector.shape).astype(np.float32)
    acting = ModuleNetwork(spec)
    acting.load(vector)
    obs = batch(space, layout)
    learning = make_network(spec, vector)
    np.testing.assert_allclose(acting(obs), learning(torch.tensor(obs)).detach().numpy(), rtol=1e-5, atol=1e-6)
    # By hand: the module's own features, a matrix and what is free.
    module = getattr(own_nets, place.partition(":")[2])(seen(layout, torch.tensor(obs)))
    arrays = dict(zip(spec.shapes(), np.split(vector, np.cumsum([np.prod(s, dtype=int) for s in spec.shapes().values()])[:-1]), strict=True))  # fmt: skip
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.tensor(arrays[f"body.{name}"]).view(parameter.shape))
        features = module(seen(layout, torch.tensor(obs))).numpy()
    out = features @ arrays["head.weight"].reshape(3, -1).T + arrays["head.bias"]
    np.testing.assert_allclose(
        acting(obs), np.append(out, np.tile(arrays["free"], (7, 1)), axis=1), rtol=1e-4, atol=1e-5
    )
    later = vector + np.float32(0.1)
    acting.load(later)
    assert not np.array_equal(acting(obs)[:, :3], out)


def test_its_first_weights_are_its_own_and_follow_the_seed() -> None:
    layout = observation_layout(VECTOR)
    before = torch.random.get_rng_state()
    spec = module_spec("own_nets:Small", layout, 2)
    a, b, c = (spec.initial(np.random.default_rng(seed), 1.0) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(a[:5], np.ones(5))  # the gain, as the module makes it
    bound = 1 / 5**0.5  # of nn.Linear
    assert np.abs(a[29 : 29 + 120]).max() <= bound and a[29 : 29 + 120].std() == pytest.approx(bound / 3**0.5, rel=0.2)
    head = a[-50:-2].reshape(2, 24)
    np.testing.assert_allclose(head @ head.T, np.eye(2), atol=1e-6)


def test_a_description_brings_it_back() -> None:
    spec = module_spec("own_nets:Parts", observation_layout(PARTS), 3, free=1)
    config = config_of(CARTPOLE, "algorithm.network=own_nets:Small")
    policy = make_policy(config, describe_env(config.env))
    assert isinstance(policy, StochasticPolicy)
    again = StochasticPolicy.from_description(json.loads(json.dumps(policy.describe())))
    assert again.network.spec == policy.network.spec
    assert spec.shapes()["head.weight"] == (3, 32)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("own_nets:Smal", ["own_nets:Smal", "Did you mean 'Small'"]),
        ("own_net:Small", ["own_net:Small", "torch.nn.Module", "my_package.nets:MyNet"]),
        ("own_nets:function", ["subclass of torch.nn.Module"]),
        ("own_nets", ["subclass of torch.nn.Module"]),
        (
            "own_nets:Bare",
            ["cannot be made with one observation", "TypeError", "Make its __init__ take that alone, a tensor [1, "],
        ),
        ("own_nets:Dropping", ["dropout"]),
        ("own_nets:Batched", ["nn.LayerNorm"]),
        ("own_nets:Drawn", ["'projection'", "nn.Parameter"]),
        ("own_nets:Hidden", ["made again", "nn.Parameter"]),
        ("own_nets:Scalar", ["[] torch.float32", "[B, F]"]),
        ("own_nets:Failing", ["own_nets.py:", "mat1 and mat2 do not fit", "Its forward is given a tensor [3, "]),
        ("own_nets:Wide", ["'gain'", "float64", "float32"]),
    ],
)
def test_what_is_no_network_is_refused(place: str, says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        module_spec(place, observation_layout(VECTOR), 2)
    assert all(words in str(caught.value) for words in ["algorithm.network", *says]), str(caught.value)


def test_dueling_needs_a_network_of_distrls_own() -> None:
    with pytest.raises(UserError, match=r"algorithm.dueling.*algorithm.network has none"):
        config_of(DQN, "algorithm.network=own_nets:Small", "algorithm.dueling=true")


def test_reading_a_model_imports_nothing_that_it_names(tmp_path: Path) -> None:
    """The file may come from anywhere; the module is looked for when it acts."""
    config = config_of(CARTPOLE, "algorithm.network=own_nets:Small")
    policy = make_policy(config, describe_env(config.env))
    write_model(tmp_path, policy, initial_weights(config, policy), {"algorithm": "ppo", "env": config.env.model_dump()})
    rewrite_model(tmp_path, lambda about: about["policy"]["network"].update(place="nowhere_to_be_found:Small"))
    read, _ = read_model(tmp_path)
    with pytest.raises(UserError, match="nowhere_to_be_found"):
        read.greedy(np.zeros((1, 4), np.float32))


def test_from_training_to_a_program_that_acts(tmp_path: Path) -> None:
    """With the module in the directory where distrl is called, as a user has it."""
    (tmp_path / "mine.py").write_text(Path(own_nets.__file__).read_text())
    overrides = [
        "algorithm.network=mine:Small",
        "stop.env_steps=4096",
        "stop.return_mean=null",
        "track.mlflow=false",
        "run_dir=run",
    ]
    overrides += ["evaluation.final_episodes=2", "track.video=false"]
    for command in (["train", "ppo_cartpole", *overrides, "--local", "-q"], ["evaluate", "run", "--episodes", "2"], ["export", "run", "--format", "torchscript", "--out", "m.pt"]):  # fmt: skip
        done = distrl(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    code = (
        "import sys, numpy as np, distrl; p = distrl.load_policy('run'); o = np.full(4, 0.02, np.float32);"
        "a = p.act(o); import torch; b = torch.jit.load('m.pt')(torch.tensor(o[None])); print(int(a) == int(b[0]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.stdout.split() == ["True"], out.stderr


def test_dqn_learns_with_one(tmp_path: Path) -> None:
    """Every weight of it moves."""
    config = config_of(DQN, "algorithm.network=own_nets:Small", "algorithm.dueling=false")
    run_trainer(config, LocalExecution(), tmp_path)
    policy, _ = read_model(list_checkpoints(tmp_path)[-1])
    assert isinstance(policy, EpsilonGreedyPolicy) and isinstance(policy.network.spec, ModuleSpec)
    first = initial_weights(config, policy)
    arrays, before = policy.arrays(), unflatten(first, policy.shapes())
    assert all((arrays[name] != before[name]).any() for name in arrays if name != "epsilon")
