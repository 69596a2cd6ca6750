"""What comes from outside (configs, overrides, files, a user's modules and envs) is read, or refused with one message.

The fuzzers are seeded: they try the same many thousand mistakes each time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import yaml
from conftest import CARTPOLE, TAXI, config_of, run_trainer
from processes import distrl
from toys import rewrite_model

from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.single import SingleShard
from distrl.errors import EnvError, UserError
from distrl.execution.local import LocalExecution
from distrl.files import open_arrays
from distrl.models.play import play_episodes
from distrl.models.player import load_policy
from distrl.models.store import find_model, list_checkpoints, read_model
from distrl.runs.plan import plan_run
from distrl.runs.resume import resume_point
from distrl.settings import EnvSettings
from distrl.training.checkpoint import read_checkpoint, read_checkpoint_config

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**20, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "..", "a:b", "\0",
    "x" * 5000, [], [[]], {}, {"": {}}, [None] * 50, {"a": [{"b": "c"}]}, "best", "__class__",
]  # fmt: skip


def deep(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in nested dicts and lists."""
    yield path
    if isinstance(data, dict | list):
        for key, below in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(below, (*path, key))


def mutated(data: Any, rng: random.Random) -> Any:
    """A copy with one to three things replaced, taken out or renamed."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([p for p in places(data) if p] or [()])
        if not path:
            continue
        *parents, leaf = path
        holder = data
        for key in parents:
            holder = holder[key]
        what = rng.random()
        if what < 0.7:
            holder[leaf] = copy.deepcopy(rng.choice(ODD)) if what < 0.68 else deep(600)
        elif what < 0.85 or isinstance(holder, list):
            del holder[leaf]
        else:
            holder[f"{leaf}s"] = holder.pop(leaf)
    return data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of a network and of a table, each with checkpoints and a best model."""
    directories = []
    for config in (CARTPOLE, TAXI):
        directories.append(tmp_path_factory.mktemp("run"))
        run_trainer(config_of(config, "stop.env_steps=1280"), LocalExecution(), directories[-1])
    return directories


@pytest.mark.parametrize("which", [0, 1], ids=["network", "table"])
def test_any_policy_json_is_read_or_refused(which: int, runs: list[Path], tmp_path: Path) -> None:
    rng, refused = random.Random(which), []
    source = runs[which] / "best"
    for name in ("policy.json", "policy.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    rewrite_model(tmp_path, lambda about: None)
    good = json.loads((tmp_path / "policy.json").read_text())
    for _ in range(600):
        (tmp_path / "policy.json").write_text(json.dumps(mutated(good, rng)))
        try:
            player = load_policy(tmp_path)
            player.policy.greedy(player.policy.obs_layout.example()[None])
        except UserError as error:
            refused.append(str(error))
    assert all(str(tmp_path) in message and len(message) < 3000 for message in refused)
    assert 300 < len(refused) < 600


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "policy.json"])
def test_any_json_of_a_checkpoint_is_read_or_refused(name: str, runs: list[Path], tmp_path: Path) -> None:
    """The manifest fits what was changed, so that it is read."""
    rng, refused, source = random.Random(name), [], list_checkpoints(runs[0])[-1]
    path = tmp_path / "checkpoints" / source.name
    path.mkdir(parents=True)
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    good, manifest = (json.loads((path / file).read_text()) for file in (name, "manifest.json"))
    for _ in range(300):
        text = json.dumps(mutated(good, rng))
        (path / name).write_text(text)
        if name != "manifest.json":
            manifest["sha256"][name] = hashlib.sha256(text.encode()).hexdigest()
            (path / "manifest.json").write_text(json.dumps(manifest))
        for read in (lambda p: read_checkpoint(p, 4), read_checkpoint_config):
            try:
                read(path)
            except UserError as error:
                refused.append(str(error))
    assert [message for message in refused if str(path) not in message or len(message) >= 3000] == []
    assert len(refused) > 100


def test_any_bytes_are_a_model_or_refused(runs: list[Path], tmp_path: Path) -> None:
    rng = random.Random(0)
    files = {name: (list_checkpoints(runs[0])[-1] / name).read_bytes() for name in ("policy.json", "manifest.json", "config.yaml")}  # fmt: skip
    for name, good in files.items():
        for _ in range(150):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path / name).write_bytes(bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.2 else data)
            for read in (read_model, read_checkpoint_config, lambda p: load_config(p / "config.yaml")):
                with suppress(UserError):
                    read(tmp_path)


