"""The tracking process is real here, and so are its stores: SQLite, and `mlflow server` on 127.0.0.1."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import shlex
import signal
import site
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from toys import categorical, spec_of

from distrl.acting.normalise import NormalisedPolicy
from distrl.errors import UserError
from distrl.files import write_directory
from distrl.models.store import write_model
from distrl.settings import Config, EnvSettings, TrackSettings
from distrl.tracking import companion, where
from distrl.tracking.console import Console
from distrl.tracking.metrics import MetricsLog, read_metrics
from distrl.tracking.mlflow import MlflowTracker, sync
from distrl.tracking.where import check_tracking, collect_tags, mlflow_location, run_tags, tracking_uri
from distrl.types import Evaluation, Spread

Row = dict[str, float | int | str]


def row(iteration: int) -> Row:
    return {
        "iteration": iteration,
        "env_steps": 100 * (iteration + 1),
        "time": 1.7e9 + iteration,
        "train/return_mean": float(iteration),
    }


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_half_a_last_line_is_cut_off_and_its_iteration_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert log.last_iteration == -1
    log.append(row(0))
    log.append(row(1))
    log.close()
    with path.open("a") as file:
        file.write('{"iteration": 2, "env_st')
    assert [r["iteration"] for r in read_metrics(path)] == [0, 1]
    log = MetricsLog(path)
    assert log.last_iteration == 1
    log.append(row(2))
    assert read_metrics(path) == [row(0), row(1), row(2)]


def test_replayed_rows_are_ignored(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for i in (0, 1, 2, 1, 2, 3):
        log.append(row(i) | {"attempt": i})
    assert [r["iteration"] for r in read_metrics(log.path)] == [0, 1, 2, 3]


def test_a_run_that_goes_on_replaces_the_evaluations_of_its_end(tmp_path: Path) -> None:
    """They have no iteration of their own, and metrics of training must not be missing for them."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    end: list[Row] = [
        {"iteration": i, "env_steps": 200, "time": 0.0, "evaluation/return_mean": float(i)} for i in (2, 3)
    ]
    for line in (row(0), row(1), *end):
        log.append(line)
    assert [r["iteration"] for r in read_metrics(log.path)] == [0, 1, 2, 3]
    log.close()
    log = MetricsLog(log.path)
    for i in (1, 2, 3, 4):
        log.append(row(i))
    sweep: Row = {"iteration": 5, "env_steps": 900, "time": 0.0, "sweep/score": 1.0}  # no end of a run
    log.append(sweep)
    assert MetricsLog(log.path).last_iteration == 5
    assert read_metrics(log.path) == [*(row(i) for i in range(5)), sweep]


