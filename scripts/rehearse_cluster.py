"""The inside of scripts/rehearse_cluster.sh, which calls this in namespaces of its own. Not to be called by itself.

A bridge is the network; each host has a process space, an address, sshd, /tmp, /dev/shm and a home of its own, and is lost
when its first process is killed. This process is the laptop.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from distrl.stores import Store

ROOT = Path(__file__).resolve().parent.parent
NETWORK, DASHBOARD = "10.77.0", "http://127.0.0.1:8265"
S3, BUCKET = f"{NETWORK}.254:5000", "bucket"  # a server of the network's, beside the hosts
STORE = f"s3://{BUCKET}/runs?endpoint_override={S3}&scheme=http&region=us-east-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "rehearsal",
    "AWS_SECRET_ACCESS_KEY": "rehearsal",
    "AWS_EC2_METADATA_DISABLED": "true",
}
PATIENCE_S = 400  # for anything that is waited for: a busy machine takes ten times as long as a quiet one
# An iteration takes a second anywhere, since the env sleeps as `.env` says (not on the laptop); so that speed can be compared.
ITERATION = 4 * 16 * 32  # env steps
COMMON = [
    "env.id=slow:Slow-v0",
    "rollout.shards=4",
    "rollout.envs_per_shard=16",
    "rollout.steps=32",
    "stop.return_mean=null",
    "cluster.start=wait",  # what is lost shall be at work
    "checkpoint.every=10",
    "evaluation.every=0",
    "evaluation.final_episodes=5",
    "track.mlflow=false",
    "track.video=false",
]
# A schedule of the learning rate would depend on how long the run is to be.
CONFIG = ["ppo_cartpole", *COMMON, "algorithm.lr=1e-3", "cluster.cpus_per_runner=0.5"]
SMALL = ["cluster.runners=4", "cluster.cpus_per_runner=0.1"]  # all have room beside the first, on two hosts, too
OTHERS = {
    "a2c": ["a2c_cartpole", *COMMON, *SMALL, "algorithm.lr=1e-3"],
    "dqn": ["dqn_cartpole", *COMMON, *SMALL, "algorithm.lr=1e-3", "replay.shards=2", "replay.samples_per_insert=4"],
    "q": ["q_cartpole", *COMMON, *SMALL],
}
TEAMS = [
    *COMMON,
    *SMALL,
    "env.kwargs={}",
    "rollout.envs_per_shard=2",
    "algorithm.minibatch_size=256",
    "algorithm.lr=1e-3",
]
OTHERS |= {  # several agents: with a critic that sees all, in turns against a league, who die, and with policies of their own
    "spread": ["mappo_spread", *TEAMS, "env.id=slow:spread"],
    "league": ["ppo_tictactoe", *TEAMS, "env.id=slow:tictactoe", "algorithm.entropy_coef=0.05"],
    "zombies": ["ippo_spread", *TEAMS, "env.id=slow:zombies", "algorithm.hidden=[16]"],
    "apart": ["ippo_spread", *TEAMS, "env.id=slow:tag", "policies={chasers: [adversary_*], prey: [agent_0]}"],
}
CONFIGS = {"ppo": CONFIG, **OTHERS}
SLEEP_S, SPEED_S, QUICK, MORE, CUT_S = 0.002, 1.0, 45, 30, 30
SLOW = """
import os, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Slow(CartPoleEnv):
    def step(self, action):
        time.sleep(float(os.environ["SLEEP"]))
        return super().step(action)

gymnasium.register("Slow-v0", Slow, max_episode_steps=500)

def slowly(package, name, function):
    def make(**kwargs):
        import importlib
        game = getattr(importlib.import_module(f"{package}.{name}"), function)(**kwargs)
        step = game.step
        def sleep_and_step(actions):
            time.sleep(8 * float(os.environ["SLEEP"]))  # an eighth of the env copies
            return step(actions)
        game.step = sleep_and_step
        return game
    return make

