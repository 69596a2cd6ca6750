"""Checkpoints: whole or not at all, the same bits back, and refused with the reason where they are not what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import no_file_beyond
from toys import categorical, rewrite_model, same, spec_of

from distrl.acting.policies import StochasticPolicy
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.models.store import find_model, list_checkpoints, read_model, versions, weights_sha256, write_model
from distrl.training.checkpoint import RunState, read_checkpoint, read_checkpoint_config, write_checkpoint
from distrl.training.progress import Pending, Progress
from distrl.types import Array, Arrays, Evaluation, Snapshot, Spread, Weights

RNG = np.random.default_rng(0)
LEARNER: Arrays = {
    "version": np.array(7),
    "lr": np.array(3e-4),
    "actor.adam.step": np.array(28.0, np.float32),
    "actor.parameters": RNG.normal(size=40).astype(np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "strided": np.arange(12, dtype=np.int64).reshape(3, 4).T,
}
SHARD: Arrays = {
    "obs_digest": RNG.integers(2**32, size=5, dtype=np.uint32),
    "flags": np.array([True, False]),
    "frames": RNG.integers(256, size=(2, 8, 8), dtype=np.uint8),
    "action": np.zeros((0,), np.int64),
    "state.x": RNG.normal(size=3),
}
PROGRESS = Progress(
    iteration=7,
    env_steps=448,
    recent_returns=[0.1, 1 / 3, -2e300],
    pending=[Pending(due=8, version=6, env_steps=400, number=2)],
    best=Evaluation(5, 320, True, 2, Spread(1 / 3, 0.1, 0, 1), Spread(9, 0, 9, 9), {"score": Spread(2, 1, 0, 3)}),
)
REPLAY = {"0": {"counters": np.arange(4)}, "1": {"counters": np.arange(2), "ring.obs": RNG.normal(size=(2, 3))}}
FILES = [
    "config.yaml",
    "driver.npz",
    "learner.safetensors",
    "manifest.json",
    "policy.json",
    "policy.safetensors",
    "run.json",
]


def make_policy(seed: int = 0) -> StochasticPolicy:
    policy = categorical(spec_of((4,), 2, (8,)), first_action=1)
    policy.load(np.random.default_rng(seed).normal(size=policy.network.spec.parameters).astype(np.float32))
    return policy


def state_of(seed: int = 0) -> RunState:
    newest = make_policy(seed).network.vector
    return RunState(
        PROGRESS,
        {6: 2 * newest, 7: newest},
        {0: None, 1: Snapshot(7, RNG.normal(size=5), np.arange(5), SHARD)},
        LEARNER,
        best=Weights(5, 3 * newest),
    )


def save(path: Path, seed: int = 0) -> Path:
    return save_state(path, state_of(seed))


def save_state(path: Path, state: RunState) -> Path:
    write_checkpoint(path, state, make_policy(), {"env": {"id": "CartPole-v1"}}, "seed: 1\n")
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def forge(checkpoint: Path, name: str, data: bytes) -> None:
    """Change a file and make the manifest agree, as someone would who means harm."""
    (checkpoint / name).write_bytes(data)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256(data).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


# --- the same bits back -----------------------------------------------------------------------------------------


def trees_differ(found: Any, wanted: Any) -> bool:
    """Compare what is nested as deeply as may be: dataclasses, dicts, arrays and plain values."""
    if isinstance(wanted, np.ndarray):
        return not same(found, wanted)
    if is_dataclass(wanted):
        return type(found) is not type(wanted) or trees_differ(vars(found), vars(wanted))
    if isinstance(wanted, dict):
        return found.keys() != wanted.keys() or any(trees_differ(found[k], wanted[k]) for k in wanted)
    return bool(found != wanted)


@pytest.mark.parametrize("replay", [{}, REPLAY], ids=["no replay", "replays"])
def test_a_checkpoint_gives_back_what_was_written(replay: dict[str, Arrays], tmp_path: Path) -> None:
    wanted = replace(state_of(), replay=replay)
    path = save_state(tmp_path / "1", wanted)
    assert not trees_differ(read_checkpoint(path, shards=2), wanted)
    assert read_checkpoint_config(path) == "seed: 1\n"
    assert sorted(p.name for p in path.iterdir()) == sorted([*FILES, *(["replay.npz"] if replay else [])])


def test_a_difference_anywhere_in_a_state_is_seen() -> None:
    """The test above proves nothing where a difference is overlooked."""
    other = state_of()
    another = replace(other)
    assert not trees_differ(other, another)
    another.snapshots = {**other.snapshots, 1: replace(other.snapshots[1], lengths=np.arange(1, 6))}  # type: ignore[type-var]
    assert trees_differ(other, another)


def test_a_model_gives_back_the_policy_and_what_is_known_of_it(tmp_path: Path) -> None:
    policy, about = read_model(save(tmp_path / "1"))
    wanted = make_policy()
    assert about["env"] == {"id": "CartPole-v1"}
    assert weights_sha256(policy) == weights_sha256(wanted)
    obs, noise = np.ones((3, 4), np.float32), np.array([0.1, 0.5, 0.9])
    assert policy.act(obs, noise)[0].tolist() == wanted.act(obs, noise)[0].tolist()
    assert same(policy.act(obs, noise)[1]["log_prob"], wanted.act(obs, noise)[1]["log_prob"])


def test_a_manifest_tells_versions_and_hashes_all_other_files(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path / "1") / "manifest.json").read_text())
    assert sorted([*manifest["sha256"], "manifest.json"]) == FILES
    assert manifest["versions"] == versions()
    assert manifest["versions"]["numpy"] == np.__version__
    for name, sha256 in manifest["sha256"].items():
        assert hashlib.sha256((tmp_path / "1" / name).read_bytes()).hexdigest() == sha256


class Shuffled(StochasticPolicy):
    """Tells its arrays in another order."""

    def arrays(self) -> Arrays:
        return dict(reversed(super().arrays().items()))


def test_the_hash_of_weights_depends_on_the_numbers_alone() -> None:
    plain = make_policy()
    shuffled = Shuffled(plain.network.spec, plain.distribution, plain.obs_layout, plain.action_layout)
    shuffled.load(make_policy().network.vector.copy())
    assert list(plain.arrays()) != list(shuffled.arrays())
    assert weights_sha256(plain) == weights_sha256(shuffled)
    other = make_policy()
    changed = other.network.vector.copy()
    changed[-1] = np.nextafter(changed[-1], np.float32(9))
    other.load(changed)
    assert weights_sha256(other) != weights_sha256(plain)


# --- whole or not at all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["over an old one", "new"])
@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")], ids=repr
)
def test_a_write_that_fails_changes_nothing(there: bool, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "run" / "best"
    if there:
        save(path)
    before = content(tmp_path)

    def write(directory: Path) -> None:
        assert directory.parent == path.parent  # else it could not be renamed
        (directory / "half").write_text("half")
        raise error

    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_directory(path, write)
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)
        assert "no space" in str(caught.value)
    assert content(tmp_path) == before
    assert [p.name for p in path.parent.iterdir()] == (["best"] if there else [])


@pytest.mark.parametrize("room", [0, 100, 300, 600, 1000, 2000])
def test_a_disk_that_is_full_at_any_file_is_told(room: int, tmp_path: Path) -> None:
    path = save(tmp_path / "best")
    before = content(tmp_path)
    with no_file_beyond(room), pytest.raises(UserError, match=r"best cannot be written: .*free some space"):
        save(path, seed=1)
    assert content(tmp_path) == before


def test_a_new_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = save(tmp_path / "best")
    (path / "README.md").write_text("of the old one")
    save(path, seed=1)
    assert weights_sha256(read_model(path)[0]) == weights_sha256(make_policy(1))
    assert sorted(p.name for p in path.iterdir()) == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_what_a_killed_process_left_is_in_nobodys_way(kind: str, tmp_path: Path) -> None:
    """In containers a later process often has the same number."""
    path = save(tmp_path / "best")
    shutil.copytree(path, tmp_path / f".best.{os.getpid()}.{kind}")
    save(path, seed=1)
    assert weights_sha256(read_model(path)[0]) == weights_sha256(make_policy(1))


def test_a_process_killed_while_writing_leaves_the_old_directory(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "00000001")
    before = content(path)
    code = f"""
