"""A Ray that dies under a living driver, and what is left when all who would clean up are killed."""

from __future__ import annotations

import json
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import DQN, Recorder, config_of
from processes import SMALL, distrl, family, gone, result_of, start, told_by, wait_for_rows, write

from distrl.acting.make import initial_weights, make_policy
from distrl.envs.make import describe_env
from distrl.errors import ExecutionLost, UserError
from distrl.execution import Execution
from distrl.execution.local import Done, LocalExecution, LocalWorker
from distrl.execution.own_ray import patient
from distrl.execution.resources import Resources, Seat
from distrl.models.store import list_checkpoints, read_model, weights_sha256
from distrl.training.job import Job
from distrl.training.trainer import make_trainer


class Dying(LocalExecution):
    """Is gone, with all that it held, after so many calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def submit(self, worker: LocalWorker, method: str, *args: Any) -> Done:
        self.left -= 1
        return super().submit(worker, method, *args)

    def get(self, future: Done, timeout: float | None = None) -> Any:
        if self.left <= 0:
            raise ExecutionLost("Ray died (the test ended it)")
        return super().get(future)


def no_other() -> Execution:
    raise UserError("No room.")


@pytest.mark.parametrize(
    ("again", "told"),
    [(no_other, "one process, as there is no other Ray (No room.)"), (lambda: Dying(60), "another Ray")],
    ids=["alone", "another"],
)
def test_another_execution_goes_on_to_the_same_bits(again: Callable[[], Execution], told: str, tmp_path: Path) -> None:
    config = config_of(DQN)
    info = describe_env(config.env)
    policy = make_policy(config, info)

    def trained(name: str, execution: Execution) -> tuple[Any, ...]:
        run_dir, observer = tmp_path / name, Recorder()
        job = Job(config, policy, initial_weights(config, policy), {}, info.reward_threshold, run_dir, None)
        trainer = make_trainer(job, execution, Resources((Seat(), Seat())), observer, lambda: None, again=again)
        trainer.run()
        sha256 = weights_sha256(read_model(list_checkpoints(run_dir)[-1])[0])
        return observer.messages, sha256, trainer.evaluations.final, trainer.progress.recent_returns

    _, *whole = trained("whole", LocalExecution())
    messages, *found = trained("dying", Dying(100))
    assert "Ray died (the test ended it); going back to iteration" in messages[0]
    assert messages[1] == f"the run goes on in {told}"
    assert found == whole


# Its checkpoints, weights and batches are too large for Ray to send: they lie in the object store, which dies with a raylet.
LARGE = {
    **SMALL,
    "algorithm": {**DQN["algorithm"], "hidden": [256, 256]},
    "replay": {**DQN["replay"], "capacity": 20_000, "samples_per_insert": 1},
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("victim", "base"), [("gcs_server", SMALL), ("raylet", SMALL), ("raylet", LARGE)])
def test_a_run_outlives_its_ray(victim: str, base: dict[str, Any], temporary: Path, tmp_path: Path) -> None:
    run_dir, whole, config = tmp_path / "run", tmp_path / "whole", write(tmp_path, base)
    steps = "stop.env_steps=25600"
    process = start(tmp_path, config, f"run_dir={run_dir}", steps, "checkpoint.every=10")
    wait_for_rows(run_dir, 25, process)  # and checkpoints: what they were made of has been seen
    [part] = [p for p in family(process) if p.name().startswith(victim)]
    members = family(process)
    part.kill()
    code, told = process.wait(200), told_by(process).splitlines()
    if base is LARGE and code == 1 and not told:
        # Ray's client ends whoever is in the middle of a call to the object store that dies, and cannot be asked not to.
        assert distrl("train", "--resume", str(run_dir), "-q", cwd=tmp_path).returncode == 0
    else:
        assert code == 0, told
        assert told[0].startswith(f"warning: Ray died (its {victim} is gone); going back to "), told
        assert told[1:] == ["warning: the run goes on in another Ray"]
    assert gone(members, 10)
    assert not [*temporary.glob("distrl-*")]
    assert distrl("train", config, f"run_dir={whole}", steps, "--local", "-q", cwd=tmp_path).returncode == 0
    assert result_of(run_dir)["weights_sha256"] == result_of(whole)["weights_sha256"]
    assert result_of(run_dir)["evaluation"] == result_of(whole)["evaluation"]
    iterations = [json.loads(row)["iteration"] for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert iterations == list(range(100 + 2))


@pytest.mark.timeout(300)
def test_so_does_one_that_was_left_behind(temporary: Path, tmp_path: Path) -> None:
    """As by nohup: the parent has ended, and Ray's client would take this process for one that has no raylet to wait for."""
    told, run_dir, config = tmp_path / "told", tmp_path / "run", write(tmp_path, SMALL)
    command = [sys.executable, "-m", "distrl", "train", config, f"run_dir={run_dir}", "stop.env_steps=25600", "-q"]
    behind = f"{shlex.join(command)} > /dev/null 2> {told} & echo $!"
    left = subprocess.run(["sh", "-c", behind], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    process, rows = psutil.Process(int(left.stdout)), run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not rows.exists() or rows.read_text().count("\n") < 25:
        assert process.is_running() and time.monotonic() < deadline, told.read_text()
        time.sleep(0.05)
    [raylet] = [p for p in process.children(recursive=True) if p.name() == "raylet"]
    raylet.kill()
    process.wait(200)
    assert "warning: the run goes on in another Ray" in told.read_text()
    assert result_of(run_dir)["status"] == "finished"


def janitor_of(process: psutil.Popen) -> psutil.Process:
    [janitor] = [p for p in family(process) if "shutil.rmtree(directory" in " ".join(p.cmdline())]
    return janitor


def test_a_janitor_that_is_killed_is_replaced(temporary: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(tmp_path, write(tmp_path, SMALL), f"run_dir={run_dir}", "stop.env_steps=10000000")
    wait_for_rows(run_dir, 5, process)
    janitor_of(process).kill()
    wait_for_rows(run_dir, (run_dir / "metrics.jsonl").read_text().count("\n") + 10, process)
    members = family(process)
    process.kill()
    assert gone(members, 30)
    assert not [*temporary.glob("distrl-*")]


def test_what_driver_and_janitor_leave_behind_is_gone_with_the_next_run(temporary: Path, tmp_path: Path) -> None:
    config = write(tmp_path, SMALL)
    first = start(tmp_path, config, "run_dir=first", "stop.env_steps=10000000")
    wait_for_rows(tmp_path / "first", 5, first)
    members, janitor = family(first), janitor_of(first)
    first.suspend()  # so that it cannot replace its janitor
    janitor.kill()
    first.send_signal(signal.SIGKILL)
    gone(members, 10)
    [left] = temporary.glob("distrl-*")
    assert distrl("train", config, "run_dir=second", "stop.env_steps=256", "-q", cwd=tmp_path).returncode == 0
    assert not left.exists()
    assert not [*temporary.glob("distrl-*")]
    assert gone(members, 10)


AS_ON_MACOS = """
import time
from distrl.execution import own_ray
own_ray._JANITOR = own_ray._JANITOR.replace("/proc/self", "/nowhere")
from ray._private import utils
utils.detect_fate_sharing_support = lambda: False
connection = own_ray.RayConnection("local", 2**27)
connection.wait()
import ray
print(connection.directory, ray.get(ray.remote(lambda: 1).remote()), flush=True)
time.sleep(600)
"""


def test_as_on_macos_whose_temporary_directory_has_a_long_name_and_which_has_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / "var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T"
    long.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(long))
    command = [sys.executable, "-c", AS_ON_MACOS]
    for _ in range(5):  # Ray gives up after 30 s in which it could not start, which a busy machine may need
        process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if line := process.stdout.readline():
            break
        said = process.communicate()[1]
        assert "timed out" in said, said
    directory, one = line.split()
    assert one == "1" and Path(directory).is_dir() and stat.S_IMODE(Path(directory).stat().st_mode) == 0o700
    members = family(process)
    assert len(members) > 3
    process.kill()
    process.communicate()
    assert gone(members, 60)
    assert not Path(directory).exists()


def test_a_ray_that_is_long_in_coming_is_waited_for_unless_it_is_dead() -> None:
    calls: list[int] = []

    def late(node: int) -> int:
        calls.append(node)
        if len(calls) < 3:
            raise RuntimeError("not there yet")
        return node

    get = patient(patient(late, 60, lambda: False), 60, lambda: False)
    assert get(7) == 7 and calls == [7, 7, 7]
    calls.clear()
    with pytest.raises(RuntimeError, match="not there yet"):
        patient(get, 60, lambda: True)(7)
    assert calls == [7]
