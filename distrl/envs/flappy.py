"""Flappy Bird from pixels: the frames of `flappy-bird-gymnasium`, bit for bit, at many times its speed.

A frame is what the package renders (`render_mode="rgb_array"`, `use_lidar=False`), turned gray by
`cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)` and shrunk by `cv2.resize(gray, (84, 84),
interpolation=cv2.INTER_AREA)`. Two facts make the short cut exact:

* The sprites are opaque or absent, never translucent, so drawing them in gray equals graying the drawing.
* 512/84 = 128/21 and 288/84 = 24/7: blocks of 128x24 screen pixels become 21x7 frame pixels that look
  at nothing else. So blocks can be shrunk one by one, and those that show only scenery (sky, pipes, ground)
  can be kept, as there are few such views. Only the blocks around the bird are drawn anew each time.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import registry
from numpy.typing import NDArray

# pygame, OpenCV and the game are imported when the first env is built.

STACK, SIDE = 4, 84

_HEIGHT, _WIDTH = 512, 288  # screen, pixels
_BLOCK_H, _BLOCK_W = 128, 24  # smallest piece of screen that maps to whole frame pixels...
_CELL_H, _CELL_W = 21, 7  # ...namely to these
_GROUND_Y = int(_HEIGHT * 0.79)
_PIPE_W = 52
_MAX_ROTATION = 20  # degrees; the package draws no steeper climb
_KEPT_VIEWS = 10_000  # 2 kB each; some 8,900 occur with one pipe_gap, a tenth of them in short games

_COLOURS = {
    "background": ("day", "night", None),
    "bird_color": ("yellow", "blue", "red"),
    "pipe_color": ("green", "red"),
}

Gray = NDArray[np.uint8]
Sprite = tuple[Gray, NDArray[np.bool_]]  # gray values and opacity, both [height, width]
Box = tuple[int, int, int, int]  # top, bottom, left, right of whole blocks; screen pixels
Pipe = tuple[int, int, int]  # left edge, top of the upper pipe, top of the lower pipe; pixels


def check_package() -> None:
    """Ensure that `FlappyBird-v0` is the game of `flappy-bird-gymnasium`, importing that package if need be.

    Raises:
        ValueError: the unrelated package `flappy-bird-env` holds the id.
        ImportError: `flappy-bird-gymnasium` is not installed.
    """
    remedy = "`pip uninstall flappy-bird-env; pip install flappy-bird-gymnasium==0.4.0`"
    if spec := registry.get("FlappyBird-v0"):
        entry = spec.entry_point
        owner = entry if isinstance(entry, str) else getattr(entry, "__module__", repr(entry))
        if not owner.startswith("flappy_bird_gymnasium"):
            raise ValueError(
                f"FlappyBird-v0 is registered by {owner!r}, probably of the package flappy-bird-env, another "
                f"game than that of flappy-bird-gymnasium, which distrl plays. Do not import it, or {remedy}"
            )
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # else each worker process prints a greeting
    try:
        import flappy_bird_gymnasium  # noqa: F401  (registers FlappyBird-v0)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Flappy Bird needs the package flappy-bird-gymnasium, not flappy-bird-env: {error}. Try {remedy}"
        ) from error
    except NotImplementedError as error:  # pygame's way to say it, where the system lacks a library
        raise ImportError(
            f"Flappy Bird needs pygame's sounds, which cannot be loaded here: {error}. Install the library that is "
            "missing; on Debian and Ubuntu libgthread-2.0 comes with `apt install libglib2.0-0`."
        ) from error


class FlappyBirdPixels(gymnasium.Env[Gray, np.int64]):
    """Flappy Bird seen through the last four 84x84 gray frames.

    Observation: uint8 [4, 84, 84], newest frame last; after `reset`, the first frame four times. Every array
    is the caller's to keep. Pixels depend on the episode's seed and actions alone. Actions: 0 glides, 1
    flaps. Rewards, terminated, truncated and `info["score"]` (pipes passed) are the package's own. OpenCV
    shrinks pieces this small in the calling thread, so `cv2.setNumThreads` neither matters nor is called.

    Args:
        render_mode: None, "rgb_array" (`render` returns the package's picture, uint8 [512, 288, 3]) or
            "human" (the package's window, at its 30 frames/s). Observations are the same in all three.
        pipe_gap: opening between upper and lower pipe, pixels.
        score_limit: pipes after which the package truncates the episode; None for no limit.
        background: "day", "night" or None (plain gray).
        bird_color: "yellow", "blue" or "red".
        pipe_color: "green" or "red".
        game: further arguments of the package's env; of these, `use_lidar` and `audio_on` can only be False
            and `screen_size` (288, 512).
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 30, "frame_stack": STACK}

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        pipe_gap: int = 100,
        score_limit: int | None = None,
        background: str | None = "day",
        bird_color: str = "yellow",
        pipe_color: str = "green",
        **game: Any,
    ) -> None:
        colours = {"background": background, "bird_color": bird_color, "pipe_color": pipe_color}
        _check_arguments(render_mode, pipe_gap, colours, game)
        check_package()
        from flappy_bird_gymnasium import FlappyBirdEnv

        if render_mode == "human" and sys.platform == "linux":  # only a window needs a video driver
            if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
                os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)
        game |= {"render_mode": render_mode, "pipe_gap": pipe_gap, "score_limit": score_limit, **colours}
        self._game = FlappyBirdEnv(**game | {"use_lidar": False})
        self._painter = _painter(**colours)
        self._frames: Gray | None = None  # [4, 84, 84]

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Gray, dict[str, Any]]:
        """Start a game; its pipes come from `np_random`, which `seed` renews."""
        super().reset(seed=seed)
        self._game.np_random = self.np_random  # one stream: who restores the env's restores the game's
        # The package leaves these two as the previous game ended; both show in the pixels.
        self._game._ground["x"] = 0
        self._game._player_idx_gen = itertools.cycle([0, 1, 2, 1])
        _, info = self._game.reset(options=options)
        self._frames = np.empty((STACK, SIDE, SIDE), np.uint8)
        self._frames[:] = self._paint(self._frames[-1])
        return self._frames.copy(), info

    def step(self, action: int | np.integer[Any]) -> tuple[Gray, float, bool, bool, dict[str, Any]]:
        """Play one frame (1/30 s of game time)."""
        if self._frames is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step().")
        if action not in (0, 1):
            raise ValueError(f"action must be 0 (glide) or 1 (flap), not {action!r}")
        _, reward, terminated, truncated, info = self._game.step(action)
        self._frames[:-1] = self._frames[1:]
        self._paint(self._frames[-1])
        return self._frames.copy(), float(reward), terminated, truncated, info

    def render(self) -> Gray | None:
        """The package's picture ("rgb_array"), uint8 [512, 288, 3]; or None, its window redrawn ("human")."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() needs an env made with render_mode "rgb_array" or "human"')
            return None
        picture = self._game.render()
        return None if picture is None else np.ascontiguousarray(picture)

    def close(self) -> None:
        """Close the package's window, if any."""
        self._game.close()

    def _paint(self, frame: Gray) -> Gray:
        """Draw the game's present state into `frame` [84, 84] and return it."""
        game = self._game
        # pygame truncates positions toward zero, as int() does.
        pipes = [
            (int(upper["x"]), int(upper["y"]), int(lower["y"]))
            for upper, lower in zip(game._upper_pipes, game._lower_pipes, strict=True)
        ]
        pose = (game._player_idx, min(game._player_rot, _MAX_ROTATION))
        ground_x, bird_x, bird_y = int(game._ground["x"]), int(game._player_x), int(game._player_y)
        self._painter.paint(frame, pipes, ground_x, pose, bird_x, bird_y)
        return frame


