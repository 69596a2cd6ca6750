"""Kill processes of runs at random, of every kind, some hundred times: no run may be lost, and all must end with the right weights.

Each algorithm trains on a Ray of its own, and PPO once more on a Ray of several nodes, for its share of the kills. Whenever
a run has got further, a kind of process is drawn, and one of that kind is killed: the driver (then it is resumed), a runner,
a learner, a replay, the evaluator, any of Ray's own, what copies to a store or to MLflow, what cleans up, or a whole node. At the end each
run is trained to its end undisturbed, and compared with one process. Linux only. The last line is JSON; 0 is success.

200 kills take about half an hour on two quiet cores.

Usage: .venv/bin/python scripts/soak.py [--kills 200] [--seed 0] [--runs ppo a2c dqn q nodes]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import nodes

os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # of a machine that has much else to do
PATIENCE_S = 400.0  # for a run to get further after a loss
THERE_S = 90.0  # for a process of the kind that was drawn to be there; then another kind is drawn
COMMON = [
    "evaluation.every=5",
    "evaluation.episodes=2",
    "evaluation.final_episodes=2",
    "checkpoint.every=5",
    "stop.return_mean=null",
    "cluster.runners=2",
    "cluster.restarts=1000000",
    "cluster.start=wait",  # what is killed shall be at work
    "track.video=false",
]
PPO = ["ppo_cartpole", "algorithm.lr=1e-3", "rollout.shards=4", "rollout.envs_per_shard=8", "track.mlflow=false"]
RUNS = {
    "ppo": PPO,
    "a2c": ["a2c_cartpole", "algorithm.lr=1e-3", "learner.slices=2", "learner.count=2", "track.mlflow=false"],
    "dqn": ["dqn_cartpole", "algorithm.lr=1e-3", "replay.shards=2", "replay.capacity=5000", "track.mlflow=false"],
    "q": ["q_taxi"],
    "nodes": [*PPO, "cluster.cpus_per_runner=0.5"],
}
ENDLESS = 10**9
STARTED = "--- another driver"
BUSY = "timed out during startup"  # Ray gives up where a busy machine takes too long; whoever is told tries again
TRIES = 10  # in a row
NAMES = [  # of processes, by what stands in their command lines
    ("janitor", r" -S -E -c "),
    ("copy to a store", r"distrl\.storage"),
    ("copy to MLflow", r"distrl\.tracking"),
    ("raylet", r"raylet/raylet"),
    ("gcs", r"gcs_server"),
    ("an agent of Ray's", r"/dashboard/|log_monitor|runtime_env/agent"),
    (r"\1", r"ray::(Learner|Replay|Runner|Evaluator)"),
]
WORKERS = ["runner", "learner", "evaluator"]
OWN_RAY = ["driver", *WORKERS, "raylet", "gcs", "an agent of Ray's", "janitor", "copy to a store"]
KINDS = {
    "ppo": OWN_RAY,
    "a2c": OWN_RAY,
    "dqn": [*OWN_RAY, "replay"],
    "q": [*OWN_RAY, "copy to MLflow"],
    "nodes": ["driver", *WORKERS, "copy to a store", "node"],
}
MEASURED = 0.5  # of all kills that wait for that; the others come whenever they come
ENOUGH = 12  # moments at which all processes were there, before anything is said of memory
GROWTH = 1.15  # of the memory of all of them, from the first third of these to the last, that is none


def kind(process: psutil.Process) -> str:
    """What a process of a run is; '' where that does not matter."""
    told = " ".join(process.cmdline())
    for name, pattern in NAMES:
        if found := re.search(pattern, told):
            return found[1].lower() if found.groups() else name
    return ""


class Hosts:
    """Two nodes of a Ray, and one more for each that is killed."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        nodes.ENVIRONMENT |= {"TMPDIR": str(directory), "RAY_TMPDIR": str(directory)}
        self.directory, self.ray = directory, nodes.Nodes()
        self.there = [self.ray.add(2), self.ray.add(2)]

    def processes(self) -> list[psutil.Process]:
        """Those of the workers; a node is known by its raylet."""
        found = []
        for node in self.there:
            with suppress(psutil.Error):
                found += psutil.Process(self.ray.raylets[node]).children(recursive=True)
        return found

    def lose(self, chance: random.Random) -> None:
        """One of them, and add another."""
        lost = self.there.pop(chance.randrange(len(self.there)))
        self.ray.kill(lost)
        self.there.append(self.ray.add(2))

    def close(self) -> None:
        self.ray.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # Ray keeps its logs