def test_any_config_is_taken_or_refused(tmp_path: Path) -> None:
    rng, refused = random.Random(0), []
    good = yaml.safe_load(config_of(CARTPOLE).to_yaml())
    for _ in range(600):
        data = mutated(good, rng)
        try:
            if rng.random() < 0.3:
                (tmp_path / "config.yaml").write_text(json.dumps(data))
                data = tmp_path / "config.yaml"
            load_config(data).to_yaml()
        except UserError as error:
            refused.append(str(error))
    assert max(map(len, refused)) < 20_000
    assert 300 < len(refused) < 600


def test_any_override_is_taken_or_refused() -> None:
    rng, refused = random.Random(0), 0
    keys = ["seed", "env.id", "env.kwargs.a", "env.kwargs", "rollout", "rollout.steps", "algorithm.name", "algorithm.hidden", "a.b", "", ".", "env..id", "stop.env_steps", "env.wrappers"]  # fmt: skip
    values = ["", "[", "{", "]", "&a [*a]", "*a", "!!python/object:os.system x", "1e999", "0x", "---", "? a", "[" * 5000, "{a: " * 500, "2020-01-01", "=", "0o8", "1_000", "!!binary x", "!!timestamp 9", "!!int x", "!!float ''", "!!omap x", "<<: 3", "{<<: [1]}", "'", '"', "\0", "\ud800", "12:30:45", "1:99:99999999999", "9" * 5000]  # fmt: skip
    for key in keys:
        for value in [*values, *(json.dumps(odd) for odd in rng.sample(ODD, 8))]:
            try:
                load_config(CARTPOLE, [f"{key}={value}"]).to_yaml()
            except UserError:
                refused += 1
    assert refused > 300


def lettered(path: Path, text: str, name: str = "theirs") -> str:
    (path / f"{name}.py").write_text(text)
    return name


MADE = "import gymnasium\nclass Env(gymnasium.Env):\n    observation_space = gymnasium.spaces.Discrete(2)\n    action_space = gymnasium.spaces.Discrete(2)\n    def reset(self, seed=None, options=None): return 0, {{}}\n    {}\ngymnasium.register('Theirs-v0', Env)\n"  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise OSError('no licence')", "OSError: no licence"),
        ("import sys; sys.exit(3)", r"sys.exit\(3\)"),
        ("def f(:", r"SyntaxError: .*theirs.py, line 1"),
        ("import nowhere", "No module named 'nowhere'"),
        ("1 / 0", r"ZeroDivisionError.*theirs.py, line 1"),
        (MADE.format("def __init__(self): raise ConnectionError('the server is away')"), "the server is away.*line 6"),
        (MADE.format("def __init__(self): raise ValueError('of mine')"), "ValueError: of mine.*line 6"),
        (MADE.format("def __init__(self): raise SystemExit('bye')"), "'bye'"),
        (MADE.format("def close(self): raise OSError('still open')"), "closed: OSError: still open.*line 6"),
        (MADE.format("action_space = 3"), "Theirs-v0"),
    ],
)
def test_whatever_a_users_env_does_is_one_message(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    lettered(tmp_path, text)
    try:
        with pytest.raises(UserError, match=f"(?s)theirs.*{says}"):
            plan_run(config_of({**CARTPOLE, "env": {"id": "theirs:Theirs-v0"}}))
    finally:
        sys.modules.pop("theirs", None)
        gym.registry.pop("Theirs-v0", None)


@pytest.mark.parametrize("env_id", ["..:X", ":X", "a b:X-v0", ".x:Y-v0", "CartPole-v0x", "FrozenLake-v0", "", "CartPole", "\0", "x" * 400])  # fmt: skip
def test_what_is_no_env_id_is_refused(env_id: str) -> None:
    with pytest.raises(UserError, match=r"env\.id"):
        describe_env(EnvSettings(id=env_id))


@pytest.mark.parametrize("text", ["raise OSError('no licence')", "import sys; sys.exit(3)", "def f(:"])
@pytest.mark.parametrize("key", ["algorithm.name", "env.wrappers"])
def test_a_module_that_cannot_be_imported_is_one_message(
    text: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = lettered(tmp_path, text)
    override = f"{key}={name}" if key == "algorithm.name" else f"{key}=['{name}:X']"
    with pytest.raises(UserError, match=f"{key}.*theirs.*cannot be imported"):
        load_config(CARTPOLE, [override])


def test_an_env_that_raises_while_it_is_watched_says_where() -> None:
    class Raising(gym.Env[Any, Any]):
        def reset(self, **_: Any) -> Any:
            return 0, {}

        def step(self, action: Any) -> Any:
            raise ConnectionError("hung up")

    with pytest.raises(EnvError, match=r"(?s)env copy 0, episode seed \d+, step 1 .*hung up"):
        list(play_episodes(lambda episode: lambda obs, info: 0, Raising(), 0, 1))


LONG = "x" * 300


def test_a_name_that_is_too_long_is_one_message(tmp_path: Path) -> None:
    for command in (["train", "ppo_cartpole", f"run_dir={LONG}", "--dry-run"], ["evaluate", LONG], ["train", "--resume", LONG], ["train", f"{LONG}.yaml"], ["train", "ppo_cartpole", f"init_from={LONG}", "--dry-run"], ["plot", LONG], ["record", LONG]):  # fmt: skip
        done = distrl(*command, cwd=tmp_path)
        assert done.returncode == 2, (command, done.stderr)
        told = done.stderr.removeprefix("Looking at the config and the env ...\n")
        assert "Traceback" not in told and told.count("\n") == 1, told


def test_checkpoints_that_cannot_be_listed_are_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("seed: 1")

    def closed(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    for read in (find_model, resume_point):
        with pytest.raises(UserError, match=r"cannot be read.*Permission denied"):
            read(tmp_path)
    with pytest.raises(UserError, match=r"00000001"):
        read_checkpoint(tmp_path / "checkpoints" / "00000001", 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path, manifest: (path / "more.npz").write_bytes(b""), "more.npz is not listed"),
        (lambda path, manifest: manifest.update(sha256={}), "is not listed"),
        (lambda path, manifest: manifest.update(sha256=[]), "lists no files"),
        (lambda path, manifest: manifest["sha256"].update({"../x": "0"}), "no name of a file"),
        (lambda path, manifest: manifest.update(format=3.5), "no whole number"),
        (lambda path, manifest: manifest.update(format="3"), "no whole number"),
        (lambda path, manifest: manifest["sha256"].pop("run.json") and (path / "run.json").unlink(), "no run.json"),
    ],
)
def test_a_manifest_lists_all_that_a_checkpoint_is(change: Any, says: str, runs: list[Path], tmp_path: Path) -> None:
    source = list_checkpoints(runs[0])[-1]
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    change(tmp_path, manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=says):
        read_checkpoint(tmp_path, 4)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [(LAUGHS, "100,000 values"), ("a: &a [*a]", "100,000 values"), ("[" * 200 + "]" * 200, "nested too deeply")],
)
def test_yaml_that_would_be_endless_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["rollout.shards=1000000000000"],
            "rollout.shards=1,000,000,000,000 x rollout.envs_per_shard=4 x rollout.steps=16",
        ),
        (["rollout.envs_per_shard=1000000000000"], "x rollout.envs_per_shard=1,000,000,000,000 x"),
        (["rollout.steps=1000000000000"], "rollout.steps=1,000,000,000,000 are 16,000,000,000,000 env steps"),
        (["algorithm.hidden=[1000000000000]"], "makes a network of 7,000,000,000,002 parameters, 16 bytes each"),
    ],
)
def test_what_no_machine_holds_is_refused_with_the_sum(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match="GiB of memory are free") as caught:
        plan_run(config_of(CARTPOLE, "stop.env_steps=null", "stop.return_mean=1", "evaluation.every=0", *overrides))
    assert says in str(caught.value)


