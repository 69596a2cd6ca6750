"""What asks a run to end, at any moment of it; a run on Ray that is killed or told to end is in test_cli.py."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from processes import SMALL, family, gone, result_of, start, told_by, wait_for_rows, write

from distrl.models.play import play_episodes
from distrl.signals import held

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def listens(process: psutil.Popen) -> bool:
    """Whether the process has a handler for SIGTERM."""
    line = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(line, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_run_that_has_not_begun_ends_as_if_it_had_never_been(number: signal.Signals, tmp_path: Path) -> None:
    """From the moment on at which Python has read the first lines of the command."""
    process = start(tmp_path, write(tmp_path, SMALL), "--local")
    while not listens(process):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert told_by(process) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_ray_that_is_just_starting_ends_too(temporary: Path, tmp_path: Path) -> None:
    process = start(tmp_path, write(tmp_path, SMALL))
    while not any("gcs_server" in p.name() for p in family(process)):
        assert process.poll() is None
        time.sleep(0.02)
    members = family(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert told_by(process) == ""
    assert gone(members, 10)
    assert not [*temporary.glob("distrl-*")]
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_closed_terminal_ends_a_run_on_ray_with_a_checkpoint(tmp_path: Path) -> None:
    """The system tells all processes that began there, and whoever writes to the terminal then gets an error."""
    controller, terminal = os.openpty()
    run_dir = tmp_path / "run"
    process = start(
        tmp_path,
        write(tmp_path, SMALL),
        f"run_dir={run_dir}",
        "stop.env_steps=10000000",
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    wait_for_rows(run_dir, 5, process)
    os.close(controller)
    assert process.wait(60) == 130
    assert result_of(run_dir)["status"] == "interrupted"
    rows = (run_dir / "metrics.jsonl").read_text().count("\n")
    assert max(int(p.name) for p in (run_dir / "checkpoints").iterdir()) == rows


def test_nohup_still_means_what_it_says(tmp_path: Path) -> None:
    code = "from distrl import signals; import os, signal\nwith signals.handled(signals.interrupt): os.kill(os.getpid(), signal.SIGHUP); print('on')"
    done = subprocess.run(["nohup", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "on\n", done.stderr


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)], ids=lambda v: str(v)
)
def test_only_a_second_ctrl_c_leaves_at_once(second: signal.Signals, code: int) -> None:
    """Schedulers and closed terminals may repeat themselves."""
    script = f"""
import os, signal
from distrl import signals
request = signals.Request()
with signals.handled(request):
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.reason == "interrupted"
    os.kill(os.getpid(), {int(second)})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Ending the run") == 1


class _CtrlC:
    """Where Python drops what a signal raises."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):  # by the end of which Python has called the handler
            pass


class _Asked(gym.Env[np.ndarray, int]):
    """Ctrl-C comes in its third step."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)
    steps = 0

    def reset(self, **_: Any) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        if self.steps == 3:
            _CtrlC()
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_ctrl_c_in_the_code_of_an_env_ends_a_game_after_the_step(capfd: pytest.CaptureFixture[str]) -> None:
    game = play_episodes(lambda episode: lambda obs, info: 0, _Asked(), 1, 1)
    assert [next(game).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        next(game)
    assert "ignored" not in capfd.readouterr().err


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), held():
        _ctrl_c_comes_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _ctrl_c_comes_twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("The second one was waited for.")


def test_a_process_ends_without_looking_through_all_that_it_imported() -> None:
    """Behind torch and Ray that takes Python a second and more; its own calls at the end are made as ever."""
    code = """
import atexit, gc, sys
from distrl.signals import exit_with
ring = []
ring.append(ring)
atexit.register(lambda: print("at the end", any(ring is left for left in gc.get_objects())))
exit_with(3)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "at the end False\n")
