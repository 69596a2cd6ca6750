"""PPO whose updates last, importable wherever a test's workers run: `algorithm.name=slow`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from distrl.algorithms import ppo
from distrl.algorithms.ppo import initial_weights as initial_weights
from distrl.algorithms.ppo import make_policy as make_policy
from distrl.heartbeat import HEART

NEEDS_TORCH = True


class Settings(ppo.Settings):
    name: str  # type: ignore[assignment]
    minibatch_s: float = 0.0  # of four more minibatches in each update, in which nothing is learnt
    flag: str = ""  # the first update to find no such file makes it, and takes an hour
    minibatches: bool = False  # of which there are many in that hour


class Slow(ppo.PPO):
    def update(self, *arguments: Any) -> dict[str, float]:
        settings = self.settings
        assert isinstance(settings, Settings)
        for _ in range(4):
            time.sleep(settings.minibatch_s)
            HEART.beat()
        if settings.flag and not Path(settings.flag).exists():
            Path(settings.flag).touch()
            if not settings.minibatches:
                time.sleep(3600)
            while True:
                time.sleep(0.1)
                HEART.beat()
        return super().update(*arguments)


def make(settings: Settings, policy: Any, seed: int, device: Any) -> Slow:
    return Slow(settings, policy, seed, device)
