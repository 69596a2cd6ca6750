"""Videos, and the window to watch a policy play."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from distrl.errors import UserError
from distrl.layouts import discrete_layout
from distrl.models.play import by_policy, play
from distrl.models.video import Recording, record_video
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays

CARTPOLE = EnvSettings(id="CartPole-v1")


class Scripted:
    """A policy from a function of the observation; samples differ from the best action."""

    def __init__(self, best: Callable[[Array], Any], sampled: Callable[[Array, Array], Any] | None = None) -> None:
        self.best, self.sampled = best, sampled
        self.obs_layout: Any = SimpleNamespace(pack=lambda obs, mask: np.asarray(obs), agents=(), rows=1)
        self.action_layout = discrete_layout(2)

    def load(self, vector: Array) -> None: ...

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.random((steps, copies))

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        assert self.sampled is not None
        return np.array([self.sampled(o, n) for o, n in zip(obs, noise, strict=True)]), {}

    def greedy(self, obs: Array) -> Array:
        return np.array([self.best(o) for o in obs])

    def arrays(self) -> Arrays:
        return {}

    def describe(self) -> dict[str, Any]:
        return {}


LEFT = Scripted(lambda obs: 0)
BALANCE = Scripted(lambda obs: int(obs[2] + 0.3 * obs[3] > 0), lambda obs, noise: int(noise > 0.5))


def film(policy: Scripted, env: EnvSettings, out: Path, seed: int, greedy: bool = True, **options: Any) -> Recording:
    options = {"episodes": 1} | options
    return record_video(by_policy(policy, seed, greedy), env, out, seed, **options)


class Pictures(gym.Env[Array, int]):
    """Lasts `length` steps; frame t is a picture of brightness t mod 200, with a white line at its right and bottom."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 50}
    observation_space: gym.Space[Any] = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space: gym.Space[Any] = gym.spaces.Discrete(2)

    def __init__(self, length: int = 10, size: Sequence[int] = (120, 80), render_mode: str | None = None) -> None:
        self.length, self.size, self.render_mode = length, size, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 0.5, self.t == self.length, False, {}

    def render(self) -> Any:
        width, height = self.size
        picture = np.full((height, width, 3), self.t % 200, np.uint8)
        picture[-1] = picture[:, -1] = 255
        return picture


class OneCanvas(Pictures):
    """Draws every picture into one array, in turns black and white."""

    canvas: Array | None = None

    def render(self) -> Any:
        if self.canvas is None:
            self.canvas = super().render()
        self.canvas[:] = 255 * (self.t % 2)
        return self.canvas


class Blind(Pictures):
    metadata = {"render_modes": ["ansi"]}


class Broken(Pictures):
    def render(self) -> Any:
        raise KeyError("sprite")


@pytest.fixture(autouse=True, scope="module")
def _envs() -> Iterator[None]:
    classes: dict[str, Any] = {"VideoPictures-v0": Pictures, "VideoBlind-v0": Blind, "VideoBroken-v0": Broken}
    classes |= {"VideoOneCanvas-v0": OneCanvas, "VideoWindow-v0": Window}
    for env_id, entry_point in classes.items():
        gym.register(env_id, entry_point)
    yield
    for env_id in classes:
        del gym.registry[env_id]


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the test does
        monkeypatch.delenv(name)


def pictures(**kwargs: Any) -> EnvSettings:
    return EnvSettings(id="VideoPictures-v0", kwargs=kwargs)


def frames_of(path: Path) -> list[Array]:
    if path.suffix == ".gif":
        with Image.open(path) as image:
            return [np.asarray((image.seek(i), image.convert("RGB"))[1]) for i in range(image.n_frames)]  # type: ignore[attr-defined,func-returns-value]
    video, frames = cv2.VideoCapture(str(path)), []
    while (got := video.read())[0]:
        frames.append(got[1])
    return frames