def test_only_what_json_can_say_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    scalars = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": math.nan,
        "d": -math.inf,
        "e": np.float64("nan"),
        "f": "text",
    }
    log.append(row(0) | scalars)  # type: ignore[arg-type]
    assert read_metrics(log.path) == [row(0) | {"a": 0.5, "b": 3, "f": "text"}]
    with pytest.raises(TypeError, match="'g' is a list"):
        log.append(row(1) | {"g": [1]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time"):
        log.append({"iteration": 1, "env_steps": 1})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\nrubbish\n{"iteration": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)


def test_a_full_disk_is_the_users_to_mend_and_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = f"""
        import resource
        from distrl.errors import UserError
        from distrl.tracking.metrics import MetricsLog
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        log = MetricsLog({str(path)!r})
        try:
            for i in range(100):
                log.append({{"iteration": i, "env_steps": i, "time": 0.0}})
        except UserError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "metrics.jsonl cannot be written" in done.stdout
    assert "--resume" in done.stdout
    assert path.read_bytes().endswith(b"}\n")
    assert [r["iteration"] for r in read_metrics(path)] == list(range(len(path.read_text().splitlines())))


def test_import_is_light() -> None:
    script = "import sys, distrl.tracking.mlflow; print([m for m in ('mlflow', 'torch', 'numpy', 'ray', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_console_without_a_terminal_writes_few_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(total_env_steps=1000)
    for i in range(9):
        console.update(row(i) | {"time/env_steps_per_s": 50.0, "evaluation/return_mean": 7.0 - i, "restarts": i // 4})
    console.note("a note [with] a:b:brackets")
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "100/1,000 env steps  50/s  0:00:18 left  return 0 (best 0)  evaluation 7 (best 7)",
        "a note [with] a:b:brackets",
        "900/1,000 env steps  50/s  0:00:02 left  return 8 (best 8)  evaluation -1 (best 7)  2 restarts",
    ]


def test_quiet_console_only_warns(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(None, quiet=True)
    console.update(row(0))
    console.note("a note")
    console.warn("careful")
    console.close()
    assert capsys.readouterr() == ("", "warning: careful\n")


def test_console_on_a_terminal_shows_a_bar_and_puts_messages_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    console = Console(total_env_steps=1000)
    start = time.perf_counter()
    for i in range(2000):
        console.update(row(i % 9))
    assert (time.perf_counter() - start) / 2000 < 1e-3
    console.warn("look [here] a:b:CartPole")
    console.close()
    text = terminal.getvalue()
    assert "/1000" in text
    assert "look [here] a:b:CartPole" in text
    assert text.count("\n") < 20


def test_console_tells_what_is_done_where_no_row_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    console, doing = Console(total_env_steps=1000), iter(["", "minibatch 7", *["minibatch [8]"] * 100])
    console.follow(lambda: next(doing))
    deadline = time.monotonic() + 30
    while "minibatch [8]" not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    console.close()
    assert "minibatch 7" in terminal.getvalue() and "minibatch [8]" in terminal.getvalue()


# --- where MLflow is -------------------------------------------------------------------------------------------------


def config(uri: str | None = None) -> Config:
    from distrl.settings import AlgorithmSettings

    return Config(
        env=EnvSettings(id="CartPole-v1"), algorithm=AlgorithmSettings(name="ppo"), track=TrackSettings(uri=uri)
    )


def test_tracking_uri_is_the_configs_then_the_environments_then_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:1/")
    assert tracking_uri(config("http://config:1"), tmp_path / "run") == "http://config:1"
    assert tracking_uri(config(), tmp_path / "run") == "http://env:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(config(), tmp_path / "run") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(config("sqlite:///a.db"), tmp_path / "run") == f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        tracking_uri(config("http://me:secret@host:1"), tmp_path / "run")
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_told_at_once_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached.*mlflow server.*track\.mlflow=false") as caught:
        check_tracking(uri)
    assert time.monotonic() - start < 4
    assert "secret" not in str(caught.value)


def test_a_server_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its bytes comes soon enough."""
    monkeypatch.setattr(where, "OUTSIDE_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1000:
                    connection.send(bytes([byte]))
                    time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached: no answer within 0\.5 s"):
            check_tracking(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:///tmp/mlruns", "plain files"),
        ("mlruns", "plain files"),
        ("localhost:5000", "must start with"),
        ("postgresql://me:secret@host/db", "must start with"),
        ("sqlite:///", "must start with"),
        ("http://[broken", "cannot be reached"),
    ],
)
def test_stores_that_cannot_work_are_refused(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        check_tracking(uri)
    assert "secret" not in str(caught.value)


def test_sqlite_store_may_be_made_but_must_not_be_something_else(tmp_path: Path) -> None:
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert not (tmp_path / "new").exists()
    (tmp_path / "text").write_text("this is no database")
    with pytest.raises(UserError, match="not a SQLite database"):
        check_tracking(f"sqlite:///{tmp_path}/text")
    with pytest.raises(UserError, match="cannot be written"):
        check_tracking(f"sqlite:///{tmp_path}/text/mlflow.db")
    with pytest.raises(UserError, match="cannot be written"):
        check_tracking(f"sqlite:///{tmp_path}")


def test_tags_tell_run_command_and_the_users_own_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """distrl's own is its version."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/distrl", "train", "my config.yaml", "seed=3"])
    tags = run_tags(config(), tmp_path / "run")
    assert tags["command"] == "distrl train 'my config.yaml' seed=3" and tags["mlflow.source.name"] == "distrl"
    assert tags["run_dir"] == str(tmp_path / "run")
    assert tags["mlflow.note.content"] == "ppo on CartPole-v1, seed 1"
    assert "git.revision" not in tags
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@x"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "mine"]):
        subprocess.run([*git, *arguments], check=True)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run_tags(config(), tmp_path)["git.revision"] == revision
    assert run_tags(config(), tmp_path)["git.dirty"] == "false"
    (tmp_path / "env.py").touch()
    assert run_tags(config(), tmp_path)["git.dirty"] == "true"
    monkeypatch.setattr(sys, "argv", ["my_training.py", "--fast"])
    assert run_tags(config(), tmp_path)["command"] == "my_training.py --fast"


def test_tags_tell_versions_and_hardware() -> None:
    tags = collect_tags()
    assert {"version.ray", "version.torch", "hardware.cpu", "hardware.cores", "hardware.memory_gb"} <= tags.keys()
    assert not any(socket.gethostname() == text for text in tags.values())


# --- MLflow ----------------------------------------------------------------------------------------------------------


class Store:
    """What MLflow has written, read behind its back from its database."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def query(self, sql: str, *values: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return connection.execute(sql, values).fetchall()

    def points(self, run_id: str, key: str) -> list[Any]:
        sql = "SELECT step, value, timestamp FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
        return self.query(sql, run_id, key)

    def status(self, run_id: str) -> object:
        return self.query("SELECT status FROM runs WHERE run_uuid = ?", run_id)[0][0]

    def holds(self, run_dir: Path) -> bool:
        """Every row of metrics.jsonl, once, and nothing else."""
        rows = read_metrics(run_dir / "metrics.jsonl")
        expected = [(r["env_steps"], r["train/return_mean"], int(1000 * float(r["time"]))) for r in rows]
        return (run_dir / "mlflow.json").exists() and self.points(run_id(run_dir), "train/return_mean") == expected


def run_id(run_dir: Path) -> str:
    return str(json.loads((run_dir / "mlflow.json").read_text())["run_id"])


def start(
    run_dir: Path, uri: str, experiment: str = "distrl", params: dict[str, object] | None = None
) -> MlflowTracker:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text("seed: 1\n")
    params = params or {"seed": 1, "env": {"id": "CartPole-v1", "kwargs": {}}, "long": "x" * 900}
    tags = {"git.revision": "abc"}
    return MlflowTracker.start(run_dir, uri, experiment, tags, params, run_dir.name, register_as=f"{experiment}-policy")


def complete(run_dir: Path) -> NormalisedPolicy:
    """What a run leaves at its end."""
    inner = categorical(spec_of(obs_shape=(4,), outputs=2))
    policy, rng = NormalisedPolicy(inner), np.random.default_rng(1)
    vector = policy.join(rng.normal(size=inner.network.spec.parameters), rng.normal(size=4), rng.random(4)).astype("f4")
    policy.load(vector)
    about = {
        "algorithm": "ppo",
        "env_steps": 25_000,
        "observation": [{"name": "", "shape": [4], "dtype": "float32"}],
        "action": [{"name": "", "shape": [], "dtype": "int64"}],
    }
    write_directory(run_dir / "best", lambda directory: write_model(directory, policy, vector, about))
    (run_dir / "plots").mkdir()
    (run_dir / "plots" / "return.png").write_bytes(b"picture")
    scores = {"score": Spread(3, 1, 2, 4)}
    evaluation = Evaluation(9, 25_000, True, 100, Spread(7.5, 0.5, 7, 8), Spread(20, 0, 20, 20), scores)
    result = {"status": "finished", "evaluation": evaluation.to_json()}
    (run_dir / "result.json").write_text(json.dumps(result))
    return policy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module lie with their SQLite store: making one takes seconds."""
    return tmp_path_factory.mktemp("runs and spaces")


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home / "mlflow.db")


class Server:
    """`mlflow server`, which can go away and come back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(directory / "server.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--workers", "1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.store.database}"]
        command += ["--artifacts-destination", str(self.directory / "artifacts")]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It needs 10 to 20 s to start, so it starts first, while the other tests run."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def test_a_process_that_dies_again_and_again_is_started_ever_more_rarely_but_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is killed once a day is started at once each time, for as long as the run lasts."""
    now = 0.0
    monkeypatch.setattr(companion, "time", SimpleNamespace(monotonic=lambda: now))
    beside = companion.Companion(tmp_path, "copy", ["there_is_no_such_module"], {})
    gaps = []
    for _ in range(14):
        beside._child.wait()
        began = now
        while beside.news() is None:
            now += 1.0
        gaps.append(now - began)
    assert gaps == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600, 600]
    now += 86_400
    beside._child.wait()
    assert beside.news() == ("ended", "1")
    beside._child.wait()


def test_sqlite_end_to_end_with_a_tracking_process_that_is_killed(home: Path, store: Store) -> None:
    run_dir = home / "a-run"
    run_dir.mkdir()
    uri = f"sqlite:///{home}/mlflow.db"
    assert mlflow_location(run_dir) == ()
    log = MetricsLog(run_dir / "metrics.jsonl")
    for i in range(300):
        log.append(row(i) | {"bad (name)": 1.0, "text": "not for MLflow"})
    tracker = start(run_dir, uri)
    wait_for(lambda: (run_dir / "mlflow.json").exists() and store.points(run_id(run_dir), "iteration"))
    tracker._child.kill()  # by the system, say: MLflow has these rows, or some of them
    tracker._child.wait()
    for i in range(300, 400):
        log.append(row(i))
    log.append(row(400) | {"env_steps": 40_000, "evaluation/return_mean": 3.0, "evaluation/env_steps": 25_000.0})
    wait_for(lambda: "started again" in (tracker.poll() or ""))
    wait_for(lambda: store.points(run_id(run_dir), "system/memory_rss_mb"))
    policy = complete(run_dir)
    assert tracker.finish("FINISHED", timeout=60) is None

    me = run_id(run_dir)
    assert store.holds(run_dir)
    assert store.status(me) == "FINISHED"
    assert len(store.query("SELECT run_uuid FROM runs WHERE name = 'a-run'")) == 1
    params = dict(store.query("SELECT key, value FROM params WHERE run_uuid = ?", me))
    assert params == {"seed": "1", "env.id": "CartPole-v1", "env.kwargs": "{}", "long": "x" * 500}
    tags = dict(store.query("SELECT key, value FROM tags WHERE run_uuid = ?", me))
    assert tags["git.revision"] == "abc"
    assert [point[:2] for point in store.points(me, "final/return_mean")] == [(25_000, 7.5)]
    assert store.points(me, "evaluation/return_mean")[0][:2] == (
        25_000,
        3.0,
    )  # where its weights were, not when it counted
    assert store.points(me, "final/episodes")[0][:2] == (25_000, 100)
    assert store.points(me, "final/scores/score_mean")[0][:2] == (25_000, 3)
    assert len(store.points(me, "bad _name_")) == 300
    of_model = store.query(
        "SELECT metric_name, metric_value, metric_step FROM logged_model_metrics WHERE run_id = ?", me
    )
    assert ("final/return_mean", 7.5, 25_000) in of_model
    assert {name.partition("/")[0] for name, _, _ in of_model} == {"final"} and {s for _, _, s in of_model} == {25_000}
    [(name,)] = store.query(
        "SELECT m.name FROM logged_models m JOIN logged_model_metrics l USING (model_id) GROUP BY 1"
    )
    assert name == "ppo-a-run"
    artifacts = home / "mlartifacts" / me / "artifacts"
    # No hidden files: the process may have been killed in the middle of an upload.
    assert {str(p.relative_to(artifacts)) for p in artifacts.rglob("[!.]*.*")} == {
        "config.yaml",
        "result.json",
        "plots/return.png",
    }
    command, page = mlflow_location(run_dir)
    assert shlex.split(command) == ["distrl", "ui", str(run_dir)]
    assert f"/runs/{me}?" in page

    sync(run_dir)  # nothing is sent twice
    assert len(store.points(me, "final/return_mean")) == 1 and store.holds(run_dir)
    assert store.query("SELECT COUNT(*) FROM logged_models WHERE name = 'ppo-a-run'") == [(1,)]

    obs = np.random.default_rng(2).normal(size=(64, 4)).astype(np.float32)
    np.save(home / "obs.npy", obs)
    actions = load_and_predict(uri, [f"runs:/{me}/ppo-a-run", "models:/distrl-policy/1"], home / "obs.npy", home)
    assert actions == [policy.greedy(obs).tolist()] * 2


def test_the_model_of_a_trained_run_is_sent_while_its_driver_makes_pictures(home: Path, store: Store) -> None:
    run_dir = home / "made"
    run_dir.mkdir()
    MetricsLog(run_dir / "metrics.jsonl").append(row(0))
    models = "SELECT COUNT(*) FROM logged_models WHERE name = 'ppo-made'"
    tracker = start(run_dir, f"sqlite:///{home}/mlflow.db")
    complete(run_dir)
    wait_for(lambda: (run_dir / "mlflow.json").exists() and store.points(run_id(run_dir), "iteration"))
    assert store.query(models) == [(0,)]  # its card is not there yet
    (run_dir / "best" / "README.md").write_text("the card")
    wait_for(lambda: store.query(models) == [(1,)])
    assert tracker.finish("FINISHED", timeout=60) is None
    assert store.query(models) == [(1,)]
    sql = "SELECT metric_value FROM logged_model_metrics WHERE run_id = ? AND metric_name = 'final/return_mean'"
    assert store.query(sql, run_id(run_dir)) == [(7.5,)]
    assert [file.read_text() for file in home.glob("mlartifacts/models/*/artifacts/artifacts/best/README.md")] == [
        "the card"
    ]


def load_and_predict(uri: str, models: list[str], obs: Path, cwd: Path) -> list[list[int]]:
    """In a Python that has no distrl: without the .pth files of the environment."""
    script = f"""
        import json, sys
        sys.path += {site.getsitepackages()!r}
        import mlflow, numpy as np
        mlflow.set_tracking_uri({uri!r})
        obs, out = np.load({str(obs)!r}), []
        for uri in {models!r}:
            out.append(mlflow.pyfunc.load_model(uri).predict(obs).tolist())
        import distrl
        assert "/code/distrl/" in distrl.__file__, distrl.__file__
        assert not {{"torch", "ray", "gymnasium"}} & sys.modules.keys()
        print(json.dumps(out))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    actions: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return actions


def test_a_killed_driver_leaves_no_process_behind_and_its_run_goes_on(home: Path, store: Store) -> None:
    run_dir = home / "killed"
    run_dir.mkdir()
    uri = f"sqlite:///{home}/mlflow.db"
    driver = f"""
        import os, signal, sys
        from distrl.tracking.metrics import MetricsLog
        from distrl.tracking.mlflow import MlflowTracker
        tracker = MlflowTracker.start({str(run_dir)!r}, {uri!r}, "distrl", {{}}, {{"seed": 1}}, "killed")
        log = MetricsLog({str(run_dir / "metrics.jsonl")!r})
        for i in range(50):
            log.append({{"iteration": i, "env_steps": i, "time": 1.7e9, "train/return_mean": 1.0}})
        print(tracker._child.pid, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(driver)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    first = run_id(run_dir)
    assert store.status(first) == "KILLED"
    assert store.holds(run_dir)

    tracker = start(run_dir, uri, params={"seed": 2, "new": 3})
    wait_for(lambda: store.status(first) == "RUNNING")
    log = MetricsLog(run_dir / "metrics.jsonl")
    for i in range(40, 60):
        log.append(row(i) | {"env_steps": i})
    assert tracker.finish("FAILED", timeout=60) is None
    assert store.holds(run_dir)
    assert run_id(run_dir) == first
    assert store.status(first) == "FAILED"
    assert len(store.query("SELECT run_uuid FROM runs WHERE name = 'killed'")) == 1
    params = dict(store.query("SELECT key, value FROM params WHERE run_uuid = ?", first))
    assert params == {"seed": "1", "new": "3"}


def test_of_two_processes_only_one_sends(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", f"sqlite:///{tmp_path}/never.db")
    with (tmp_path / "run" / "track.log").open("ab") as lock:  # as the process of a resumed run has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="right now"):
            sync(tmp_path / "run")
        assert tracker._child.stdin is not None
        tracker._child.stdin.close()
        assert tracker._child.wait(20) == 0
    assert not (tmp_path / "never.db").exists()


def test_a_store_is_made_whole_however_often_and_by_whom_it_is_begun(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    first, second = start(tmp_path / "first", uri), start(tmp_path / "second", uri)
    draft = tmp_path / ".new.db.tmp"
    wait_for(lambda: draft.exists() and draft.stat().st_size > 0)
    assert not (tmp_path / "new.db").exists()
    first._child.kill()  # one of them is making it
    first._child.wait()
    for tracker, name in ((first, "first"), (second, "second")):
        log = MetricsLog(tmp_path / name / "metrics.jsonl")
        for i in range(3):
            log.append(row(i))
        complete(tmp_path / name)
        assert tracker.finish("FINISHED", timeout=60) is None
        assert Store(tmp_path / "new.db").holds(tmp_path / name)


def test_the_process_outlives_the_ray_that_was_there_when_it_began(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from distrl.execution.cluster import RayExecution\n"
        "from distrl.tracking.mlflow import MlflowTracker\n"
        "execution = RayExecution('local', 256 * 2**20)\n"
        "tracker = MlflowTracker.start(sys.argv[1], f'sqlite:///{sys.argv[1]}/never.db', 'distrl', {}, {}, 'run')\n"
        "execution.close()\n"
        "print(tracker._child.poll())\n"
        "tracker.finish('FINISHED', timeout=0.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None"]


def test_the_end_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", f"sqlite:///{tmp_path}/never.db")
    begin = time.monotonic()
    assert "see " in (tracker.finish("FINISHED", timeout=0.5) or "")  # mlflow alone takes seconds to import
    assert time.monotonic() - begin < 5
    assert tracker._child.poll() == 3
    assert "gave up" in (tmp_path / "run" / "track.log").read_text()


def test_server_that_goes_away_and_comes_back_misses_nothing(tmp_path: Path, server: Server) -> None:
    wait_for(server.ready, 90)
    check_tracking(server.uri)
    run_dir = tmp_path / "over http"
    tracker = start(run_dir, server.uri.replace("http://", "http://me:hush%2Fhush@"))
    log = MetricsLog(run_dir / "metrics.jsonl")
    for i in range(100):
        log.append(row(i))
    wait_for(lambda: server.store.holds(run_dir))
    assert tracker.poll() is None

    server.kill()
    for i in range(100, 200):
        log.append(row(i))
    wait_for(lambda: "Training goes on" in (tracker.poll() or ""))
    server.start()
    for i in range(200, 300):
        log.append(row(i))
    wait_for(lambda: "nothing was lost" in (tracker.poll() or ""), 90)
    complete(run_dir)
    assert tracker.finish("FINISHED", timeout=60) is None
    me = run_id(run_dir)
    assert server.store.holds(run_dir)
    assert server.store.status(me) == "FINISHED"
    assert list((server.directory / "artifacts").rglob("return.png"))
    assert mlflow_location(run_dir) == (f"{server.uri}/#/experiments/1/runs/{me}?workflowType=machine_learning",)
    assert not [file for file in run_dir.rglob("*") if file.is_file() and b"hush" in file.read_bytes()]


def test_a_run_whose_server_stayed_away_is_sent_later(tmp_path: Path, home: Path, store: Store) -> None:
    run_dir = tmp_path / "later"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    tracker = start(run_dir, uri)
    log = MetricsLog(run_dir / "metrics.jsonl")
    for i in range(10):
        log.append(row(i))
    complete(run_dir)
    begin = time.monotonic()
    warning = tracker.finish("FINISHED", timeout=40)
    assert warning is not None
    assert f"python -m distrl.tracking --sync {run_dir}" in warning
    assert time.monotonic() - begin < 45
    assert tracker._child.poll() is not None
    sync(run_dir, f"sqlite:///{home}/mlflow.db")
    assert store.holds(run_dir)
    assert store.status(run_id(run_dir)) == "FINISHED"
    with pytest.raises(UserError, match="it has no track"):
        sync(tmp_path)