spread, tag = (slowly("mpe2", name, "parallel_env") for name in ("simple_spread_v3", "simple_tag_v3"))
tictactoe = slowly("pettingzoo.classic", "tictactoe_v3", "env")
zombies = slowly("pettingzoo.butterfly", "knights_archers_zombies_v11", "parallel_env")
"""

# What lies below /tmp and every host needs, though each has a /tmp of its own.
NEEDED = {path for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if path.is_relative_to("/tmp")}
KEPT = sorted(str(path) for path in NEEDED if not NEEDED & set(path.parents))

# The first process of a host: takes in what loses its parent, so that nothing stays behind as a zombie.
INIT = """
set -e
mount --make-rprivate /
for kept in $KEPT; do mkdir -p "$HOST$kept"; mount --bind "$kept" "$HOST$kept"; done
mount --rbind "$HOST/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount --bind "$HOST/passwd" /etc/passwd
hostname "$NAME"
ip link set lo up
$(command -v sshd) -D -e -f "$HOST/sshd_config" 2> "$HOST/sshd.log" &
while :; do wait -n || true; sleep 0.1; done
"""


class Host:
    """A host with an address of its own."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number, self.name, self.address = number, f"host{number}", f"{NETWORK}.{number}"
        self.directory = directory / self.name
        self.home = self.directory / "home"
        self._first: subprocess.Popen[bytes] | None = None
        if not self.home.exists():
            self._furnish(directory)

    def _furnish(self, directory: Path) -> None:
        (self.directory / "tmp").mkdir(parents=True)
        shutil.copytree("/etc/skel", self.home) if Path("/etc/skel").is_dir() else self.home.mkdir()
        users = Path("/etc/passwd").read_text().splitlines()
        mine = [f"root:x:0:0:root:{self.home}:/bin/bash" if user.startswith("root:") else user for user in users]
        (self.directory / "passwd").write_text("\n".join(mine) + "\n")
        (self.directory / "sshd_config").write_text(
            f"ListenAddress 0.0.0.0\nHostKey {directory}/host_key\nAuthorizedKeysFile {directory}/key.pub\nPidFile none\n"
            "StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\n"
        )
        # A host has CPUs of its own: all that runs in one session there shall not share what one process here gets.
        with (self.home / ".profile").open("a") as profile:
            profile.write("\n(echo -6 > /proc/self/autogroup) 2> /dev/null\n")
        # The machine has the pinned versions already: the installer finds them, since there is no network to fetch them from.
        installed = self.home / "distrl" / ".venv"
        installed.mkdir(parents=True)
        for name in ("bin", "lib", "pyvenv.cfg"):
            (installed / name).symlink_to(Path(sys.prefix) / name)
        pins = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "scripts/constraints.txt"))
        stamp = subprocess.run(["cksum"], input=pins, capture_output=True, check=True)
        (installed / ".distrl-installed-plain").write_bytes(stamp.stdout)

    def start(self) -> None:
        environment = {
            "HOST": str(self.directory),
            "NAME": self.name,
            "KEPT": " ".join(KEPT),
            "PATH": os.environ["PATH"],
        }
        own = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        self._first = subprocess.Popen([*own, "bash", "-c", INIT], env=environment)
        inside = f"v{self.number}"
        pid = str(self._first.pid)
        within(lambda: os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a namespace")
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", inside, "netns", pid)
        sh("ip", "link", "set", self.link, "master", "bridge", "up")
        enter = ["nsenter", "--net", "-t", pid]
        sh(*enter, "ip", "addr", "add", f"{self.address}/24", "dev", inside)
        sh(*enter, "ip", "link", "set", inside, "up")
        sh(
            *enter, "ip", "route", "add", "default", "via", f"{NETWORK}.254"
        )  # which leads nowhere; by it Ray finds its address
        within(
            lambda: subprocess.run(["bash", "-c", f"</dev/tcp/{self.address}/22"], capture_output=True).returncode == 0,
            f"sshd of {self.name}",
        )

    @property
    def link(self) -> str:
        """The laptop's end of its cable."""
        return f"link{self.number}"

    def lose(self) -> None:
        """As if its power failed."""
        assert self._first is not None
        self._first.kill()
        self._first.wait()
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, check=False)

    def processes(self) -> list[str]:
        """What runs of Ray on it."""
        assert self._first is not None
        space = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        mine = {os.readlink(f"/proc/{pid}/ns/pid") for pid in space}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns" / "pid") in mine:
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return [command for command in found if re.search(r"raylet|gcs_server|ray::|ray/dashboard|-m distrl", command)]


def sh(*command: str) -> None:
    subprocess.run(command, check=True)


