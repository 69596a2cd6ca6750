"""A run that is kept in a store: real processes, an S3-compatible server on 127.0.0.1 that is slow and is killed, a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CARTPOLE, config_of, run_trainer
from processes import result_of, write
from s3 import BUCKET, CREDENTIALS, SECRET, Detour, Server

from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.runs.plan import plan_run
from distrl.storage.marks import drop_mark, leave_mark, see_marks
from distrl.storage.place import Place
from distrl.stores import Store

ITERATIONS = 20


def kept(trouble: str = "") -> dict[str, Any]:
    return {
        **CARTPOLE,
        "env": {"id": "troubled:Troubled-v0", "kwargs": {"trouble": trouble}},
        "stop": {"env_steps": 256 * ITERATIONS},
        "evaluation": {"every": 5, "episodes": 1, "final_episodes": 2},
        "checkpoint": {"every": 2, "keep": 2},
        "track": {"mlflow": False, "video": False},
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in CREDENTIALS.items():
        monkeypatch.setenv(name, text)


def train(cwd: Path, *arguments: str, said: Path) -> psutil.Popen:
    path = os.pathsep.join([str(Path(__file__).parent.parent.parent), str(Path(__file__).parent.parent)])
    with said.open("ab") as file:
        return psutil.Popen(
            [sys.executable, "-m", "distrl", "train", "--local", *arguments],
            cwd=cwd,
            env={**os.environ, **CREDENTIALS, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )


def until(what: Callable[[], Any], process: psutil.Popen, said: Path) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)


def whole(place: Place) -> list[str]:
    return sorted(name for name in place.list() if name.endswith("manifest.json"))


@pytest.mark.timeout(400)
def test_lost_with_its_machine_a_run_goes_on_from_the_store_alone(
    server: Server, credentials: None, tmp_path: Path
) -> None:
    """The store is slow, is killed and comes back empty; then the driver is killed, and its directory is gone with it."""
    detour, said = Detour(server.port, delay=0.02), tmp_path / "said.txt"
    config = kept("sleep") | {"storage": server.address(detour.port), "run_dir": str(tmp_path / "run")}
    driver = train(tmp_path, write(tmp_path, config), said=said)
    place = Place(Store.parse(server.address()) / "run")
    until(lambda: whole(place), driver, said)
    server.kill()
    until(lambda: "does not take this run" in said.read_text(), driver, said)
    server.start()
    until(lambda: "has all of this run again" in said.read_text(), driver, said)
    first = whole(place)
    until(lambda: first and whole(place) and whole(place) > first, driver, said)
    beside = driver.children()
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(beside, timeout=90)[1] == []
    shutil.rmtree(tmp_path / "run")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    detour.delay = 0
    resumed = train(elsewhere, "--resume", str(Store.parse(server.address(detour.port)) / "run"), said=said)
    assert resumed.wait(150) == 0, said.read_text()
    run_dir = elsewhere / "runs" / "run"
    expected = run_trainer(config_of(kept()), LocalExecution(), tmp_path / "local")
    assert result_of(run_dir)["weights_sha256"] == expected.sha256
    assert (run_dir / "metrics.jsonl").read_text().count("\n") >= ITERATIONS

    there = place.list()
    here = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert {name for name in here if not name.endswith(".log") and not name.startswith(".")} <= there.keys()
    assert {name for name in there if name.startswith("checkpoints/")} >= {
        n for n in here if n.startswith("checkpoints/")
    }
    assert all(place.read(name) == (run_dir / name).read_bytes() for name in here & there.keys())
    texts = [said, *(path for path in tmp_path.rglob("*") if path.is_file())]
    assert not [path for path in texts if SECRET.encode() in path.read_bytes()]
    assert not [name for name in there if SECRET.encode() in place.read(name)]


def test_kept_in_a_directory(tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    config = kept() | {"storage": str(tmp_path / "nfs"), "run_dir": str(tmp_path / "run")}
    assert train(tmp_path, write(tmp_path, config), "-q", said=said).wait(150) == 0, said.read_text()
    shutil.rmtree(tmp_path / "run")
    more = train(tmp_path, "--resume", f"file://{tmp_path}/nfs/run", f"stop.env_steps={256 * 24}", "-q", said=said)
    assert more.wait(150) == 0, said.read_text()
    longer = kept() | {"stop": {"env_steps": 256 * 24}, "evaluation": {"every": 5, "episodes": 1, "final_episodes": 2}}
    assert result_of(tmp_path / "runs" / "run")["env_steps"] == 256 * 24
    expected = run_trainer(config_of(longer), LocalExecution(), tmp_path / "local")
    assert result_of(tmp_path / "nfs" / "run")["weights_sha256"] == expected.sha256


def test_what_cannot_be_written_is_refused_at_once(server: Server, credentials: None, tmp_path: Path) -> None:
    nothing = server.address().replace(f":{server.port}", ":1")
    for storage, part in [
        (nothing, "cannot be used"),
        (server.address().replace(BUCKET, "nobodys"), "bucket does not exist"),
        ("/proc/runs", "cannot be used"),
        (str(tmp_path), "where the run itself is"),
    ]:
        start = time.monotonic()
        with pytest.raises(UserError, match=part) as refused:
            plan_run(config_of(kept(), f"storage={storage}", f"run_dir={tmp_path}/new"))
        assert time.monotonic() - start < 100
        assert len(str(refused.value).splitlines()) == 1
        assert not (tmp_path / "new").exists()
    (tmp_path / "nfs" / "new").mkdir(parents=True)
    (tmp_path / "nfs" / "new" / "config.yaml").touch()
    with pytest.raises(UserError, match=r"exists\. Choose another run_dir, or go on with it: --resume '"):
        plan_run(config_of(kept(), f"storage={tmp_path}/nfs", f"run_dir={tmp_path}/new"))


def test_a_run_that_is_not_there_cannot_be_resumed(server: Server, credentials: None, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert train(tmp_path, "--resume", str(Store.parse(server.address()) / "nobody"), said=said).wait(100) == 2
    assert "There is no run at s3://" in said.read_text()
    assert len(said.read_text().splitlines()) == 2, "what it does, and why it cannot"
    assert not (tmp_path / "runs").exists() or not [*(tmp_path / "runs").iterdir()]


def test_machines_find_out_whether_they_have_the_same_store(server: Server, credentials: None, tmp_path: Path) -> None:
    for store in (Store.parse(server.address()), Store.parse(str(tmp_path / "new"))):
        for name in ("one", "two"):
            assert leave_mark(store, name) == {"said": None}
        assert see_marks(store, ["two", "three", "one"]) == {"said": ["two", "one"]}
        drop_mark(store, "one")
        assert see_marks(store, ["two", "three", "one"]) == {"said": ["two"]}
    (tmp_path / "file").touch()
    nowhere = str(server.address()).replace(BUCKET, "no-such-bucket")
    for address in (str(tmp_path / "file" / "below"), nowhere):
        with pytest.raises(UserError, match="cannot be written"):
            leave_mark(Store.parse(address), "one")
