"""`distrl verify`: is it true here that the same run gives the same weights? Real runs, real kills."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from distrl.errors import UserError
from distrl.runs.plan import plan_run
from distrl.settings import Config


@dataclass(frozen=True)
class Trial:
    """One way to do the same run. `kills`: what is killed (an actor's class, or 'driver') when so many rows are there."""

    name: str
    arguments: tuple[str, ...]
    kills: tuple[tuple[float, str], ...] = ()  # (share of the run's iterations, victim)


TRIALS = (
    Trial("in one process", ("--local",)),
    Trial("Ray, 1 runner", ("cluster.runners=1",)),
    Trial("Ray, 2 runners", ("cluster.runners=2",)),
    Trial("Ray, 3 runners", ("cluster.runners=3",)),
    Trial("a runner killed twice", ("cluster.runners=2",), ((0.2, "Runner"), (0.6, "Runner"))),
    Trial("the learner killed", ("cluster.runners=2",), ((0.5, "Learner"),)),
    Trial("the driver killed, resumed", ("cluster.runners=2",), ((0.4, "driver"),)),
)
REPLAY_TRIAL = Trial("a replay killed", ("cluster.runners=2",), ((0.5, "Replay"),))


@dataclass(frozen=True)
class Verdict:
    trial: Trial
    weights_sha256: str
    restarts: int
    seconds: float


def verify(config: Config, trials: Sequence[Trial] | None = None) -> Iterator[Verdict]:
    """Do the run in each of these ways (None: all), one after the other. Raises `UserError` where a run fails."""
    iterations = config.iterations
    if iterations is None or config.stop.return_mean is not None or config.stop.seconds is not None:
        raise UserError(
            "A run that is to be repeated must end by stop.env_steps alone. Set stop.return_mean=null and the like."
        )
    if config.schedule.kind == "async":
        raise UserError("With schedule.kind=async a run cannot be repeated bit for bit. Set schedule.kind=lockstep.")
    plan_run(config)
    with tempfile.TemporaryDirectory(prefix="verify-") as directory:
        for number, trial in enumerate(trials or (TRIALS if config.replay is None else (*TRIALS, REPLAY_TRIAL))):
            run_dir = Path(directory) / str(number)
            file = Path(directory) / f"{number}.yaml"
            file.write_text(config.model_copy(update={"run_dir": str(run_dir)}).to_yaml(), encoding="utf-8")
            start = time.monotonic()
            # On Ray from the first step on: there must be something to kill.
            overrides = ["cluster.start=wait", "track.mlflow=false", "track.video=false"]
            overrides += [f"checkpoint.every={max(1, iterations // 10)}"]
            _train(run_dir, [str(file), *overrides, *trial.arguments], trial.kills, iterations)
            result: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
            yield Verdict(trial, result["weights_sha256"], result["restarts"], time.monotonic() - start)


def _train(run_dir: Path, arguments: list[str], kills: tuple[tuple[float, str], ...], iterations: int) -> None:
    command = [sys.executable, "-m", "distrl", "train", "--quiet"]
    process = psutil.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = False
    for share, victim in kills:
        while process.poll() is None and _rows(run_dir) < share * iterations:
            time.sleep(0.01)
        if victim == "driver":
            killed = process.poll() is None
            process.kill()
        elif process.poll() is None:
            _kill_actor(process, victim)
    _, errors = process.communicate()
    if killed:
        _train(run_dir, ["--resume", str(run_dir)], (), iterations)
    elif process.returncode:
        raise UserError(f"the run {' '.join(arguments)} failed: {errors.strip()}")


def _rows(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _kill_actor(driver: psutil.Popen, name: str) -> None:
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                process.send_signal(signal.SIGKILL)
                return
    raise UserError(f"there was no {name} to kill; is the run too short for this?")