def _check_arguments(
    render_mode: str | None, pipe_gap: int, colours: dict[str, str | None], game: dict[str, Any]
) -> None:
    """Refuse what would change the pixels or fail obscurely inside the package."""
    if render_mode not in (None, "rgb_array", "human"):
        raise ValueError(f'render_mode must be None, "rgb_array" or "human", not {render_mode!r}')
    if pipe_gap < 0:
        raise ValueError(f"pipe_gap must be >= 0 pixels, not {pipe_gap!r}")
    for name, colour in colours.items():
        if colour not in _COLOURS[name]:
            raise ValueError(f"{name} must be one of {_COLOURS[name]}, not {colour!r}")
    if game.get("use_lidar"):
        raise ValueError("use_lidar=True gives distances, this env pixels; for lidar make FlappyBird-v0")
    if game.get("audio_on"):
        raise ValueError("audio_on=True is not supported: training has no use for sound")
    if tuple(game.get("screen_size", (_WIDTH, _HEIGHT))) != (_WIDTH, _HEIGHT):
        raise ValueError(f"screen_size must be {(_WIDTH, _HEIGHT)}, not {game['screen_size']!r}")


@functools.cache
def _painter(background: str | None, bird_color: str, pipe_color: str) -> _Painter:
    """The process's one painter for these colours: its views serve all envs."""
    return _Painter(background, bird_color, pipe_color)


