"""Watching a trained model in a window."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym

from distrl.envs.make import describe_env, make_env
from distrl.errors import UserError
from distrl.layouts import MASK
from distrl.seeding import derive, stream
from distrl.settings import EnvSettings
from distrl.types import Policy


def play(policy: Policy, env: EnvSettings, seed: int, episodes: int = 1, greedy: bool = True) -> tuple[float, ...]:
    """Play episodes in a window. Closing it, or Ctrl-C, ends the game. Returns the returns of finished episodes.

    Raises:
        UserError: there is no display, or the env has no pictures.
    """
    remedy = "Record a video instead: 'distrl record'."
    if not display():
        raise UserError(f"There is no display here: neither DISPLAY nor WAYLAND_DISPLAY is set. {remedy}")
    modes = describe_env(env).render_modes
    if not {"human", "rgb_array"} & set(modes):  # gymnasium shows the pictures of "rgb_array" in a window of its own
        raise UserError(f"{env.id} cannot be watched: its render_modes ({', '.join(modes) or 'none'}) lack 'human'.")
    returns: list[float] = []
    total, opened = 0.0, False
    game = make_env(env, render_mode="human")
    try:
        for step, reward, ended in play_episodes(policy, game, seed, episodes, greedy):
            if not opened and _unseen():
                raise UserError(f"The window cannot be opened: DISPLAY or WAYLAND_DISPLAY leads nowhere. {remedy}")
            opened = True
            total = reward if step == 0 else total + reward
            if ended:
                returns.append(total)
            if _window_closed():
                break
    except (KeyboardInterrupt, SystemExit):  # some envs exit when their window is closed
        pass
    except gym.error.DependencyNotInstalled as error:
        raise UserError(f"{env.id} cannot be drawn: {error}.") from None
    except Exception as error:
        if not _of_pygame(error):
            raise
        if not opened:
            raise UserError(f"The window cannot be opened: {error}. {remedy}") from None
        # Otherwise the window was closed while it was drawn on.
    finally:
        game.close()
    return tuple(returns)


def play_episodes(
    policy: Policy, game: gym.Env[Any, Any], seed: int, episodes: int, greedy: bool
) -> Iterator[tuple[int, float, bool]]:
    """Play, and tell of every step of an episode: its number (0 is the reset), its reward, whether it was the last."""
    for episode in range(episodes):
        rng = stream(seed, "play action", episode)
        obs, info = game.reset(seed=derive(seed, "play episode", episode))
        step, ended = 0, False
        yield step, 0.0, ended
        while not ended:
            batch = policy.obs_layout.pack(obs, info.get(MASK))[None]
            action = policy.greedy(batch) if greedy else policy.act(batch, policy.draw(rng, 1, 1)[0])[0]
            obs, reward, terminated, truncated, info = game.step(policy.action_layout.unpack(action[0]))
            step, ended = step + 1, bool(terminated or truncated)
            yield step, float(reward), ended


def display() -> bool:
    """Whether a window can be opened. Elsewhere than on Linux the desktop is always there."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _unseen() -> bool:
    """Whether SDL found no display and draws into the void, though nobody told it to."""
    pygame = sys.modules.get("pygame")
    return (
        "SDL_VIDEODRIVER" not in os.environ
        and pygame is not None
        and pygame.display.get_init()
        and pygame.display.get_driver() in ("dummy", "offscreen")
    )


def _window_closed() -> bool:
    """Whether the user has closed the window of pygame, which nearly all envs use. They leave the event unread."""
    pygame = sys.modules.get("pygame")
    return pygame is not None and pygame.display.get_init() and bool(pygame.event.get(pygame.QUIT))


def _of_pygame(error: Exception) -> bool:
    pygame = sys.modules.get("pygame")
    return pygame is not None and isinstance(error, pygame.error)