class Soak:
    """One run that is disturbed."""

    def __init__(self, directory: Path, name: str, chance: random.Random) -> None:
        self.directory, self.name, self.chance = directory, name, chance
        self.run_dir = directory / name
        self.config = [*RUNS[name], *COMMON]
        self.killed: Counter[str] = Counter()
        self.last = ""  # that was killed
        self.busy = 0  # drivers in a row that found the machine too busy to start Ray
        self.ended_by_ray = 0  # drivers that Ray's client ended with its Ray, which it may, without a word
        self.memory: list[float] = []  # MB of all its processes, when there was one of each kind
        self.hosts = Hosts(directory / "hosts") if name == "nodes" else None
        self.joined = [] if self.hosts is None else [f"cluster.address={self.hosts.ray.address}"]
        self.begin = [*self.config, f"stop.env_steps={ENDLESS}", f"run_dir={name}", f"storage={directory}/store"]
        self.driver = self._start(*self.begin, *self.joined)

    def _start(self, *arguments: str) -> psutil.Popen:
        environment = {
            **(os.environ if self.hosts is None else nodes.ENVIRONMENT),
            "TMPDIR": str(self.directory / "tmp"),
        }
        with (self.directory / f"{self.name}.log").open("a") as log:
            print(STARTED, file=log, flush=True)
            command = [sys.executable, "-m", "distrl", "train", *arguments, "-q"]
            return psutil.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def rows(self) -> int:
        file = self.run_dir / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def disturb(self, kills: int) -> None:
        """So often."""
        for _ in range(kills):
            self._get_further()
            if self.chance.random() < MEASURED:
                self._measure()
            what, found = self._draw()
            if what == "node":
                assert self.hosts is not None
                self.hosts.lose(self.chance)
            else:
                with suppress(psutil.Error):
                    self.chance.choice(found[what]).kill()
            self.killed[what] += 1
            self.last = what
            if what == "driver":
                self.driver.wait()
                self.driver = self._start("--resume", self.name, *self.joined)

    def _measure(self) -> None:
        """Wait until there is one of each kind, and note what they take."""
        until = time.monotonic() + THERE_S
        while time.monotonic() < until:
            found = self._find()
            if found.keys() >= set(KINDS[self.name]) and len(found["runner"]) == 2:
                self.memory.append(sum(_memory(process) for some in found.values() for process in some))
                return
            self._look()
            time.sleep(0.2)

    def _draw(self) -> tuple[str, dict[str, list[psutil.Process]]]:
        """A kind, and the processes that there are by their kinds, of which there is one of that kind."""
        left = list(KINDS[self.name])
        while left:
            what = left.pop(self.chance.randrange(len(left)))
            until = time.monotonic() + THERE_S
            while time.monotonic() < until:
                if (found := self._find()).get(what):
                    return what, found
                self._look()
                time.sleep(0.2)
        raise RuntimeError(f"{self.name} has none of its processes after {dict(self.killed)}:\n{self.tail()}")

    def _find(self) -> dict[str, list[psutil.Process]]:
        found: dict[str, list[psutil.Process]] = {"driver": [self.driver]}
        children = [] if self.hosts is None else self.hosts.processes()
        with suppress(psutil.Error):
            children += self.driver.children(recursive=True)
        for process in children:
            with suppress(psutil.Error):
                if what := kind(process):
                    found.setdefault(what, []).append(process)
        if self.hosts is not None:
            found["node"] = [psutil.Process(self.hosts.ray.raylets[node]) for node in self.hosts.there]
        return found

    def _look(self) -> None:
        """Start the driver again where Ray ended it. Raises RuntimeError where the run has ended."""
        code, said = self.driver.poll(), self.tail()
        by_ray = code == 1 and self.last in ("raylet", "gcs") and "Traceback" not in said
        self.ended_by_ray += by_ray
        if by_ray or (code == 2 and BUSY in said and self.busy < TRIES):
            self.busy += not by_ray
            again = ["--resume", self.name] if self.run_dir.exists() else self.begin
            self.driver = self._start(*again, *self.joined)
        if self.driver.poll() is not None:
            raise RuntimeError(
                f"{self.name} ended with {self.driver.returncode} after {dict(self.killed)}:\n{self.tail()}"
            )

    def _get_further(self) -> None:
        """Wait for more rows. Raises RuntimeError where the run has ended, or there are none."""
        before, start = self.rows, time.monotonic()
        more = self.chance.randint(1, 8)
        self.busy = 0
        while self.rows < before + more:
            self._look()
            if time.monotonic() - start > PATIENCE_S * (1 + self.busy):
                raise RuntimeError(f"{self.name} gets no further after {dict(self.killed)}:\n{self.tail()}")
            time.sleep(0.05)

    def end(self) -> dict[str, Any]:
        """Train to an end without more trouble, and the same in one process."""
        self._get_further()
        self.driver.send_signal(signal.SIGTERM)
        if (code := self.driver.wait(PATIENCE_S)) != 130:
            raise RuntimeError(f"{self.name} ended with {code} when it was asked to:\n{self.tail()}")
        steps = json.loads((self.run_dir / "result.json").read_text())["env_steps"]
        stop, alone = f"stop.env_steps={steps + 1}", f"run_dir={self.name}-alone"
        for arguments in (["--resume", self.name, stop, "--local"], [*self.config, stop, alone, "--local"]):
            if code := self._start(*arguments).wait():
                raise RuntimeError(f"{self.name} ended with {code}:\n{self.tail()}")
        results = [
            json.loads((d / "result.json").read_text()) for d in (self.run_dir, self.directory / f"{self.name}-alone")
        ]
        third = len(self.memory) // 3
        usual = [round(statistics.median(part)) for part in (self.memory[:third], self.memory[-third:]) if third]
        return {
            "kills": dict(self.killed),
            "drivers ended by Ray": self.ended_by_ray,
            "env_steps": results[0]["env_steps"],
            "sha256": results[0]["weights_sha256"],
            "same bits": len({result["weights_sha256"] for result in results}) == 1,
            "memory_mb": usual,
            "memory_flat": len(self.memory) < ENOUGH or usual[1] < GROWTH * usual[0],
        }

    def close(self) -> None:
        for process in [*self.driver.children(recursive=True), self.driver] if self.driver.is_running() else []:
            with suppress(psutil.Error):
                process.kill()
        if self.hosts is not None:
            self.hosts.close()

    def tail(self) -> str:
        """What its newest driver said."""
        text = (self.directory / f"{self.name}.log").read_text(errors="replace")
        return text.rpartition(STARTED)[2][-3000:]