import os, signal
from pathlib import Path
from distrl.files import write_directory
def write(directory):
    (directory / "policy.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_directory(Path({str(path)!r}), write)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert content(path) == before
    assert list_checkpoints(tmp_path) == [path]


# --- what is refused --------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flipped,
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "gone": lambda data: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_refused_with_the_files_name(name: str, damage: str, tmp_path: Path) -> None:
    if (name, damage) == ("manifest.json", "flipped"):
        pytest.skip("a flipped bit in the text of a version harms nothing")
    path = save(tmp_path / "checkpoints" / "00000003")
    data = DAMAGES[damage]((path / name).read_bytes())
    (path / name).unlink()
    if data is not None:
        (path / name).write_bytes(data)
    with pytest.raises(UserError, match=str(path)) as caught:
        read_checkpoint(path, 2)
    assert name in str(caught.value)
    assert "no other one" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_checkpoint_is_refused_with_another_one_to_go_on_from(tmp_path: Path) -> None:
    good, bad = (save(tmp_path / "checkpoints" / name) for name in ("00000002", "00000003"))
    (bad / "run.json").write_text("{}")
    with pytest.raises(UserError, match=f"--resume {good}"):
        read_checkpoint(bad, 2)
    assert read_checkpoint(good, 2).progress == PROGRESS


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_damaged_model_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    path = save(tmp_path / "best")
    data = DAMAGES[damage]((path / name).read_bytes())
    (path / name).unlink()
    if data is not None:
        (path / name).write_bytes(data)
    with pytest.raises(UserError, match=str(path)):
        read_model(path)


@pytest.mark.parametrize(
    "change",
    [
        {"policy": None},
        {"policy": {}},
        {"policy": {"type": "magic"}},
        {"policy": {**make_policy().describe(), "network": {**make_policy().describe()["network"], "outputs": 3}}},
        {"policy": {**make_policy().describe(), "network": {**make_policy().describe()["network"], "hidden": 3}}},
        {"format": "new"},
        {"format": None},
    ],
    ids=str,
)
def test_a_foreign_model_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "best")
    rewrite_model(path, lambda about: about.update(change))
    with pytest.raises(UserError, match=f"{path}.*(corrupt|not of distrl)"):
        read_model(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "1")
    for name, read in (("manifest.json", read_checkpoint_config), ("policy.json", read_model)):
        data = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**data, "format": 999}))
        with pytest.raises(UserError, match=r"format 999.*Update distrl"):
            read(path)


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "1")
    trap: Array = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "trap.npz", allow_pickle=True, **{**SHARD, "weights/6": trap})
    forge(path, "driver.npz", (tmp_path / "trap.npz").read_bytes())
    with pytest.raises(UserError, match=str(path)):
        read_checkpoint(path, 2)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["driver.npz", "learner.safetensors", "run.json"])
