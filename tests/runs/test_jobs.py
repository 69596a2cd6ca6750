"""Runs on a real cluster, a head on this machine with its dashboard and a token, as its user meets it: by the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import CARTPOLE, DQN
from processes import distrl, gone, result_of, write
from prometheus_client.parser import text_string_to_metric_families

from distrl.config import load_config
from distrl.errors import UserError
from distrl.execution import on_cluster
from distrl.execution.gauges import GAUGES
from distrl.execution.jobs import _SEND, FETCH, Cluster, Job, check_size
from distrl.execution.resources import Node, share_out
from distrl.runs.jobs import needed, order_resumption, order_run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(900)  # jobs start slowly, and more so where other things run
TOKEN, SECRET = "7" * 64, "very-secret-18273"
SMALL = {**CARTPOLE, "track": {"mlflow": False, "video": False}, "cluster": {"runners": 2, "start": "wait"}}
OWN_ENV = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Mine(CartPoleEnv):
    def __init__(self, **kwargs):
        assert os.environ["MINE_KEY"]
        super().__init__(**kwargs)

gymnasium.register("Mine-v0", Mine, max_episode_steps=100)
"""


def free_ports(count: int) -> list[int]:
    """Below those that Ray's workers take."""
    found: list[int] = []
    for port in range(8000 + os.getpid() % 1500, 10_000):
        with socket.socket() as server:
            if len(found) < count and server.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a cluster's dashboard; the commands of a test find its token and nothing else of this machine's Rays."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        home = Path(directory) / "home"
        home.mkdir()
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(home), "RAY_TMPDIR": directory}
        os.environ |= {"RAY_metrics_report_interval_ms": "1000"}
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        port, agent, client = free_ports(3)
        command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--port=0", "--disable-usage-stats"]
        command += [
            f"--dashboard-port={port}",
            f"--temp-dir={directory}/ray",
            f"--ray-client-server-port={client}",
            "--object-store-memory=300000000",
        ]
        command += [f"--dashboard-agent-listen-port={agent}"]
        with (Path(directory) / "log").open("w") as log:
            ray = psutil.Popen(command, cwd=directory, stdout=log, stderr=log, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{port}"
            assert ray.poll() is None, (Path(directory) / "log").read_text()[-3000:]
        finally:
            family = [ray, *ray.children(recursive=True)]
            ray.send_signal(signal.SIGTERM)
            gone(family, 40)
            for process in family:
                if process.is_running():
                    process.kill()
            os.environ.clear()
            os.environ |= before


@pytest.fixture(scope="module")
def address(head: str) -> str:
    """Of the cluster, which is up."""
    request = urllib.request.Request(f"{head}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    for _ in range(120):
        try:
            with urllib.request.urlopen(request, timeout=5):
                return head
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the head did not start")


class Link:
    """A way to a port that can be cut, with all connections over it."""

    def __init__(self, port: int) -> None:
        self.port, self.up, self._sockets = port, True, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self.up = False
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets.clear()

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            if not self.up:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_a_run_with_an_env_of_ones_own_over_a_link_that_is_cut_comes_back_with_the_same_bits(
    address: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(OWN_ENV)
    (tmp_path / ".env").write_text(f"MINE_KEY={SECRET}\nRAY_AUTH_TOKEN={TOKEN}\n")
    to_mlflow = {"track": {"video": False}}  # which shall not hear of the secret either
    config = write(tmp_path, {**SMALL, **to_mlflow, "env": {"id": "mine:Mine-v0"}, "stop": {"env_steps": 256 * 40}})
    refused = distrl("submit", config, "--address", address, cwd=tmp_path)
    assert refused.returncode == 2 and f"--working-dir {tmp_path}" in refused.stderr and refused.stdout == ""

    link = Link(int(address.rpartition(":")[2]))
    command = [
        sys.executable,
        "-m",
        "distrl",
        "submit",
        config,
        "--address",
        link.address,
        "--working-dir",
        ".",
        "-o",
        "there",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as submitting:
        assert submitting.stdout is not None and submitting.stderr is not None
        job = submitting.stdout.readline().strip()
        assert re.fullmatch(r"ppo-mine-v0-\d{8}-\d{6}-[0-9a-f]{4}", job), submitting.stderr.read()
        told = ""
        while "env steps" not in told:
            told += (line := submitting.stdout.readline())
            assert line, submitting.stderr.read()
        link.cut()
        time.sleep(4)
        link.up = True
        told += submitting.stdout.read()
        warned = submitting.stderr.read()
        assert submitting.wait(60) == 0, warned
    assert "connection" in warned.lower() or "does not answer" in warned
    assert told.count("Finished after 10,240 env steps") == 1 and told.count("Running entrypoint") == 1

    done = distrl("train", config, "--local", "-q", "run_dir=here", "track.mlflow=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here, there = result_of(tmp_path / "here"), result_of(tmp_path / "there")
    assert there["weights_sha256"] == here["weights_sha256"] and there["evaluation"] == here["evaluation"]
    assert len(list((tmp_path / "there" / "checkpoints").iterdir())) == 1

    session = Path(os.environ["RAY_TMPDIR"]) / "ray" / "session_latest"
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert len(logs) > 20 and any(job in path.name for path in logs)
    runs = [path for path in Path(os.environ["HOME"]).rglob("*") if path.is_file() and ".env" not in path.name]
    assert {"mlflow.db", "track.log"} <= {path.name for path in runs}
    assert [path for path in (*logs, *runs) if SECRET.encode() in path.read_bytes()] == []
    held = [
        path
        for path in (session / "runtime_resources").rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert {path.name for path in held} == {on_cluster.ENVIRONMENT}
    assert all(path.stat().st_mode & 0o077 == 0 for path in held)


def test_a_ci_without_distrl_starts_a_run_which_is_stopped_fetched_and_goes_on(address: str, tmp_path: Path) -> None:
    # Not prioritized, for that depends on how long the run is to be.
    long = {
        "stop": {"env_steps": 256 * 2000},
        "evaluation": {"every": 0},
        "replay": DQN["replay"] | {"prioritized": False},
    }
    config = write(tmp_path, {**SMALL, **long, "algorithm": DQN["algorithm"]})
    poor = tmp_path / "poor"
    poor.mkdir()
    (poor / "sitecustomize.py").write_text(POOR)
    script = [
        sys.executable,
        str(ROOT / "scripts" / "submit_job.py"),
        config,
        "seed=5",
        "--address",
        address,
        "--detach",
    ]
    started = subprocess.run(
        script, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(poor)}, capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr
    [job] = started.stdout.split()
    deadline = time.monotonic() + 120
    while "env steps" not in (said := distrl("logs", job, "--address", address, cwd=tmp_path).stdout):
        assert time.monotonic() < deadline, said
        time.sleep(1)
    told, deadline = gauges(job), time.monotonic() + 180
    while told.keys() < GAUGES.keys():
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
        told = gauges(job)
    assert told["env_steps"] % 256 == 0 < told["env_steps_per_second"] and 0 < told["learner_busy"] <= 1
    assert told["return_mean"] >= 8 and told["lag_seconds"] >= 0 == told["restarts"]  # no CartPole falls sooner
    assert 0 < told["replay_fill"] <= 1
    assert len(shown_by_grafana(job)) == len(GAUGES)

    typo = distrl("stop", job[:-1], "--address", address, cwd=tmp_path)
    assert typo.returncode == 2 and f"Did you mean {job!r}" in typo.stderr and "Traceback" not in typo.stderr
    assert distrl("stop", job, "--address", address, cwd=tmp_path).returncode == 0
    assert distrl("logs", "-f", job, "--address", address, cwd=tmp_path).returncode == 130
    listed = [
        line for line in distrl("jobs", "--address", address, cwd=tmp_path).stdout.splitlines() if line.startswith(job)
    ]
    assert len(listed) == 1 and "STOPPED" in listed[0]

    assert distrl("fetch", job, "--address", address, "--out", "stopped", cwd=tmp_path).returncode == 0
    stopped = result_of(tmp_path / "stopped")
    steps = stopped["env_steps"]
    assert stopped["status"] == "interrupted" and 0 < steps < 256 * 2000
    assert yaml.safe_load((tmp_path / "stopped" / "config.yaml").read_text())["seed"] == 5
    again = distrl("fetch", job, "--address", address, "--out", "stopped", cwd=tmp_path)
    assert again.returncode == 2 and "exists" in again.stderr
    nothing = distrl("stop", job, "--address", address, cwd=tmp_path)
    assert nothing.returncode == 2 and "not running" in nothing.stderr

    more = f"stop.env_steps={steps + 2560}"
    resumed = distrl("submit", "--resume", job, more, "--address", address, "--out", "ended", cwd=tmp_path, timeout=400)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    done = distrl("train", config, "--local", "-q", "seed=5", more, "run_dir=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "ended")["weights_sha256"] == result_of(tmp_path / "here")["weights_sha256"]


def scraped() -> list[tuple[str, dict[str, str], float]]:
    """Names, labels and values of all that Ray shows to Prometheus, where it tells that it may be scraped."""
    listed = Path(os.environ["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
    found = []
    for target in [target for group in _json(listed) for target in group["targets"]]:
        with suppress(OSError):  # it is listed before it answers
            page = urllib.request.urlopen(f"http://127.0.0.1:{target.rpartition(':')[2]}/metrics", timeout=20).read()
            ours = [line for line in page.decode().splitlines() if "ray_distrl_" in line]
            for family in text_string_to_metric_families("\n".join(ours) + "\n"):
                found += [(sample.name, sample.labels, sample.value) for sample in family.samples]
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else []


def gauges(job: str) -> dict[str, float]:
    """What a run tells operators."""
    return {name.removeprefix("ray_distrl_"): value for name, labels, value in scraped() if labels["run"] == job}


def shown_by_grafana(job: str) -> dict[str, float]:
    """What each panel of the dashboard shows of a run, by the panel's title: its expressions are evaluated on what is there."""
    board = json.loads((ROOT / "configs" / "cluster" / "grafana.json").read_text())
    series, shown = scraped(), {}
    [choice] = [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["definition"]).groups()  # type: ignore[union-attr]
    assert choice["query"]["query"] == choice["definition"]
    assert job in {labels[label] for metric, labels, _ in series if metric == name}
    for panel in board["panels"]:
        [target] = panel["targets"]
        found = re.fullmatch(r'max by \((\w+)\) \((\w+)\{(\w+)=~"\$(\w+)"\}\)', target["expr"])
        assert found is not None and target["legendFormat"] == f"{{{{{found[1]}}}}}"
        assert found[4] == choice["name"]
        values = [
            value
            for metric, labels, value in series
            if metric == found[2] and job == labels[found[3]] == labels[found[1]]
        ]
        if values:
            shown[panel["title"]] = max(values)
    return shown


POOR = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "numpy torch typer rich gymnasium mlflow safetensors dotenv threadpoolctl".split():
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
"""
WRONG = """
import sys
import distrl.models.store as store
wrong = store.versions() | {sys.argv[1]: "0.0.1"}
store.versions = lambda: wrong
sys.argv = ["distrl", "submit", "config.yaml", "--address", sys.argv[2]]
from distrl.__main__ import main
main()
"""


@pytest.mark.parametrize("package", ["ray", "numpy"])
def test_other_versions_on_the_cluster_are_refused(package: str, address: str, tmp_path: Path) -> None:
    """Ray's is known before anything is sent; of others the cluster itself finds out."""
    write(tmp_path, SMALL)
    done = subprocess.run(
        [sys.executable, "-c", WRONG, package, address],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = done.stdout + done.stderr
    assert "0.0.1" in said and "scripts/constraints.txt" in said and "Traceback" not in said
    assert (done.stdout == "") == (package == "ray") and not (tmp_path / "runs").exists()


def test_versions_are_compared_as_far_as_they_matter() -> None:
    import numpy

    python = ".".join(map(str, sys.version_info[:2]))
    assert on_cluster.different({"python": f"{python}.99", "numpy": f"{numpy.__version__}+cu130"}) == []
    assert on_cluster.different({"python": "2.7.18", "nothing-like-it": "1.0"}) == [
        f"python {'.'.join(map(str, sys.version_info[:3]))} (2.7.18 where it was submitted)",
        "nothing-like-it none (1.0 where it was submitted)",
    ]


def test_what_is_wrong_is_told_before_anything_is_sent(address: str, tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    large = tmp_path / "large"
    large.mkdir()
    with (large / "data.bin").open("wb") as file:
        file.truncate(513 * 2**20)
    (tmp_path / "taken").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nobody = f"http://127.0.0.1:{mute.getsockname()[1]}"
        cases = {
            ("submit", "config.yaml", "algorithm.lrr=1", "--address", address): "Did you mean",
            ("submit", "config.yaml", "run_dir=runs/x", "--address", address): "begins with /",
            ("submit", "config.yaml", "storage=runs", "--address", address): "storage 'runs' is a directory",
            ("submit", "--resume", "x", "storage=~/runs", "--address", address): "begins with /",
            ("cluster", "check", address, "--storage", "runs"): "begins with /",
            ("submit", "config.yaml", "--address", address, "--out", "taken"): "exists",
            ("submit", "config.yaml", "--address", address, "--working-dir", "large"): "data.bin (513 MiB)",
            ("submit", "config.yaml"): "--address",
            ("jobs", "--address", "ray://127.0.0.1:10001"): "dashboard",
            ("jobs", "--address", nobody): "does not answer",
            ("jobs", "--address", "http://127.0.0.1:1"): "does not answer",
            ("fetch", "nothing", "--address", address): "There is no job 'nothing'",
            ("logs", "nothing", "--address", address): "There is no job 'nothing'",
        }
        for arguments, part in cases.items():
            done = distrl(*arguments, cwd=tmp_path)
            assert done.returncode == 2 and part in done.stderr and done.stdout == "", (arguments, done)
            assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("ignored", [".rayignore", ".gitignore"])
def test_what_is_named_as_not_needed_is_not_weighed(ignored: str, tmp_path: Path) -> None:
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(513 * 2**20)
    (tmp_path / ignored).write_text("nothing\n")
    with pytest.raises(UserError, match=r"data\.bin \(513 MiB\).*\.rayignore"):
        check_size(tmp_path)
    (tmp_path / ignored).write_text("data.bin\n")
    check_size(tmp_path)


def test_a_wrong_token_is_told(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "8" * 64)
    done = distrl("jobs", "--address", address, cwd=tmp_path)
    assert done.returncode == 2 and "RAY_AUTH_TOKEN" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_run_that_finds_no_room_waits_says_so_and_gives_up(address: str, tmp_path: Path) -> None:
    asked = ["cluster.runners=3", "cluster.cpus_per_runner=1", "--wait", "8", "--address", address]
    done = distrl("submit", write(tmp_path, SMALL), *asked, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "waiting for 3 CPUs, up to 8 s; 2 CPUs and 0 GPUs are free" in done.stdout
    assert "error: the run needs 3 CPUs at once" in done.stdout and "Traceback" not in done.stdout


def test_a_cluster_that_is_up_is_looked_at(address: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = distrl("cluster", "check", address, "--storage", str(store), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    ports: " in done.stdout and f"ok    storage: {store} is written and read by all 1" in done.stdout
    assert store.is_dir() and not [*store.iterdir()]
    assert (
        "ok    machines: 1 with 2 CPUs" in done.stdout
        and f"ok    python: {sys.version.split()[0]} everywhere" in done.stdout
    )
    assert "distrl-probe" not in distrl("jobs", "--address", address, cwd=tmp_path).stdout


def test_a_run_goes_on_from_the_head_or_from_a_store() -> None:
    home = os.path.expanduser("~")
    for run, wanted in {
        "ppo-x": ["--resume", f"{home}/distrl-runs/ppo-x"],
        "/nfs/runs/ppo-x": ["--resume", "/nfs/runs/ppo-x"],
        "s3://bucket/runs/ppo-x?region=eu": [
            "--resume", "s3://bucket/runs/ppo-x?region=eu", f"run_dir={home}/distrl-runs/ppo-x",
        ],
    }.items():  # fmt: skip
        job, order = order_resumption(run, ["stop.seconds=5"])
        assert job.startswith("ppo-x-resumed-") and order.config is None
        asked = {"resume": order.resume, "run_dir": order.run_dir, "overrides": order.overrides}
        assert on_cluster.arguments(asked, "handed") == [*wanted, "stop.seconds=5", "cluster.address=auto"]


def test_what_a_run_waits_for_on_a_cluster_is_what_it_will_be_given(tmp_path: Path) -> None:
    """A cloud starts machines for that alone: also for a run that goes on, and for the fewest of several runners."""
    config = str(tmp_path / write(tmp_path, SMALL | {"cluster": {}}))
    assert needed([config]) == [{"CPU": 1.0}]
    for runners, wanted in {"3": 3, "3..9": 3, "32": 4, "auto": 1}.items():  # of four shards
        words = [f"cluster.runners={runners}", "cluster.cpus_per_runner=2", "learner.device=cuda"]
        parts = needed([config, *words])
        assert parts == [{"CPU": 2.0}] * wanted + [{"GPU": 1.0}]
        node = Node(cpus=sum(part.get("CPU", 0) for part in parts), gpus=1)
        assert len(share_out(load_config(config, words), [node]).runners) == wanted
    for run_dir in (tmp_path / "run", tmp_path / "nfs" / "run"):
        run_dir.mkdir(parents=True)
        words = ["cluster.runners=2", "cluster.cpus_per_runner=1"]
        (run_dir / "config.yaml").write_text(load_config(config, words).to_yaml())
    for again in (
        ["--resume", f"{tmp_path}/run"],
        ["--resume", f"file://{tmp_path}/nfs/run", f"run_dir={tmp_path}/new"],
    ):
        assert needed(again) == [{"CPU": 1.0}] * 2
    with pytest.raises(UserError, match="no run to resume"):
        needed(["--resume", f"{tmp_path}/nothing"])


def test_a_model_to_begin_with_comes_along(tmp_path: Path) -> None:
    done = distrl("train", write(tmp_path, SMALL), "--local", "-q", "run_dir=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, order = order_run(str(tmp_path / "config.yaml"), [f"init_from={tmp_path}/first"], None)
    assert order.model == tmp_path / "first" / "best"
    assert yaml.safe_load(order.config or "")["init_from"] is None and json.dumps(dict(order.versions))


@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_run_that_does_not_arrive_whole_is_asked_for_once_more(
    spoilt: int, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something is written between its lines, say."""
    run = Path(os.environ["HOME"]) / "distrl-runs" / f"spoilt-{spoilt}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 1")
    follow, followed, warned = Cluster.follow, list[str](), list[str]()

    def interrupted(self: Cluster, job: str, write: Callable[[str], None], warn: Callable[[str], None]) -> Job:
        followed.append(job)
        stray = "Traceback: a file went away" if len(followed) <= spoilt else ""
        return follow(self, job, lambda text: write(text.replace("BEGIN\n", f"BEGIN\n{stray}")), warn)

    monkeypatch.setattr(Cluster, "follow", interrupted)
    if spoilt < 3:
        Cluster(address).fetch(run.name, tmp_path / "out", warned.append)
        assert (tmp_path / "out" / "config.yaml").read_text() == "seed: 1"
    else:
        with pytest.raises(UserError, match="did not arrive whole"):
            Cluster(address).fetch(run.name, tmp_path / "out", warned.append)
        assert not (tmp_path / "out").exists()
    assert len(set(followed)) == len(followed) == min(3, spoilt + 1)
    assert all("did not arrive whole (" in line and line.endswith("asked for once more.") for line in warned)
    assert len(warned) == len(followed) - 1


def test_who_sends_a_run_clears_up_after_others_but_leaves_what_may_still_be_read(tmp_path: Path) -> None:
    logs, run = tmp_path / "logs", tmp_path / "run"
    logs.mkdir()
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1")
    old, young, own = (logs / f"job-driver-{FETCH}{name}.log" for name in ("old", "young", "own"))
    for log in (old, young):
        log.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    with own.open("wb") as out:
        subprocess.run([sys.executable, "-c", _SEND, str(run)], stdout=out, check=True)
    assert (old.exists(), young.exists()) == (False, True)
    assert "END" in own.read_text().split("\n")[-2]
