"""mpe2's `simple_reference_v3` in arrays: all copies of its world, stepped at once, to the same bits.

Two agents and three landmarks. Each agent knows to which landmark the other shall go, and says one of ten words in each
step, which the other hears in the next. The distance of the one from its landmark is what the other loses
(`local_ratio` of that, `1 - local_ratio` of the mean of both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from gymnasium.utils.seeding import np_random

from distrl.envs.particles import PUSH, Particles
from distrl.types import Array

ID = "mpe2/simple_reference_v3"
COLORS = np.array([[0.75, 0.25, 0.25], [0.25, 0.75, 0.25], [0.25, 0.25, 0.75]], np.float32)  # of the landmarks
WORDS = np.eye(11, 10, dtype=np.float32)  # one-hot; the last: nothing was said yet
SILENCE = len(WORDS) - 1


class ReferenceWorld(Particles):
    """K copies of it. An observation has D = 21 numbers: velocity, ways to the landmarks, the other's color, what it said."""

    held: ClassVar[tuple[str, ...]] = (*Particles.held, "goal", "said")

    def __init__(self, copies: int, local_ratio: float = 0.5, max_cycles: int = 25) -> None:
        """But for `copies` as `mpe2.simple_reference_v3.parallel_env` is called, for discrete actions."""
        super().__init__(copies, agents=2, landmarks=3, numbers=21)
        self.local_ratio, self.max_cycles = local_ratio, max_cycles
        self.goal = np.zeros((2, copies), np.int64)  # of each agent: the landmark where the other shall go
        self.said = np.full((2, copies), SILENCE)

    def reset(self, copies: Array, seeds: Sequence[int]) -> None:
        """Begin episodes in some copies (indices [E]), each with a seed of its own: as mpe2 would."""
        for copy, seed in zip(copies.tolist(), seeds, strict=True):
            random = np_random(seed)[0]
            self.goal[:, copy] = [random.integers(3) for _ in range(2)]
            self.position[:, :, copy] = random.uniform(-1, 1, (5, 2)).T
        self.velocity[:, :, copies] = 0.0
        self.said[:, copies], self.elapsed[copies] = SILENCE, 0
        self._look()

    def step(self, action: Array) -> tuple[Array, Array, Array]:
        """One joint step.

        Args:
            action: [K, 2] in 0..49: 5 times the word, and 0..4: nothing, left, right, down, up
        Returns:
            reward [K, 2] float64; terminated and truncated [K] bool, which all agents share
        """
        word, way = np.divmod(action.T, 5)
        self._move(PUSH[:, way])
        self.said[...] = word
        self._look()
        theirs = np.take_along_axis(self.position[:, 2:], self.goal[None], axis=1)  # where the other one shall be
        squares = np.square(self.position[:, 1::-1] - theirs)
        own = -np.sqrt(squares[0] + squares[1])  # [2, K]
        reward = (own[0] + own[1]) / 2 * (1 - self.local_ratio) + own * self.local_ratio
        return np.ascontiguousarray(reward.T), np.zeros(self.copies, bool), self.elapsed >= self.max_cycles

    def _look(self) -> None:
        ways = self.position[:, None, 2:] - self.position[:, :2, None]  # [2, agents, landmarks, K]
        self.obs[:, :, 0:2] = self.velocity.T
        self.obs[:, :, 2:8] = ways.transpose(3, 1, 2, 0).reshape(self.copies, 2, 6)
        self.obs[:, :, 8:11] = COLORS[self.goal.T]
        self.obs[:, :, 11:] = WORDS[self.said[::-1].T]
