"""`distrl env ID --watch`: random steps that are seen, and told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from processes import distrl

from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.tools.watch import watch
from distrl.types import Array

CARTPOLE = EnvSettings(id="CartPole-v1")
STEP = re.compile(r"step +(\d+)  action (.+)  reward (.+)")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")


class Narrow(gym.Env[Array, int]):
    """7 steps, of which each allows one action of 5, as the info says."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space: gym.Space[Any] = gym.spaces.Discrete(5)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.t = render_mode, 0

    def _seen(self) -> tuple[Array, dict[str, Any]]:
        return np.zeros(1, np.float32), {"action_mask": np.arange(5) == 3 * self.t % 5}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self.t = 0
        return self._seen()

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        obs, info = self._seen()
        return obs, 0.25, False, self.t == 7, info

    def render(self) -> Any:
        return np.zeros((16, 16, 3), np.uint8)


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the test does
        monkeypatch.delenv(name)
    gym.register("toys/Narrow-v0", Narrow)
    yield
    del gym.registry["toys/Narrow-v0"]


def steps_of(lines: list[str]) -> list[tuple[int, str, str]]:
    return [(int(found[1]), found[2], found[3]) for line in lines if (found := STEP.fullmatch(line))]


def test_without_a_display_it_records_and_tells(tmp_path: Path) -> None:
    """What is told is what the env does, by its own account."""
    done = distrl("env", "CartPole-v1", "--watch", "--episodes", "2", "--seed", "4", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    env, told = gym.make("CartPole-v1"), iter(lines)
    frames = 0
    for episode in range(2):
        assert next(told) == f"episode {episode + 1}"
        env.reset(seed=derive(4, "play episode", episode))
        number, ended = 0, False
        while not ended:
            [(step, action, reward)] = steps_of([next(told)])
            _, paid, ended, _, _ = env.step(int(action))
            number += 1
            assert (step, float(reward)) == (number, paid)
        assert next(told) == f"terminated after {number} steps, return {number}"
        frames += number + 1
    assert list(told) == []
    assert last == f"cartpole-v1-random.webm: {frames} frames"
    video, shown = cv2.VideoCapture(str(tmp_path / "cartpole-v1-random.webm")), 0
    while video.read()[0]:
        shown += 1
    assert shown == frames


def test_only_what_a_mask_allows_is_done(tmp_path: Path) -> None:
    lines: list[str] = []
    recording = watch(EnvSettings(id="toys/Narrow-v0"), 1, 2, tmp_path / "a.gif", lines.append)
    assert [action for _, action, _ in steps_of(lines)] == 2 * [str(3 * t % 5) for t in range(7)]
    assert lines[-1] == "truncated after 7 steps, return 1.75"
    assert recording is not None and recording.returns == (1.75, 1.75)


def test_actions_of_any_kind_are_told_on_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    watch(EnvSettings(id="Pendulum-v1", max_episode_steps=3), 1, 1, tmp_path / "a.gif", lines.append)
    assert len(steps_of(lines)) == 3
    assert all(re.fullmatch(r"\[-?\d\.\d*\]", action) for _, action, _ in steps_of(lines))


def test_in_a_window_the_same_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    watch(CARTPOLE, 2, 1, tmp_path / "a.gif", recorded.append)
    monkeypatch.setenv("DISPLAY", ":0")  # and what is drawn there goes into the void
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    played: list[str] = []
    assert watch(CARTPOLE, 2, 1, None, played.append) is None
    assert played == recorded
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize(("display", "code"), [(":0", 0), (None, 130)], ids=["window", "video"])
def test_ctrl_c_ends_it_cleanly(display: str | None, code: int, tmp_path: Path) -> None:
    """In a window, whose frames take their time, the game ends; a video that is not whole is not kept."""
    env = os.environ | ({} if display is None else {"DISPLAY": display, "SDL_VIDEODRIVER": "dummy"})
    arguments = ["-m", "distrl", "env", "LunarLander-v3", "--watch", "--episodes", "1000"]
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(10):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == ""
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_sense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--out", "a.webm"], ["--episodes", "2"]):
        done = distrl("env", "CartPole-v1", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and "--watch" in done.stderr
    done = distrl("env", "CartPole-v1", "--watch", "--out", "a.avi", cwd=tmp_path)
    assert done.returncode == 2 and ".webm" in done.stderr
    monkeypatch.setenv("DISPLAY", ":987")
    done = distrl("env", "CartPole-v1", "--watch", cwd=tmp_path)
    assert done.returncode == 2 and "--out FILE.webm" in done.stderr