# --- videos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".gif"])
def test_video_shows_every_frame(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "videos" / f"cart{suffix}"
    recording = film(LEFT, CARTPOLE, out, seed=3, episodes=2)
    assert recording.path == out
    assert recording.complete
    assert recording.returns == tuple(map(float, recording.lengths))
    frames = frames_of(out)
    assert recording.frames == len(frames)
    if suffix != ".gif":  # there equal frames in a row are one
        assert len(frames) == sum(recording.lengths) + 2  # and the first one of each episode
    assert frames[0].shape == ((320, 480, 3) if suffix == ".gif" else (400, 600, 3))
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 100  # the cart has moved
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_video_keeps_colours_order_and_odd_borders(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"film{suffix}"
    assert film(LEFT, pictures(length=150, size=[121, 81]), out, seed=0).frames == 151
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 50
    frames = frames_of(out)
    assert frames[0].shape == (82, 122, 3)
    brightness = [float(frame[:60, :60].mean()) for frame in frames]
    assert np.abs(np.array(brightness) - np.arange(151)).max() < 8  # lossy
    assert frames[0][:, -2:].mean() > 200


def test_a_picture_is_filmed_as_it_was_however_soon_the_game_draws_over_it(tmp_path: Path) -> None:
    out = tmp_path / "film.webm"
    film(LEFT, EnvSettings(id="VideoOneCanvas-v0", kwargs={"length": 60, "size": [1200, 800]}), out, seed=0)
    brightness = np.array([float(frame.mean()) for frame in frames_of(out)])
    assert np.abs(brightness - 255 * (np.arange(61) % 2)).max() < 30  # lossy


def test_a_fast_game_may_be_shown_by_every_other_frame(tmp_path: Path) -> None:
    out = tmp_path / "film.mp4"
    recording = film(LEFT, pictures(length=75), out, seed=0, episodes=2, most_fps=30)
    assert (recording.frames, recording.lengths, recording.returns) == (76, (75, 75), (37.5, 37.5))
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 25
    brightness = np.array([float(frame[:60, :60].mean()) for frame in frames_of(out)])
    assert np.abs(brightness - np.tile(np.arange(0, 75, 2), 2)).max() < 8  # lossy
    assert film(LEFT, pictures(length=75), out, seed=0, most_fps=60).frames == 76


def test_gif_is_small_and_lasts_as_long_as_the_game(tmp_path: Path) -> None:
    out = tmp_path / "film.gif"
    recording = film(LEFT, pictures(length=1000, size=[1000, 50]), out, seed=0)
    assert 150 <= recording.frames <= 300
    with Image.open(out) as image:
        assert image.size == (480, 24)
        milliseconds = 0
        for i in range(recording.frames):
            image.seek(i)
            assert image.info["duration"] >= 20
            milliseconds += image.info["duration"]
    assert milliseconds == pytest.approx(1001 / 50 * 1000, abs=90)
    shown = [int(frame[5, 5, 0]) for frame in frames_of(out)]
    assert np.abs(np.diff(shown) - 4).max() <= 2 or set(np.diff(shown)) <= {4, 4 - 200}  # every fourth, evenly


def test_video_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def sampled(seed: int) -> tuple[float, ...]:
        return film(BALANCE, CARTPOLE, tmp_path / "a.mp4", seed, episodes=2, greedy=False).returns

    first = sampled(1)
    assert sampled(1) == first
    assert sampled(2) != first
    assert max(first) < 200  # coin flips do not balance


def test_greedy_video_balances(tmp_path: Path) -> None:
    recording = film(BALANCE, CARTPOLE, tmp_path / "a.mp4", seed=1, max_frames=60)
    assert recording.returns == (59.0,)
    assert not recording.complete


def test_video_ends_at_max_frames(tmp_path: Path) -> None:
    recording = film(LEFT, pictures(length=10), tmp_path / "a.mp4", seed=0, episodes=3, max_frames=15)
    assert (recording.frames, recording.lengths, recording.returns) == (15, (10, 3), (5.0, 1.5))
    assert not recording.complete


@pytest.mark.parametrize(
    ("env_id", "out", "message"),
    [
        ("VideoBlind-v0", "a.webm", "render_modes"),
        ("VideoBroken-v0", "a.webm", "KeyError: 'sprite'"),
        ("CartPole-v1", "a.avi", r"\.webm"),
        ("CartPole-v1", "file/a.webm", "cannot be written"),
        ("CartPoel-v1", "a.webm", "Did you mean"),
    ],
)
def test_what_cannot_be_recorded_is_told(tmp_path: Path, env_id: str, out: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        film(LEFT, EnvSettings(id=env_id), tmp_path / out, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".gif"])
def test_interrupted_recording_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    def interrupted(obs: Array) -> int:
        raise KeyboardInterrupt

    out = tmp_path / f"a{suffix}"
    out.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        film(Scripted(interrupted), CARTPOLE, out, seed=0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {out.name: b"old"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
@pytest.mark.parametrize("chosen", [None, "offscreen"])
def test_recording_needs_no_display(
    tmp_path: Path, headless: None, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    import os

    if chosen is not None:
        monkeypatch.setenv("SDL_VIDEODRIVER", chosen)
    film(LEFT, pictures(), tmp_path / "a.mp4", seed=0)
    assert os.environ["SDL_VIDEODRIVER"] == (chosen or "offscreen")


def test_a_video_is_five_seconds_long_or_three_episodes(tmp_path: Path) -> None:
    """At 50 frames a second."""
    lengths = {1000: (1000,), 150: (150, 150), 10: (10, 10, 10)}
    for length, played in lengths.items():
        recording = film(LEFT, pictures(length=length), tmp_path / "a.mp4", seed=0, episodes=None)
        assert recording.lengths == played and recording.complete


def test_episodes_of_a_number_are_the_same_alone(tmp_path: Path) -> None:
    together = film(BALANCE, CARTPOLE, tmp_path / "a.mp4", seed=1, episodes=3, greedy=False)
    alone = film(BALANCE, CARTPOLE, tmp_path / "b.mp4", seed=1, first=2, greedy=False)
    assert (alone.returns, alone.lengths) == (together.returns[2:], together.lengths[2:])


class Window(Pictures):
    """As highway-env: it draws nothing where SDL is told to be a dummy."""

    def render(self) -> Any:
        import os

        return np.zeros((80, 120, 3), np.uint8) if os.environ.get("SDL_VIDEODRIVER") == "dummy" else super().render()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_no_video_is_black_by_our_doing_and_one_that_is_is_told(
    tmp_path: Path, headless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = EnvSettings(id="VideoWindow-v0")
    assert film(LEFT, env, tmp_path / "a.mp4", seed=0).warning is None
    assert frames_of(tmp_path / "a.mp4")[0].max() > 200
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert "shows nothing" in (film(LEFT, env, tmp_path / "a.mp4", seed=0).warning or "")


def test_videos_write_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    film(LEFT, pictures(), tmp_path / "a.webm", seed=0)
    assert capfd.readouterr() == ("", "")


# --- the window ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
class TestPlay:
    @pytest.fixture(autouse=True)
    def _void(self, headless: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A display for the asking, drawn into the void."""
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def test_plays_what_a_recording_shows(self, tmp_path: Path) -> None:
        recorded = film(LEFT, CARTPOLE, tmp_path / "a.mp4", seed=5, episodes=2)
        assert play(by_policy(LEFT, 5), CARTPOLE, seed=5, episodes=2) == recorded.returns

    def test_closing_the_window_ends_it(self) -> None:
        import pygame

        calls = 0

        def close(obs: Array) -> int:
            nonlocal calls
            calls += 1
            if calls == 3:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            return 0

        assert play(by_policy(Scripted(close), 5), CARTPOLE, seed=5, episodes=1000) == ()
        assert calls == 3
        assert not pygame.display.get_init()

    def test_ctrl_c_ends_it(self) -> None:
        calls = 0

        def interrupt(obs: Array) -> int:
            nonlocal calls
            calls += 1
            if calls > 15:
                raise KeyboardInterrupt
            return 0

        assert len(play(by_policy(Scripted(interrupt), 5), CARTPOLE, seed=5, episodes=1000)) == 1

    def test_without_display_tells_to_record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY")
        with pytest.raises(UserError, match="distrl record"):
            play(by_policy(LEFT, 5), CARTPOLE, seed=5)

    def test_display_that_leads_nowhere_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":987")
        monkeypatch.delenv("SDL_VIDEODRIVER")
        with pytest.raises(UserError, match="distrl record"):
            play(by_policy(LEFT, 5), CARTPOLE, seed=5)

    def test_env_without_pictures_is_told(self) -> None:
        with pytest.raises(UserError, match="render_modes"):
            play(by_policy(LEFT, 5), EnvSettings(id="VideoBlind-v0"), seed=5)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("an OpenGL platform library has not been loaded", "MUJOCO_GL=osmesa"),
        ("'NoneType' object has no attribute 'glGetError'", "MUJOCO_GL=osmesa"),
        ("name 'sns' is not defined", "pip install seaborn"),
    ],
)
def test_what_drawing_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, remedy: str) -> None:
    def fail(self: object) -> Array:
        raise AttributeError(words)

    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.render", fail)
    with pytest.raises(UserError, match=rf"CartPole-v1 cannot be drawn.*{remedy}"):
        film(LEFT, CARTPOLE, tmp_path / "a.gif", seed=0)