def within(true: Callable[[], bool], what: str) -> float:
    """Wait until something is so. Returns how long that took."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > PATIENCE_S:
            raise TimeoutError(f"{what} did not come within {PATIENCE_S} s")
        time.sleep(0.2)
    return time.monotonic() - start


def say(message: str) -> None:
    print(f"[{time.monotonic() - BEGUN:6.1f}] {message}", file=sys.stderr, flush=True)


BEGUN = time.monotonic()


class Rehearsal:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts: dict[int, Host] = {}
        self.head = 0
        self.file = directory / "onprem.yaml"
        self.storage, self.work = (
            directory / "storage",
            directory / "work",
        )  # all hosts see the one, as an NFS; the other is the user's
        for path in (self.storage, self.work):
            path.mkdir()
        (self.work / "slow.py").write_text(SLOW)
        (self.work / ".env").write_text(f"SLEEP={SLEEP_S}\n")
        self.tunnel: subprocess.Popen[bytes] | None = None
        self.stores = (STORE, str(self.storage))  # runs take them in turns
        os.environ["HOME"] = str(directory / "laptop")
        Path(os.environ["HOME"]).mkdir()
        for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ |= CREDENTIALS
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = directory / "laptop-tmp"
        own.mkdir()
        for path in KEPT:
            (own / path.removeprefix("/tmp/")).mkdir(parents=True)
            sh("mount", "--bind", path, str(own / path.removeprefix("/tmp/")))
        sh("mount", "--rbind", str(own), "/tmp")
        sh("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", "bridge", "type", "bridge")
        sh("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "bridge")
        sh("ip", "link", "set", "bridge", "up")
        self._start_s3()
        for name in ("key", "host_key"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
        subprocess.run(["ray", "get-auth-token", "--generate"], capture_output=True, check=True)
        (directory / "laptop" / ".ray" / "auth_token").chmod(0o600)

    def _start_s3(self) -> None:
        """A server that speaks as Amazon's does, with a bucket. What is in it is there as long as this process."""
        host, port = S3.split(":")
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
        with (self.directory / "s3.log").open("wb") as log:
            subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        request = urllib.request.Request(f"http://{S3}/{BUCKET}", method="PUT")

        def made() -> bool:
            try:
                urllib.request.urlopen(request, timeout=5).close()
            except OSError:
                return False
            return True

        within(made, "the S3 server")

    def start_host(self, number: int) -> Host:
        self.hosts[number] = Host(self.directory, number)
        self.hosts[number].start()
        return self.hosts[number]

    def render(self, head: int, *workers: int) -> None:
        """configs/cluster/onprem.yaml with the decisions that its user has to make, and nothing else changed."""
        self.head = head
        config = yaml.safe_load((ROOT / "configs" / "cluster" / "onprem.yaml").read_text(encoding="utf-8"))
        config["provider"] |= {
            "head_ip": f"{NETWORK}.{head}",
            "worker_ips": [f"{NETWORK}.{number}" for number in workers],
        }
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.directory / "key")}
        config["min_workers"] = config["max_workers"] = len(workers)
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def up(self) -> float:
        """`ray up`, until all hosts are in the cluster. Returns how long that took."""
        start = time.monotonic()
        self._log("ray", "up", "-y", "--no-config-cache", str(self.file))
        self._close_tunnel()
        within(lambda: self._ask("/api/version") is not None, "the dashboard")
        within(lambda: self.alive() == len(self.hosts), f"{len(self.hosts)} hosts in the cluster")
        return time.monotonic() - start

    def join(self, host: Host) -> None:
        """Add a machine to a cluster that is up, as `ray up` does with a worker, by hand: it reads a new list at its start alone."""
        config = yaml.safe_load(self.file.read_text())
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        ssh = f"ssh -i {self.directory / 'key'} {options}"
        there = f"root@{host.address}"
        for remote, local in config["file_mounts"].items():
            source, place = ROOT / Path(local).expanduser(), str(remote).removeprefix("~/")
            self._log(*ssh.split(), there, f"mkdir -p {Path(place).parent}")
            self._log("rsync", "-a", "-e", ssh, f"{source}{'/' * source.is_dir()}", f"{there}:{place}")
        for command in [*config["setup_commands"], *config["worker_start_ray_commands"]]:
            told = f"export RAY_HEAD_IP={NETWORK}.{self.head}; {command}"
            self._log(*ssh.split(), there, f"bash --login -i -c {shlex.quote(told)}")
        within(lambda: self.alive() == len(self.hosts), f"{host.name} in the cluster")

    def check(self, *arguments: str) -> None:
        """`distrl cluster check`, which finds nothing wrong."""
        self._log(sys.executable, "-m", "distrl", "cluster", "check", *arguments)

    def down(self) -> None:
        """Of what is left: `ray down` would try for minutes to reach a host that is lost."""
        self.render(self.head, *(number for number in self.hosts if number != self.head))
        self._log("ray", "down", "-y", str(self.file))

    def processes(self) -> list[str]:
        """What runs of Ray on all hosts. Workers leave by themselves, some 60 s after their head."""
        return [command for host in self.hosts.values() for command in host.processes()]

    def alive(self) -> int:
        """How many hosts Ray takes to be alive."""
        told = self._ask("/nodes?view=summary")
        return 0 if told is None else sum(node["raylet"].get("state") == "ALIVE" for node in told["data"]["summary"])

    def _close_tunnel(self) -> None:
        if self.tunnel is not None:
            os.killpg(self.tunnel.pid, signal.SIGKILL)  # with its ssh
            self.tunnel.wait()
            self.tunnel = None

    def _ask(self, path: str) -> Any:
        if self.tunnel is None or self.tunnel.poll() is not None:
            self._close_tunnel()
            self.tunnel = self._open("ray", "dashboard", "--no-config-cache", str(self.file))
        token = (Path(os.environ["HOME"]) / ".ray" / "auth_token").read_text().strip()
        request = urllib.request.Request(f"{DASHBOARD}{path}", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError, http.client.HTTPException):
            return None

    def _log(self, *command: str) -> None:
        with (self.directory / "log").open("ab") as log:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {self.tail()}")

    def _open(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.directory / "log").open("ab")
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
        )

    def tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]