def _memory(process: psutil.Process) -> float:
    """In MB; what several processes share is shared out among them."""
    with suppress(psutil.Error):
        return float(process.memory_full_info().pss) / 1e6
    return 0.0


def left_over(directory: Path) -> list[str]:
    """What is still there of runs whose temporary files were in a directory; what is ending may take a moment."""
    temporary = directory / "tmp"
    for _ in range(300):
        found = [path.name for path in temporary.iterdir()]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TMPDIR", "").startswith(f"{directory}/"):
                    found.append(" ".join(process.cmdline())[:80])
        if not found:
            return []
        time.sleep(0.2)
    return found


def soak(kills: int, seed: int, names: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as directory:
        (Path(directory) / "tmp").mkdir()
        for number, name in enumerate(names):
            run = Soak(Path(directory), name, random.Random(f"{seed} {name}"))
            try:
                run.disturb(kills * (number + 1) // len(names) - kills * number // len(names))
                told[name] = run.end()
            except (RuntimeError, AssertionError, subprocess.TimeoutExpired, psutil.TimeoutExpired) as error:
                told[name] = {"error": str(error), "kills": dict(run.killed)}
            finally:
                run.close()
            told[name]["minutes"] = round((time.monotonic() - began) / 60, 1)
            print(f"[{number + 1} of {len(names)}] {name}: {json.dumps(told[name])}", file=sys.stderr, flush=True)
        told["left over"] = left_over(Path(directory))
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    asked = parser.parse_args()
    told = soak(asked.kills, asked.seed, asked.runs)
    runs = [told[name] for name in asked.runs]
    told["kills"] = sum((Counter(run["kills"]) for run in runs), Counter[str]())
    told["all kills"] = sum(told["kills"].values())
    print(json.dumps(told), flush=True)
    well = all(run.get("same bits") and run["memory_flat"] for run in runs)
    return 0 if well and not told["left over"] else 1


if __name__ == "__main__":
    sys.exit(main())
