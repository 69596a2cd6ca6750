"""The inside of scripts/rehearse_cluster.sh, which calls this in namespaces of its own. Not to be called by itself.

A bridge is the network; each host has a process space, an address, sshd, /tmp, /dev/shm and a home of its own, and is lost
when its first process is killed. This process is the laptop.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
NETWORK, DASHBOARD = "10.77.0", "http://127.0.0.1:8265"
CONFIG = [
    "ppo_cartpole",
    "rollout.shards=4",
    "stop.env_steps=245760",
    "stop.return_mean=null",
    "cluster.cpus_per_runner=1",
    "cluster.start=wait",  # what is lost shall be at work
]
CONFIG += ["checkpoint.every=10", "evaluation.final_episodes=10", "track.mlflow=false", "track.video=false"]

# What lies below /tmp and every host needs, though each has a /tmp of its own.
KEPT = sorted({str(path) for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if str(path).startswith("/tmp/")})

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
        within(60, lambda: os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"), "a namespace")
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", inside, "netns", pid)
        sh("ip", "link", "set", self.link, "master", "bridge", "up")
        enter = ["nsenter", "--net", "-t", pid]
        sh(*enter, "ip", "addr", "add", f"{self.address}/24", "dev", inside)
        sh(*enter, "ip", "link", "set", inside, "up")
        sh(
            *enter, "ip", "route", "add", "default", "via", f"{NETWORK}.254"
        )  # which leads nowhere; by it Ray finds its address
        within(
            60,
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


def within(seconds: float, true: Callable[[], bool], what: str) -> float:
    """Wait until something is so. Returns how long that took."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - start


def say(message: str) -> None:
    print(f"[{time.monotonic() - BEGUN:6.1f}] {message}", file=sys.stderr, flush=True)


BEGUN = time.monotonic()


class Rehearsal:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts: dict[int, Host] = {}
        self.file = directory / "onprem.yaml"
        self.tunnel: subprocess.Popen[bytes] | None = None
        os.environ["HOME"] = str(directory / "laptop")
        Path(os.environ["HOME"]).mkdir()
        for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
            del os.environ[name]
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}
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
        for name in ("key", "host_key"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
        subprocess.run(["ray", "get-auth-token", "--generate"], capture_output=True, check=True)
        (directory / "laptop" / ".ray" / "auth_token").chmod(0o600)

    def start_host(self, number: int) -> Host:
        self.hosts[number] = Host(self.directory, number)
        self.hosts[number].start()
        return self.hosts[number]

    def render(self, *workers: int) -> None:
        """configs/cluster/onprem.yaml with the decisions that its user has to make, and nothing else changed."""
        config = yaml.safe_load((ROOT / "configs" / "cluster" / "onprem.yaml").read_text(encoding="utf-8"))
        config["provider"] |= {"head_ip": f"{NETWORK}.1", "worker_ips": [f"{NETWORK}.{number}" for number in workers]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.directory / "key")}
        config["min_workers"] = config["max_workers"] = len(workers)
        self.file.write_text(yaml.safe_dump(config, sort_keys=False))

    def up(self) -> float:
        """`ray up`, until all hosts are in the cluster. Returns how long that took."""
        start = time.monotonic()
        self._log("ray", "up", "-y", "--no-config-cache", str(self.file))
        if self.tunnel is not None:
            self.tunnel.kill()
        self.tunnel = self._open("ray", "dashboard", "--no-config-cache", str(self.file))
        within(200, lambda: self._ask("/api/version") is not None, "the dashboard")
        within(300, lambda: self.alive() == len(self.hosts), f"{len(self.hosts)} hosts in the cluster")
        return time.monotonic() - start

    def check(self, target: str) -> None:
        """`distrl cluster check`, which finds nothing wrong."""
        self._log(sys.executable, "-m", "distrl", "cluster", "check", target)

    def down(self) -> None:
        self._log("ray", "down", "-y", str(self.file))

    def processes(self) -> list[str]:
        """What runs of Ray on all hosts. Workers leave by themselves, some 60 s after their head."""
        return [command for host in self.hosts.values() for command in host.processes()]

    def alive(self) -> int:
        """How many hosts Ray takes to be alive."""
        told = self._ask("/nodes?view=summary")
        return 0 if told is None else sum(node["raylet"].get("state") == "ALIVE" for node in told["data"]["summary"])

    def _ask(self, path: str) -> Any:
        token = (Path(os.environ["HOME"]) / ".ray" / "auth_token").read_text().strip()
        request = urllib.request.Request(f"{DASHBOARD}{path}", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except OSError:
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
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT)

    def tail(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-3000:]


