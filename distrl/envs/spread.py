"""mpe2's `simple_spread_v3` in arrays: all copies of its world, stepped at once.

Agents shall cover landmarks: all earn minus the distances from each landmark to the agent nearest to it, and each loses
1 for every other agent that it overlaps (`local_ratio` of that, `1 - local_ratio` of the former). What counts is the
order in which mpe2 adds and multiplies, and it is kept: positions, velocities, rewards and observations are the same in
every bit. Two facts leave less to do. What lies between two entities is the same after a step as before the next one,
so it is computed once. And of the pair b, a it is minus that of a, b: the force between them is needed once for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium.utils.seeding import np_random

from distrl.envs.particles import PUSH, SENSITIVITY, Particles
from distrl.types import Array

ID = "mpe2/simple_spread_v3"
SIZE, CAPTURE = 0.15 + 0.15, 0.1  # agents nearer than this overlap; a landmark is covered by an agent nearer than that
CONTACT_FORCE, CONTACT_MARGIN = 1e2, 1e-3


class SpreadWorld(Particles):
    """K copies of a world of N agents and N landmarks. An observation has D = 6 N numbers, as mpe2 orders them."""

    def __init__(
        self,
        copies: int,
        N: int = 3,
        local_ratio: float = 0.5,
        max_cycles: int = 25,
        continuous_actions: bool = False,
        terminate_on_success: bool = False,
    ) -> None:
        """But for `copies` as `mpe2.simple_spread_v3.parallel_env` is called."""
        super().__init__(copies, agents=N, landmarks=N, numbers=6 * N)
        self.local_ratio, self.max_cycles = local_ratio, max_cycles
        self.continuous, self.ends_on_success = continuous_actions, terminate_on_success
        # What an agent sees: all landmarks and the other agents, [N, 2 N - 1]; [N, N - 1]: the number of each such pair.
        others = np.array([[j for j in range(N) if j != i] for i in range(N)], int).reshape(N, N - 1)
        self._seen = np.concatenate([np.tile(np.arange(N, 2 * N), (N, 1)), others], axis=1)
        first, second = np.triu_indices(N, 1)
        number = np.zeros((N, N), int)
        number[first, second] = number[second, first] = np.arange(len(first))
        self._pair, self._first, self._slot = number[np.arange(N)[:, None], others], first, N + second - 1

    def reset(self, copies: Array, seeds: Sequence[int]) -> None:
        """Begin episodes in some copies (indices [E]), each with a seed of its own: where mpe2's would."""
        for copy, seed in zip(copies.tolist(), seeds, strict=True):
            self.position[:, :, copy] = np_random(seed)[0].uniform(-1, 1, (2 * self.agents, 2)).T
        self.velocity[:, :, copies] = 0.0
        self.elapsed[copies] = 0
        self._look()

    def step(self, action: Array) -> tuple[Array, Array, Array]:
        """One joint step.

        Args:
            action: [K, N] in 0..4: nothing, left, right, down, up; of continuous ones [K, N, 5], which are clipped to [0, 1]
        Returns:
            reward [K, N] float64; terminated and truncated [K] bool, which all agents share
        """
        force = self._push(action)
        for j in range(self.agents - 1):  # in mpe2's order, agent by agent
            force += self._contact[:, :, j]
        self._move(force)
        self._look()
        nearest = self._distance[:, : self.agents].min(axis=0)  # of each landmark
        shared = np.zeros(self.copies)
        for row in nearest:
            shared -= row
        overlaps = (self._distance[:, self.agents :] < SIZE).sum(axis=1)
        reward = shared * (1 - self.local_ratio) + (0.0 - overlaps) * self.local_ratio
        truncated = self.elapsed >= self.max_cycles
        terminated = np.zeros(self.copies, bool)
        if self.ends_on_success:
            terminated = (nearest < CAPTURE).all(axis=0) & ~truncated
        return np.ascontiguousarray(reward.T), terminated, truncated

    def _push(self, action: Array) -> Array:
        """The forces of actions, [2, N, K]."""
        if not self.continuous:
            return PUSH[:, action.T]
        a = action.clip(0, 1).T  # [5, N, K]; mpe2 subtracts in the type that actions come in
        return np.array([a[2] - a[1], a[4] - a[3]], np.float64) * SENSITIVITY

    def _look(self) -> None:
        """What lies between entities now: distances, the forces of contact in the next step, observations."""
        n, agents = self.agents, self.position[:, : self.agents]
        between = self.position.take(self._seen, axis=1)  # [2, N, 2 N - 1, K]
        between -= agents[:, :, None]
        squares = np.square(between)
        self._distance = np.sqrt(squares[0] + squares[1])  # [N, 2 N - 1, K]
        apart = self._distance[self._first, self._slot]  # of each pair
        penetration = np.logaddexp(0, -(apart - SIZE) / CONTACT_MARGIN) * CONTACT_MARGIN
        self._contact = -CONTACT_FORCE * between[:, :, n:]
        self._contact /= self._distance[:, n:]
        self._contact *= penetration[self._pair]
        self.obs[:, :, 0:2], self.obs[:, :, 2:4] = self.velocity.T, agents.T
        self.obs[:, :, 4 : 4 * n + 2] = between.transpose(3, 1, 2, 0).reshape(self.copies, n, -1)