@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04 but no more", b"\x93NUMPY", b"\xff" * 100], ids=["empty", "zip", "npy", "noise"]
)
def test_files_of_another_kind_are_refused_even_where_the_hash_agrees(name: str, data: bytes, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "1")
    forge(path, name, data)
    with pytest.raises(UserError, match=str(path)):
        read_checkpoint(path, 2)


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        read_checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match=r"is not a model directory: it has no policy\.json"):
        read_model(tmp_path / "nowhere")


# --- finding ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_from_the_oldest_to_the_newest(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path) == []
    for name in ("00000100", "00000020", "00000003", ".00000200.17.tmp", ".00000200.17.old", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["00000003", "00000020", "00000100"]


def test_the_model_of_a_run_is_its_best_else_its_newest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model yet"):
        find_model(tmp_path)
    old, new = (save(tmp_path / "checkpoints" / name) for name in ("00000002", "00000010"))
    assert find_model(str(tmp_path)) == new
    write_directory(
        tmp_path / "best", lambda directory: write_model(directory, make_policy(), make_policy().network.vector, {})
    )
    assert find_model(tmp_path) == tmp_path / "best"
    assert find_model(tmp_path / "best") == tmp_path / "best"
    assert find_model(old) == old


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run or model at '.*nowhere'"):
        find_model(tmp_path / "nowhere")