def test_arrays_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", zeros=np.zeros(2**20))
    with open_arrays(tmp_path / "x.npz") as file:
        assert file["zeros"].sum() == 0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**22))
    with pytest.raises(UserError, match=r"x.npz unpacks to 8,388,\d+ bytes"), open_arrays(tmp_path / "x.npz"):
        pass


@pytest.mark.parametrize(
    ("obs", "reward", "says"),
    [
        ([0, np.nan, 0], 1.0, "holds NaN"),
        ([0, 0, 0], None, "the reward is None"),
        ([0], 1.0, r"shape \[1\], the space says \[3\]"),
        ([[0, 0, 0]], 1.0, r"shape \[1, 3\], the space says \[3\]"),
    ],
)
def test_what_no_env_may_give_is_told_at_the_first_one(obs: Any, reward: Any, says: str) -> None:
    class Wrong(gym.Env[Any, Any]):
        observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2)
        made = 0

        def __init__(self) -> None:
            self.number, self.step_number = Wrong.made, 0
            Wrong.made += 1

        def reset(self, **_: Any) -> Any:
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            self.step_number += 1
            if (self.number, self.step_number) == (2, 3):
                return np.array(obs, np.float32), reward, False, False, {}
            return np.zeros(3, np.float32), 1.0, False, False, {}

    gym.register("Wrong-v0", Wrong)
    try:
        shard = SingleShard(EnvSettings(id="Wrong-v0"), 0, 1, 4)
        for _ in range(2):
            shard.step(np.zeros(4, np.int64))
        with pytest.raises(EnvError, match=rf"(?s)shard 1, env copy 6, episode seed \d+, step 3 .*{says}"):
            shard.step(np.zeros(4, np.int64))
    finally:
        del gym.registry["Wrong-v0"]
