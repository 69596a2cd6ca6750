"""Watching episodes in a window, and playing them for whoever shows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from distrl.acting.episodes import Acting
from distrl.envs.make import describe_env, make_env
from distrl.envs.multi import Team
from distrl.errors import EnvError, UserError, users_traceback
from distrl.layouts import MASK
from distrl.seeding import derive, stream
from distrl.settings import EnvSettings
from distrl.signals import held
from distrl.types import Policy

# What acts in an episode of that number: gives the env's action for its observation and the info beside it.
Actor = Callable[[int], Callable[[Any, Mapping[str, Any]], Any]]


@dataclass(frozen=True)
class Moment:
    """The beginning of an episode, or what a step of it gave."""

    episode: int  # from 0 on
    step: int  # 0: the reset
    action: Any  # as the env took it, of several agents by the names of those who acted; None of the reset
    reward: float
    terminated: bool
    truncated: bool
    rewards: Mapping[str, float] = field(default_factory=dict)  # of each of several agents, whose sum `reward` is

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


Tell = Callable[[Moment], object]


def by_policy(policy: Policy, seed: int, greedy: bool = True) -> Actor:
    """Acts by a policy: the best actions, or sampled ones that `seed` and the episode's number fix.

    Of several agents it is given what `distrl.envs.multi.Team` tells of them by name, and gives a list with an action of each.
    """
    team = bool(policy.obs_layout.agents)

    def begin(episode: int) -> Callable[[Any, Mapping[str, Any]], Any]:
        rng, acting = stream(seed, "play action", episode), Acting(policy, policy.obs_layout.rows)

        def act(obs: Any, info: Mapping[str, Any]) -> Any:
            layout = policy.obs_layout
            batch = layout.pack_agents(obs, info["infos"]) if team else layout.pack(obs, info.get(MASK))[None]
            action = acting.greedy(batch) if greedy else acting.act(batch, policy.draw(rng, 1, len(batch))[0])[0]
            return policy.action_layout.unpack_agents(action) if team else policy.action_layout.unpack(action[0])

        return act

    return begin


def play(
    actor: Actor,
    env: EnvSettings,
    seed: int,
    episodes: int = 1,
    tell: Tell = lambda moment: None,
    remedy: str = "Record a video instead: 'distrl record'.",
) -> tuple[float, ...]:
    """Play episodes in a window. Closing it, or Ctrl-C, ends the game. Returns the returns of finished episodes.

    Args:
        tell: is told of every moment when it is drawn
        remedy: what to do where no window can be opened, for people
    Raises:
        UserError: there is no display, or the env has no pictures.
    """
    if not display():
        raise UserError(f"There is no display here: neither DISPLAY nor WAYLAND_DISPLAY is set. {remedy}")
    modes = describe_env(env).render_modes
    if not {"human", "rgb_array"} & set(modes):  # gymnasium shows the pictures of "rgb_array" in a window of its own
        raise UserError(f"{env.id} cannot be watched: its render_modes ({', '.join(modes) or 'none'}) lack 'human'.")
    returns: list[float] = []
    total, opened = 0.0, False
    game = make_env(env, render_mode="human")
    try:
        for moment in play_episodes(actor, game, seed, episodes):
            if not opened and _unseen():
                raise UserError(f"The window cannot be opened: DISPLAY or WAYLAND_DISPLAY leads nowhere. {remedy}")
            opened = True
            tell(moment)
            total = moment.reward if moment.step == 0 else total + moment.reward
            if moment.ended:
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


def play_episodes(actor: Actor, game: gym.Env[Any, Any], seed: int, episodes: int, first: int = 0) -> Iterator[Moment]:
    """Play, and tell of every moment of each episode. `first`: the number of the first one, which with the seed fixes it."""
    for episode in range(first, first + episodes):
        act = actor(episode)
        episode_seed = derive(seed, "play episode", episode)
        with _stepped(game, episode_seed, 0):
            obs, info = game.reset(seed=episode_seed)
        moment = Moment(episode, 0, None, 0.0, False, False)
        yield moment
        while not moment.ended:
            action = act(obs, info)
            told = action
            if isinstance(game, Team):
                told = {name: action[game.place[name]] for name in info["acts"]}
            with _stepped(game, episode_seed, moment.step + 1):
                obs, reward, terminated, truncated, info = game.step(action)
                ends, rewards = (bool(terminated), bool(truncated)), info["rewards"] if isinstance(game, Team) else {}
                moment = Moment(episode, moment.step + 1, told, float(reward), *ends, rewards)
            yield moment


@contextmanager
def _stepped(game: gym.Env[Any, Any], seed: int, step: int) -> Iterator[None]:
    """What the env raises within is `EnvError`, but for what is known of windows. Ctrl-C waits for its end."""
    try:
        with held():
            yield
    except (UserError, gym.error.DependencyNotInstalled):
        raise
    except Exception as error:
        if _of_pygame(error):
            raise
        env_id = "the environment" if game.spec is None else game.spec.id
        raise EnvError(env_id, 0, 0, seed, step, users_traceback(error)) from None


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