class Run:
    """A job, followed by `distrl submit` as its user does."""

    def __init__(self, laptop: Rehearsal, *arguments: str, store: str | None = None, name: str | None = None) -> None:
        """
        Args:
            store: where a new run is kept
            name: of the directory on the head of one that goes on
        """
        arguments = (*arguments, *([] if store is None else [f"storage={store}"]))
        self.out = laptop.directory / f"results-{time.monotonic_ns()}"
        self.said = laptop.directory / f"{self.out.name}.log"
        command = [sys.executable, "-m", "distrl", "submit", *arguments, "--address", DASHBOARD, "--out", str(self.out)]
        command += ["--working-dir", "."]
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=laptop.work)
        within(lambda: "\n" in self.text or self.process.poll() is not None, "the job's id")
        self.job = self.text.split("\n")[0]
        self.name, self._head = name or self.job, laptop.hosts[laptop.head]
        if store is not None:  # its address there
            self.kept = str(Store.parse(store) / self.job) if "://" in store else f"file://{store}/{self.job}"
        self._there = self._head.home / "distrl-runs" / self.name

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    @property
    def log(self) -> str:
        """All that the job said so far, seen on the head's disk."""
        files = self._head.directory.glob(f"tmp/ray/session_2*/logs/job-driver-{self.job}.log")
        return "".join(file.read_text(errors="replace") for file in files)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of its iterations, likewise."""
        file = self._there / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def times(self) -> list[float]:
        """When each iteration was there; unix times."""
        return [row["time"] for row in self.rows]

    def wait_past(self, when: float) -> dict[str, Any]:
        """Wait for an iteration that came after a time (unix). Returns its row."""
        self.wait(lambda: bool(self.times) and self.times[-1] > when, "another iteration")
        return next(row for row in self.rows if row["time"] > when)

    @property
    def lost(self) -> bool:
        """Whether any of its workers were."""
        return bool(re.search(r"nodes? left|was lost", self.log))

    def wait(self, true: Callable[[], bool], what: str) -> None:
        def so() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the run has ended while {what} was waited for:\n{self.text[-3000:]}")
            return true()

        within(so, what)

    def at_speed(self, since: float) -> float:
        """Wait until three iterations in a row took no longer than 2.5 times the usual; seconds from `since` (unix) to the first of them.

        Where one of two hosts is left, half of the runners do it all: twice the usual, and what is the same for all.
        """

        def found() -> float | None:
            times = self.times
            gaps = [after - before for before, after in pairwise(times)]
            usual = statistics.median(
                [gap for gap, at in zip(gaps, times[1:], strict=True) if at < since][-8:] or [SPEED_S]
            )
            for first in range(len(gaps) - 2):
                if times[first] > since and max(gaps[first : first + 3]) <= 2.5 * usual:
                    return times[first] - since
            return None

        self.wait(lambda: found() is not None, "full speed")
        return found() or 0.0

    def end(self) -> str:
        """Wait for its end and its results. Returns the sha256 of its weights."""
        if self.process.wait():
            raise RuntimeError(f"distrl submit ended with {self.process.returncode}:\n{self.text[-3000:]}")
        return result(self.out)


def result(run_dir: Path) -> str:
    data = json.loads((run_dir / "result.json").read_text())
    if data["status"] != "finished":
        raise RuntimeError(f"{run_dir} is {data['status']}: {data['error']}")
    return str(data["weights_sha256"])


class Losses:
    """What is done to some runs at once, and what came of it for the first, by what it was."""

    def __init__(self, laptop: Rehearsal, runs: dict[str, Run]) -> None:
        self.laptop, self.runs = laptop, runs
        self.seconds: dict[str, float] = {}  # until full speed again
        self.noticed: dict[
            str, tuple[float, float]
        ] = {}  # seconds until Ray noticed, and from then to the next iteration
        self.steps: dict[str, int] = {}  # env steps done twice

    @property
    def run(self) -> Run:
        """The first."""
        return next(iter(self.runs.values()))

    def lose_worker(self, number: int = 3) -> None:
        say(f"host {number} loses its power")
        with self._counted("a worker's host lost"):
            lost = time.time()
            self.laptop.hosts.pop(number).lose()
            within(lambda: self.laptop.alive() == len(self.laptop.hosts), "Ray's notice")
            noticed = time.time()
            after = self.run.wait_past(noticed)["time"] - noticed
            self.noticed["a worker's host lost"] = round(noticed - lost, 1), round(after, 1)
        for name, run in self.runs.items():
            run.wait(lambda run=run: run.lost, f"{name}, which must have had something there,")  # type: ignore[misc]

    def add_host(self) -> None:
        say("host 4 is added")
        start, before = time.monotonic(), self.run.log.count("a node came")
        self.laptop.join(self.laptop.start_host(4))
        self.run.wait(lambda: self.run.log.count("a node came") > before, "the use of host 4")
        self.seconds["a host added"], self.steps["a host added"] = time.monotonic() - start, 0
        self.run.at_speed(time.time())

    def cut_link(self) -> None:
        say(f"the cable of host 2 is out for {CUT_S} s")
        link, cut = self.laptop.hosts[2].link, time.monotonic()
        with self._counted(f"a link cut for {CUT_S} s"):
            sh("ip", "link", "set", link, "down")
            within(lambda: time.monotonic() - cut >= CUT_S, "the end of the cut")
            sh("ip", "link", "set", link, "up")
        within(lambda: self.laptop.alive() == len(self.laptop.hosts), "host 2 in the cluster again")
        say(f"host 2 is back {time.monotonic() - cut:.0f} s after the cut")

    def lose_head(self) -> dict[str, int]:
        """The runs go on with another head, on a machine that has nothing of them, from storage. Returns their iterations in all."""
        say("the head loses its power")
        lost, done = time.time(), {name: len(run.times) for name, run in self.runs.items()}
        self.laptop.hosts.pop(1).lose()
        for run in self.runs.values():
            run.process.kill()  # whoever follows would wait for the head
            run.process.wait()
        self.laptop.start_host(5)
        self.laptop.render(5, 2, 4)
        self.laptop.up()
        say("another head is up")
        for name, run in list(self.runs.items()):  # the first alone, so that its seconds are its own
            more = f"stop.env_steps={(done[name] + MORE) * iteration_of(CONFIGS[name])}"
            self.runs[name] = Run(self.laptop, "--resume", run.kept, more, name=run.name)
            if name == next(iter(self.runs)):
                self.seconds["the head lost"] = self.run.at_speed(lost)
                self.steps["the head lost"] = (done[name] - self.run.wait_past(lost)["iteration"]) * ITERATION
                say(f"full speed again after {self.seconds['the head lost']:.0f} s")
        return {name: count + MORE for name, count in done.items()}

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        lost, done, said = time.time(), len(self.run.times), len(self.run.log)
        yield
        self.seconds[what] = self.run.at_speed(lost)
        back = [int(number) for number in re.findall(r"going back to iteration (\d+)", self.run.log[said:])]
        self.steps[what] = (done - min(back, default=done)) * ITERATION
        say(f"full speed again after {self.seconds[what]:.0f} s")


def rehearse(directory: Path, quick: bool, others: Sequence[str]) -> dict[str, Any]:
    """What came of it: sha256s by algorithm, seconds and env steps lost by what was done.

    Args:
        quick: two hosts, of which one is lost, and no more
        others: what trains beside PPO
    """
    laptop = Rehearsal(directory)
    say("two hosts" if quick else "three hosts")
    workers = (2,) if quick else (2, 3)
    for number in (1, *workers):
        laptop.start_host(number)
    laptop.render(1, *workers)
    laptop.check(str(laptop.file), "--no-setup")  # which would install all anew, from a network that is not here
    up = laptop.up()
    say(f"ray up: {up:.0f} s")
    if not quick:
        for store in laptop.stores:
            laptop.check(DASHBOARD, "--storage", store)
        say("checked")
    names = ["ppo", *others]
    iterations = dict.fromkeys(names, QUICK if quick else 10**6)
    runs = {}
    for number, name in enumerate(names):
        steps = f"stop.env_steps={iterations[name] * iteration_of(CONFIGS[name])}"
        runs[name] = Run(laptop, *CONFIGS[name], steps, store=laptop.stores[number % 2])
    for run in runs.values():
        run.wait(lambda run=run: len(run.times) >= (10 if quick else 25), "its first iterations")  # type: ignore[misc]
        say(f"{run.job} runs")
    losses = Losses(laptop, runs)
    losses.lose_worker(workers[-1])
    if not quick:
        losses.add_host()
        losses.cut_link()
        iterations = losses.lose_head()
    sha256 = {}
    for name, run in losses.runs.items():
        sha256[name] = [run.end(), alone(laptop, name, CONFIGS[name], iterations[name])]
        say(f"{name} ended, {'with the same bits' if len(set(sha256[name])) == 1 else 'WITH OTHER BITS'}")
    say("ray down")
    start = time.monotonic()
    laptop.down()
    within(lambda: not laptop.processes(), "an end of all processes")
    seconds = {"up": up, **losses.seconds, "down": time.monotonic() - start}
    return {
        "sha256": sha256,
        "same bits": all(len(set(both)) == 1 for both in sha256.values()),
        "seconds": {what: round(took, 1) for what, took in seconds.items()},
        "noticed, then another iteration": losses.noticed,
        "steps lost": losses.steps,
    }


def iteration_of(config: Sequence[str]) -> int:
    """Env steps of an iteration."""
    told = dict(word.split("=", 1) for word in config if "=" in word)
    return math.prod(int(told[f"rollout.{name}"]) for name in ("shards", "envs_per_shard", "steps"))


def alone(laptop: Rehearsal, name: str, config: Sequence[str], iterations: int) -> str:
    """The sha256 of the same run's weights on the laptop, in one process."""
    steps = f"stop.env_steps={iterations * iteration_of(config)}"
    command = [sys.executable, "-m", "distrl", "train", *config, steps]
    command += ["--local", "-q", f"run_dir={name}"]
    with (laptop.directory / "log").open("ab") as log:
        subprocess.run(command, cwd=laptop.work, env=os.environ | {"SLEEP": "0"}, stdout=log, stderr=log, check=True)
    return result(laptop.work / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="empty, and nobody else's")
    parser.add_argument("--quick", action="store_true", help="PPO alone, on two hosts, of which one is lost")
    parser.add_argument("--beside", nargs="*", choices=OTHERS, help="what trains beside PPO; default: a2c dqn q")
    parser.add_argument("--seconds", type=int, default=2400, help="the most that it may take")
    asked = parser.parse_args()

    def late(*_: object) -> None:
        raise TimeoutError(f"it is not over after {asked.seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(asked.seconds)
    try:
        others = asked.beside if asked.beside is not None else [] if asked.quick else ["a2c", "dqn", "q"]
        told = rehearse(asked.directory, asked.quick, others)
    except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
        log = asked.directory / "log"
        print(log.read_text(errors="replace")[-5000:] if log.exists() else "", file=sys.stderr)
        told = {"error": str(error)[-1500:]}
    told["seconds in all"] = round(time.monotonic() - BEGUN, 1)
    passed = "error" not in told and told["same bits"]
    print(json.dumps(told), flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