class _Painter:
    """Draws frames [84, 84] from positions on the 512x288 screen, bit-equal to shrinking the whole screen."""

    def __init__(self, background: str | None, bird_color: str, pipe_color: str) -> None:
        import cv2
        import pygame
        from flappy_bird_gymnasium.envs.constants import FILL_BACKGROUND_COLOR
        from flappy_bird_gymnasium.envs.utils import load_images

        self._colours = background, bird_color, pipe_color
        self._shrink = functools.partial(cv2.resize, interpolation=cv2.INTER_AREA)
        images = load_images(convert=False, bg_type=background, bird_color=bird_color, pipe_color=pipe_color)
        sky = pygame.Surface((_WIDTH, _HEIGHT), depth=32)
        sky.fill(FILL_BACKGROUND_COLOR)
        if background is not None:
            sky.blit(images["background"], (0, 0))
        self._sky = _sprite(sky)[0]
        self._ground = _sprite(images["base"])
        self._upper_pipe, self._lower_pipe = map(_sprite, images["pipe"])
        self._birds = {
            (wing, rotation): _sprite(pygame.transform.rotate(bird, rotation))
            for wing, bird in enumerate(images["player"])
            for rotation in (_MAX_ROTATION, *range(18, -91, -3))  # degrees; a falling bird turns 3 a frame
        }
        self._view = functools.lru_cache(maxsize=_KEPT_VIEWS)(self._draw)

    def __reduce__(self) -> tuple[Any, ...]:
        return _painter, self._colours  # copied and unpickled envs find their process's painter

    def paint(
        self, frame: Gray, pipes: list[Pipe], ground_x: int, pose: tuple[int, int], bird_x: int, bird_y: int
    ) -> None:
        """Draw into `frame` [84, 84]; `pose` is wing and rotation in degrees, all else screen pixels."""
        frame[:] = self._view((0, _HEIGHT, 0, _WIDTH), ground_x)
        for pipe in pipes:
            left, right = _blocks(pipe[0], pipe[0] + _PIPE_W, _BLOCK_W, _WIDTH)
            if left < right:  # no two pipes touch the same block
                box = (0, _HEIGHT, left, right)
                frame[_cells(box)] = self._view(box, ground_x, (pipe,))
        bird = self._birds[pose]
        height, width = bird[0].shape
        top, bottom = _blocks(bird_y, bird_y + height, _BLOCK_H, _HEIGHT)
        if top < bottom:
            box = (top, bottom, *_blocks(bird_x, bird_x + width, _BLOCK_W, _WIDTH))
            frame[_cells(box)] = self._draw(box, ground_x, pipes, (bird, bird_x, bird_y))

    def _draw(
        self,
        box: Box,
        ground_x: int,
        pipes: Iterable[Pipe] = (),
        bird: tuple[Sprite, int, int] | None = None,
    ) -> Gray:
        """The frame pixels of `box`, its sprites drawn in the package's order."""
        top, bottom, left, right = box
        screen = self._sky[top:bottom, left:right].copy()
        for x, upper_y, lower_y in pipes:
            _paste(screen, self._upper_pipe, x - left, upper_y - top)
            _paste(screen, self._lower_pipe, x - left, lower_y - top)
        _paste(screen, self._ground, ground_x - left, _GROUND_Y - top)
        if bird is not None:
            sprite, x, y = bird
            _paste(screen, sprite, x - left, y - top)
        size = (right - left) // _BLOCK_W * _CELL_W, (bottom - top) // _BLOCK_H * _CELL_H
        shrunk: Gray = self._shrink(screen, size)
        return shrunk


def _cells(box: Box) -> tuple[slice, slice]:
    """Where `box` lies in the frame."""
    top, bottom, left, right = box
    return (
        slice(top // _BLOCK_H * _CELL_H, bottom // _BLOCK_H * _CELL_H),
        slice(left // _BLOCK_W * _CELL_W, right // _BLOCK_W * _CELL_W),
    )


def _blocks(start: int, stop: int, block: int, end: int) -> tuple[int, int]:
    """Borders of the whole blocks that [start, stop) touches within [0, end); first >= second if none."""
    return max(start, 0) // block * block, min(-(-stop // block) * block, end)


def _paste(screen: Gray, sprite: Sprite, x: int, y: int) -> None:
    """Copy the opaque pixels of `sprite`, top left corner at (x, y), to `screen` as far as they lie on it."""
    gray, opaque = sprite
    top, bottom = max(y, 0), min(y + gray.shape[0], screen.shape[0])
    left, right = max(x, 0), min(x + gray.shape[1], screen.shape[1])
    if top < bottom and left < right:
        part = slice(top - y, bottom - y), slice(left - x, right - x)
        np.copyto(screen[top:bottom, left:right], gray[part], where=opaque[part])


def _sprite(image: Any) -> Sprite:
    """Gray values and opacity, both [height, width], of a pygame surface of any format.

    Drawn on black and on white as the package would draw it: opaque is where the two agree.
    """
    import cv2
    import pygame

    drawn = []
    for paper in ("black", "white"):
        surface = pygame.Surface(image.get_size(), depth=32)
        surface.fill(paper)
        surface.blit(image, (0, 0))
        drawn.append(pygame.surfarray.array3d(surface).transpose(1, 0, 2))
    gray = np.asarray(cv2.cvtColor(np.ascontiguousarray(drawn[0]), cv2.COLOR_RGB2GRAY), np.uint8)
    return gray, (drawn[0] == drawn[1]).all(axis=-1)
