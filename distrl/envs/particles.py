"""What the worlds of mpe2 have in common: agents that actions push, all copies of a world in arrays, its last axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from distrl.types import Array, Arrays

DT, KEPT, SENSITIVITY = 0.1, 1 - 0.25, 5.0  # seconds of a step; of the velocity after it; the force of an action
PUSH = SENSITIVITY * np.array([[0.0, -1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0, 1.0]])  # [2, 5]: force of an action


class Particles:
    """K copies of a world of N agents and some landmarks.

    Episodes neither begin nor begin again by themselves: whoever steps the world calls `reset`, for all copies and then for
    those that ended.
    """

    held: ClassVar[tuple[str, ...]] = ("position", "velocity", "elapsed")  # the arrays that a copy is
    continuous = False

    def __init__(self, copies: int, agents: int, landmarks: int, numbers: int) -> None:
        """`numbers`: of an observation."""
        self.copies, self.agents = copies, agents
        self.position = np.zeros((2, agents + landmarks, copies))  # of agents, then of landmarks
        self.velocity = np.zeros((2, agents, copies))
        self.elapsed = np.zeros(copies, np.int64)
        self.obs = np.zeros((copies, agents, numbers), np.float32)  # valid until the next step or reset

    def state(self) -> Array:
        """What a central critic sees, [K, N D] float32: all observations, one agent after the other."""
        return self.obs.reshape(self.copies, -1)

    def arrays(self) -> Arrays:
        """All that the copies are."""
        return {name: getattr(self, name).copy() for name in self.held}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Go on from `arrays()`."""
        for name in self.held:
            getattr(self, name)[...] = arrays[name]
        self._look()

    def _move(self, force: Array) -> None:
        """One step of all agents under forces [2, N, K]."""
        self.position[:, : self.agents] += self.velocity * DT
        self.velocity *= KEPT
        self.velocity += force * DT
        self.elapsed += 1

    def _look(self) -> None:
        """Write the observations."""
        raise NotImplementedError
