"""Random steps of an environment, for people to look at: in a window, or as a video, with every step told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distrl.envs.make import describe_env
from distrl.models.play import Moment, display, play
from distrl.models.video import Recording, record_video
from distrl.settings import EnvSettings
from distrl.tools.random_actions import RandomActions

REMEDY = "Name a video instead: --out FILE.webm."


def watch(
    env: EnvSettings, seed: int, episodes: int, out: Path | None, say: Callable[[str], object]
) -> Recording | None:
    """Play with random actions that the env allows. Ctrl-C ends the game in a window, and leaves no video.

    Args:
        out: a video to record; None: a window, or, where there is no display, a video named after the env
        say: is given a line for every step, and for the end of an episode
    Returns:
        what was recorded, or None
    Raises:
        UserError: there are no pictures of the env, or they cannot be shown or written
    """
    actions = RandomActions(describe_env(env), seed)
    told = _Told(say)
    if out is None and display():
        play(lambda episode: actions.single, env, seed, episodes, told, REMEDY)
        return None
    where = out or Path(f"{env.id.split('/')[-1].split(':')[-1].lower()}-random.webm")
    return record_video(lambda episode: actions.single, env, where, seed, episodes, tell=told)


class _Told:
    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self.total = say, 0.0

    def __call__(self, moment: Moment) -> None:
        if moment.step == 0:
            self.total = 0.0
            self.say(f"episode {moment.episode + 1}")
            return
        self.total += moment.reward
        of_each = "".join(f"  {name} {reward:g}" for name, reward in moment.rewards.items())
        self.say(f"step {moment.step:>5}  action {_text(moment.action)}  reward {moment.reward:g}{of_each}")
        if moment.ended:
            how = "terminated" if moment.terminated else "truncated"
            self.say(f"{how} after {moment.step:,} steps, return {self.total:g}")


def _text(action: Any) -> str:
    """An action on one line."""
    if isinstance(action, dict):
        return "{" + ", ".join(f"{name}: {_text(part)}" for name, part in action.items()) + "}"
    if isinstance(action, tuple):
        return "(" + ", ".join(map(_text, action)) + ")"
    return " ".join(np.array2string(np.asarray(action), precision=3, threshold=20).split())
