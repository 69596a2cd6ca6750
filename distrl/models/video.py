"""Games as videos.

Knows nothing of Ray, torch and MLflow. OpenCV and Pillow are imported where they are needed.

Videos: .webm is VP8, which browsers (and the MLflow page) play; .mp4 is MPEG-4 Part 2, which desktop players play
and browsers do not, written several times as fast; .gif plays everywhere, in fewer colours.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from distrl.envs.make import describe_env, make_env
from distrl.errors import UserError
from distrl.files import draft
from distrl.models.play import Actor, Tell, display, play_episodes
from distrl.settings import EnvSettings
from distrl.signals import held
from distrl.types import Array, EnvInfo

SMOOTH = 30.0  # frames a second, enough for people to look at
SHORTEST, EPISODES = 5.0, 3  # s of a video, and so many episodes where each is shorter
GIF_WIDTH = 480  # pixels at most
GIF_FRAMES = 300  # at most; an even number. Longer games are thinned out evenly
GIF_SAMPLE = 4096  # pixels of a frame from which its colours are chosen
GIF_TICK = 0.01  # s: the resolution of a GIF's clock
GIF_FASTEST = 0.02  # s a frame; browsers slow down what is faster


@dataclass(frozen=True)
class Recording:
    """A video and what is on it."""

    path: Path
    returns: tuple[float, ...]  # of each episode, as far as the video shows it
    lengths: tuple[int, ...]  # likewise, in steps
    frames: int  # in the file
    complete: bool  # `max_frames` cut off no episode
    blank: bool  # every frame is of one colour alone

    @property
    def warning(self) -> str | None:
        """What is wrong with it, for people."""
        if not self.blank:
            return None
        return (
            f"{self.path} shows nothing: each of its frames is of one colour. Perhaps the env draws only with another "
            "SDL_VIDEODRIVER, or only in a window: look at it with 'distrl play'."
        )


def record_video(
    actor: Actor,
    env: EnvSettings,
    out: Path,
    seed: int,
    episodes: int | None = None,
    max_frames: int = 3000,
    tell: Tell = lambda moment: None,
    first: int = 0,
    most_fps: float = math.inf,
) -> Recording:
    """Play episodes and write them as .webm, .mp4 or .gif.

    Where there is no display and SDL_VIDEODRIVER is not set, it is set to "offscreen" for this process: with "dummy" some
    envs draw nothing.

    Args:
        episodes: None: as many as make five seconds, and three at most
        first: the number of the first episode
        max_frames: playing stops after so many frames of all episodes together.
        tell: is told of every moment that is played
        most_fps: of a game with more frames a second only every second one is shown, or every third, ...

    Raises:
        UserError: the env has no pictures, or `out` cannot be written or has another suffix.
    """
    enough, episodes = (SHORTEST, EPISODES) if episodes is None else (0, episodes)
    fps = max(1, _recordable(env, out, episodes, max_frames).render_fps)
    every = math.ceil(fps / most_fps) or 1
    if not display():
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen")
    returns: list[float] = []
    lengths: list[int] = []
    shown, complete, blank = 0, True, True
    with draft(out) as path:
        sink = SINKS[out.suffix](path, fps / every)
        game = make_env(env, render_mode="rgb_array")
        try:
            for moment in play_episodes(actor, game, seed, episodes, first):
                if shown == max_frames:
                    complete = False
                    break
                if enough and moment.step == 0 and shown * every >= enough * fps:
                    break
                if moment.step == 0:
                    returns.append(0.0)
                    lengths.append(0)
                returns[-1] += moment.reward
                lengths[-1] = moment.step
                if moment.step % every == 0:
                    frame = _frame(game, env.id)
                    blank = blank and bool((frame == frame[0, 0]).all())
                    sink.add(frame)
                    shown += 1
                tell(moment)
        finally:
            game.close()
            sink.release()
        frames = sink.finish()
    return Recording(out, tuple(returns), tuple(lengths), frames, complete, blank)


def _recordable(env: EnvSettings, out: Path, episodes: int, max_frames: int) -> EnvInfo:
    """What is known of the env. Raises `UserError` where a video cannot be had."""
    if out.suffix not in SINKS:
        raise UserError(f"{str(out)!r} must end in one of {', '.join(SINKS)}; .webm is what browsers play.")
    if episodes < 1 or max_frames < 1:
        raise UserError(f"episodes and max_frames must be at least 1; they are {episodes} and {max_frames}.")
    info = describe_env(env)
    if "rgb_array" not in info.render_modes:
        modes = ", ".join(info.render_modes) or "none"
        raise UserError(f"{env.id} cannot be recorded: its render_modes ({modes}) lack 'rgb_array'.")
    return info


def _frame(game: gym.Env[Any, Any], env_id: str) -> Array:
    """A picture of the game now, uint8 [H, W, 3]."""
    try:
        with held():
            frame = game.render()
    except Exception as error:
        what = f"{type(error).__module__} {error}"
        remedy = next((told for words, told in REMEDIES.items() if words in what), "")
        raise UserError(f"{env_id} cannot be drawn: {type(error).__name__}: {error}{remedy}") from error
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8):
        what = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise UserError(f"{env_id} cannot be recorded: render() gave {what}, where uint8 [H, W, 3] is due.")
    return frame


MUJOCO = "Where there is no display, MuJoCo draws with MUJOCO_GL=osmesa, which takes 'apt install libosmesa6', or, on a GPU, MUJOCO_GL=egl."
REMEDIES = {  # by words of an error in drawing
    "OpenGL": f". {MUJOCO}",
    "glGetError": f". {MUJOCO}",
    "name 'sns'": ". MinAtar draws by seaborn: pip install seaborn matplotlib",
}


class _Sink(Protocol):
    """A file that takes frames, uint8 [H, W, 3] in RGB."""

    def add(self, frame: Array) -> None: ...

    def release(self) -> None:
        """No more frames come."""

    def finish(self) -> int:
        """Complete the file. Returns how many frames can be read from it."""


class _VideoFile:
    """A video by OpenCV, frame by frame; while one is being compressed, the game may go on to the next."""

    def __init__(self, path: Path, fps: float, codec: str) -> None:
        self.path, self.fps, self.codec = path, fps, codec
        self.writer: Any = None
        self.frames = 0
        self.beside = ThreadPoolExecutor(1)
        self.added: Future[None] | None = None

    def add(self, frame: Array) -> None:
        self._await()
        kept = frame.copy(order="K")  # the game may draw the next into the same array
        self.added = self.beside.submit(self._add, kept)

    def _await(self) -> None:
        if self.added is not None:
            self.added.result()

    def _add(self, frame: Array) -> None:
        import cv2

        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # these codecs take even sides only, and OpenCV would cut off the last line
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.writer is None:
            size = frame.shape[1], frame.shape[0]
            with _silent_stderr():  # FFmpeg calls the tag of VP8 unsupported, and writes it correctly
                self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*self.codec), self.fps, size)
            if not self.writer.isOpened():
                raise UserError(
                    f"OpenCV here cannot write {self.path.suffix} ({self.codec}). Choose .mp4, .webm or .gif."
                )
        self.writer.write(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR))
        self.frames += 1

    def release(self) -> None:
        self.beside.shutdown()
        if self.writer is not None:
            self.writer.release()

    def finish(self) -> int:
        import cv2

        self._await()
        # OpenCV says nothing when a write fails, so read the file back.
        video = cv2.VideoCapture(str(self.path))
        found = 0
        while video.grab():
            found += 1
        video.release()
        if found != self.frames:
            raise UserError(
                f"Only {found} of {self.frames} frames could be written to {str(self.path.parent)!r}. Is the disk full?"
            )
        return found


class _GifFile:
    """An animated GIF by Pillow: small pictures, evenly chosen, in one palette."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.kept: list[Array] = []
        self.seen = 0
        self.stride = 1  # one of so many frames is kept

    def add(self, frame: Array) -> None:
        import cv2

        if self.seen % self.stride == 0:
            if len(self.kept) == GIF_FRAMES:  # nobody knows how many are to come, so thin out whenever it is full
                del self.kept[1::2]
                self.stride *= 2
            height, width = frame.shape[:2]
            if width > GIF_WIDTH:
                size = GIF_WIDTH, max(1, round(height * GIF_WIDTH / width))
                frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
            self.kept.append(frame.copy())
        self.seen += 1

    def release(self) -> None:
        pass

    def finish(self) -> int:
        from PIL import Image

        step = max(1, int(np.ceil(GIF_FASTEST * self.fps / self.stride - 1e-9)))
        frames = self.kept[::step]
        # Times on the GIF's coarse clock; they are rounded so that errors do not add up.
        ticks = np.rint(np.arange(len(frames) + 1) * self.stride * step / self.fps / GIF_TICK)
        milliseconds = (np.diff(ticks) * GIF_TICK * 1000).astype(int).tolist()
        # One palette for all frames keeps the changes between them small. Each frame gives other pixels to it.
        stride = 1 + frames[0].size // 3 // GIF_SAMPLE
        pixels = np.concatenate([frame.reshape(-1, 3)[i % stride :: stride] for i, frame in enumerate(frames)])
        palette = Image.fromarray(pixels[None]).quantize(256)
        pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
        pictures[0].save(
            self.path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=True
        )
        with Image.open(self.path) as written:  # equal frames in a row have become one
            return int(getattr(written, "n_frames", 1))


SINKS: dict[str, Callable[[Path, float], _Sink]] = {
    ".webm": lambda path, fps: _VideoFile(path, fps, "VP80"),
    ".mp4": lambda path, fps: _VideoFile(path, fps, "mp4v"),
    ".gif": _GifFile,
}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep C libraries from writing to the terminal."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        try:
            os.dup2(nothing.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
