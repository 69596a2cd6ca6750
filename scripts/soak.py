"""Kill processes of runs at random, of every kind, for some minutes: no run may be lost, and all must end with the right weights.

Each algorithm trains on a Ray of its own for its part of the time. Whenever a run has got further, one of its processes is
killed: the driver (then it is resumed), a runner, the learner, a replay, the evaluator, any of Ray's own, what copies it to
a store, what cleans up after it. At the end each run is trained to its end undisturbed, and compared with one process.
Linux only. The last line is JSON; 0 is success.

Usage: .venv/bin/python scripts/soak.py [--minutes 60] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 400.0  # for a run to get further after a loss
COMMON = [
    "evaluation.every=5",
    "evaluation.episodes=2",
    "evaluation.final_episodes=2",
    "checkpoint.every=5",
    "stop.return_mean=null",
]
COMMON += ["cluster.runners=2", "cluster.restarts=1000000", "track.mlflow=false", "track.video=false"]
RUNS = {
    "ppo": ["ppo_cartpole", "algorithm.lr=1e-3", "rollout.shards=4", "rollout.envs_per_shard=8"],
    "a2c": ["a2c_cartpole", "algorithm.lr=1e-3"],
    "dqn": ["dqn_cartpole", "algorithm.lr=1e-3", "replay.shards=2", "replay.capacity=20000"],
    "q": ["q_taxi"],
}
ENDLESS = 10**9
STARTED = "--- another driver"
BUSY = "timed out during startup"  # Ray gives up where a busy machine takes more than some seconds; whoever is told tries again
NAMES = [  # of processes, by what stands in their command lines
    ("janitor", r" -S -E -c "),
    ("copy to a store", r"distrl\.storage"),
    ("raylet", r"raylet/raylet"),
    ("gcs", r"gcs_server"),
    ("an agent of Ray's", r"/dashboard/|log_monitor|runtime_env/agent"),
    (r"\1", r"ray::(Learner|Replay|Runner|Evaluator)"),
]


def kind(process: psutil.Process) -> str:
    """What a process of a run is; '' where that does not matter."""
    told = " ".join(process.cmdline())
    for name, pattern in NAMES:
        if found := re.search(pattern, told):
            return found[1].lower() if found.groups() else name
    return ""


class Soak:
    """One run that is disturbed."""

    def __init__(self, directory: Path, name: str, chance: random.Random) -> None:
        self.directory, self.name, self.chance = directory, name, chance
        self.run_dir = directory / name
        self.temporary = directory / "tmp"
        self.config = [*RUNS[name], *COMMON]
        self.killed: Counter[str] = Counter()
        self.last = ""  # that was killed
        self.ended_by_ray = 0  # drivers that Ray's client ended with its Ray, which it may, without a word
        self.memory: list[float] = []  # MB of all its processes, now and then
        self.begin = [*self.config, f"stop.env_steps={ENDLESS}", f"run_dir={name}", f"storage={directory}/store"]
        self.driver = self._start(*self.begin)

    def _start(self, *arguments: str) -> psutil.Popen:
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
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

    def disturb(self, until: float) -> None:
        """Until a time of the monotonic clock."""
        while time.monotonic() < until:
            self._get_further()
            found: dict[str, list[psutil.Process]] = {"driver": [self.driver]}
            total = 0.0
            for process in [self.driver, *self.driver.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_info().rss / 1e6
                    if what := kind(process):
                        found.setdefault(what, []).append(process)
            self.memory.append(total)
            what = self.chance.choice(sorted(found))
            with suppress(psutil.Error):
                self.chance.choice(found[what]).kill()
                self.killed[what] += 1
                self.last = what
            if what == "driver":
                self.driver.wait()
                self.driver = self._start("--resume", self.name)

    def _get_further(self) -> None:
        """Wait for more rows. Raises RuntimeError where the run has ended, or there are none."""
        before, start = self.rows, time.monotonic()
        more = self.chance.randint(1, 8)
        while self.rows < before + more:
            code, said = self.driver.poll(), self.tail()
            by_ray = code == 1 and self.last in ("raylet", "gcs") and "Traceback" not in said
            self.ended_by_ray += by_ray
            if by_ray or (code == 2 and BUSY in said):
                self.driver = self._start(*(["--resume", self.name] if self.run_dir.exists() else self.begin))
            if self.driver.poll() is not None:
                raise RuntimeError(
                    f"{self.name} ended with {self.driver.returncode} after {dict(self.killed)}:\n{self.tail()}"
                )
            if time.monotonic() - start > PATIENCE_S:
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
        half = len(self.memory) // 2
        largest = [round(max(part, default=0.0)) for part in (self.memory[:half], self.memory[half:])]
        return {
            "kills": dict(self.killed),
            "drivers ended by Ray": self.ended_by_ray,
            "env_steps": results[0]["env_steps"],
            "sha256": results[0]["weights_sha256"],
            "same bits": len({result["weights_sha256"] for result in results}) == 1,
            "memory_mb": largest,
            "memory_flat": half < 10 or largest[1] < 1.3 * largest[0],  # fewer say nothing: Ray may be about to start
        }

    def kill(self) -> None:
        for process in [*self.driver.children(recursive=True), self.driver] if self.driver.is_running() else []:
            with suppress(psutil.Error):
                process.kill()

    def tail(self) -> str:
        """What its newest driver said."""
        text = (self.directory / f"{self.name}.log").read_text(errors="replace")
        return text.rpartition(STARTED)[2][-3000:]


def left_over(temporary: Path) -> list[str]:
    """What is still there of runs whose temporary files were in a directory; what is ending may take a moment."""
    for _ in range(300):
        found = [path.name for path in temporary.iterdir()]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TMPDIR") == str(temporary):
                    found.append(" ".join(process.cmdline())[:80])
        if not found:
            return []
        time.sleep(0.2)
    return found


def soak(minutes: float, seed: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as directory:
        (Path(directory) / "tmp").mkdir()
        for number, name in enumerate(RUNS):
            run = Soak(Path(directory), name, random.Random(f"{seed} {name}"))
            try:
                run.disturb(time.monotonic() + 60 * minutes / len(RUNS))
                told[name] = run.end()
            except (RuntimeError, subprocess.TimeoutExpired, psutil.TimeoutExpired) as error:
                told[name] = {"error": str(error), "kills": dict(run.killed)}
            finally:
                run.kill()
            print(f"[{number + 1} of {len(RUNS)}] {name}: {json.dumps(told[name])}", file=sys.stderr, flush=True)
        told["left over"] = left_over(Path(directory) / "tmp")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of disturbance, in all")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when")
    asked = parser.parse_args()
    told = soak(asked.minutes, asked.seed)
    told["kills"] = sum(sum(run["kills"].values()) for name, run in told.items() if name in RUNS)
    print(json.dumps(told), flush=True)
    well = all(told[name].get("same bits") and told[name]["memory_flat"] for name in RUNS)
    return 0 if well and not told["left over"] else 1


if __name__ == "__main__":
    sys.exit(main())
