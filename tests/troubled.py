"""CartPole with troubles, importable wherever a test's workers run: `troubled:Troubled-v0`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class Troubled(CartPoleEnv):
    """In the step that `at` counts to (in one process), `trouble` befalls it: always, or once if `flag` names a file."""

    steps = 0  # of all copies in this process
    limps: bool | None = None  # whether this process is the slow one

    def __init__(
        self, trouble: str = "", at: int = 300, flag: str = "", making_s: float = 0, where: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        time.sleep(making_s)
        self.trouble, self.at, self.flag, self.where = trouble, at, flag, where

    def step(self, action: Any) -> Any:
        Troubled.steps += 1
        result = super().step(action)
        if self.trouble == "sleep":
            time.sleep(0.005)
        elif self.trouble == "limp":
            if Troubled.limps is None:
                Troubled.limps = self._takes_flag()
            time.sleep(0.01 * Troubled.limps)
        elif self.trouble and Troubled.steps >= self.at and self._is_there() and self._takes_flag():
            if self.trouble == "raise":
                raise ConnectionError("the simulator hung up")
            if self.trouble == "hang":
                time.sleep(3600)
            while self.trouble == "loop":
                pass
            if self.trouble == "crash":
                os._exit(1)
            if self.trouble == "nan":
                return result[0], float("nan"), *result[2:]
        return result

    def _is_there(self) -> bool:
        """Whether this process is called as `where` says, such as 'Evaluator'; any process where that is nothing."""
        return not self.where or self.where in " ".join(psutil.Process().cmdline())

    def _takes_flag(self) -> bool:
        """True for the one that makes the flag, or for all where there is none."""
        try:
            if self.flag:
                Path(self.flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


if "Troubled-v0" not in gym.registry:
    gym.register("Troubled-v0", Troubled, max_episode_steps=100)