class Run:
    """A job, followed by `distrl submit` as its user does."""

    def __init__(self, rehearsal: Rehearsal, *arguments: str) -> None:
        self.out = rehearsal.directory / f"results-{time.monotonic_ns()}"
        self.said = rehearsal.directory / f"{self.out.name}.log"
        command = [sys.executable, "-m", "distrl", "submit", *arguments, "--address", DASHBOARD, "--out", str(self.out)]
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=rehearsal.directory)
        within(200, lambda: "\n" in self.text or self.process.poll() is not None, "the job's id")
        self.job = self.text.split("\n")[0]
        self.there = rehearsal.hosts[1].home / "distrl-runs" / self.job

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    @property
    def rows(self) -> int:
        """Iterations done, seen on the head's disk."""
        file = self.there / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def reach(self, rows: int, seconds: float = 300) -> float:
        """Wait until so many iterations are done. Returns how long that took."""

        def there() -> bool:
            if self.process.poll() is not None and self.rows < rows:
                raise RuntimeError(f"the run ended after {self.rows} iterations:\n{self.text[-3000:]}")
            return self.rows >= rows

        return within(seconds, there, f"iteration {rows} of {self.job}")

    def end(self, seconds: float = 600) -> str:
        """Wait for its end and its results. Returns the sha256 of its weights."""
        if self.process.wait(seconds):
            raise RuntimeError(f"distrl submit ended with {self.process.returncode}:\n{self.text[-3000:]}")
        return result(self.out)


def result(run_dir: Path) -> str:
    data = json.loads((run_dir / "result.json").read_text())
    if data["status"] != "finished":
        raise RuntimeError(f"{run_dir} is {data['status']}: {data['error']}")
    return str(data["weights_sha256"])


def lose_worker(laptop: Rehearsal, run: Run) -> float:
    """Returns the seconds until five more iterations are done."""
    say("host 3 loses its power")
    laptop.hosts.pop(3).lose()
    return run.reach(run.rows + 5)


def rehearse(directory: Path) -> dict[str, Any]:
    """What came of it: sha256s by what was done, seconds by what was lost."""
    sha256: dict[str, str] = {}
    seconds: dict[str, float] = {}
    laptop = Rehearsal(directory)
    say("three hosts")
    for number in (1, 2, 3):
        laptop.start_host(number)
    laptop.render(2, 3)
    laptop.check(str(laptop.file))
    seconds["up"] = laptop.up()
    say(f"ray up: {seconds['up']:.0f} s")
    run = Run(laptop, *CONFIG)
    run.reach(20)
    say(f"{run.job} runs")
    seconds["a worker's host lost"] = lose_worker(laptop, run)
    told: dict[str, Any] = {"sha256": sha256, "seconds": seconds}
    sha256["cluster"] = run.end()
    say("it ended; the same on the laptop alone")
    with (directory / "log").open("ab") as log:
        command = [sys.executable, "-m", "distrl", "train", *CONFIG, "--local", "-q", "run_dir=alone"]
        subprocess.run(command, cwd=directory, stdout=log, stderr=log, check=True)
    sha256["laptop"] = result(directory / "alone")
    say("ray down")
    start = time.monotonic()
    laptop.down()
    within(200, lambda: not laptop.processes(), "an end of all processes")
    seconds["down"] = time.monotonic() - start
    told["seconds"] = {what: round(took, 1) for what, took in seconds.items()}
    told["same bits"] = len(set(sha256.values())) == 1
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="empty, and nobody else's")
    parser.add_argument("--seconds", type=int, default=600, help="the most that it may take")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    try:
        told = rehearse(asked.directory)
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
