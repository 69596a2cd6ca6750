"""mpe2's `simple_spread_v3` in arrays: all copies of its world, stepped at once.

Agents shall cover landmarks: all earn minus the distances from each landmark to the agent nearest to it, and each loses
1 for every other agent that it overlaps (`local_ratio` of that, `1 - local_ratio` of the former). What counts is the
order in which mpe2 adds and multiplies, and it is kept: positions, velocities, rewards and observations are the same in
every bit. Two facts leave less to do. What lies between two entities is the same after a step as before the next one,
so it is computed once. And of the pair b, a it is minus that of a, b: the force between them is needed once for each pair.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

import numpy as np
from gymnasium.utils.seeding import np_random

from distrl.envs.multi import describe_team
from distrl.layouts import AGENT, OBSERVATION, Layout, narrowed
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot, Step

ID = "mpe2/simple_spread_v3"
SIZE, CAPTURE = 0.15 + 0.15, 0.1  # agents nearer than this overlap; a landmark is covered by an agent nearer than that
DT, KEPT, SENSITIVITY = 0.1, 1 - 0.25, 5.0  # seconds of a step; of the velocity after it; the force of an action
CONTACT_FORCE, CONTACT_MARGIN = 1e2, 1e-3
PUSH = SENSITIVITY * np.array([[0.0, -1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0, 1.0]])  # [2, 5]: force of an action


class SpreadWorld:
    """K copies of a world of N agents and N landmarks. An observation has D = 6 N numbers, as mpe2 orders them.

    Episodes neither begin nor begin again by themselves: whoever steps the world calls `reset`, for all copies and then for
    those that ended.
    """

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
        self.copies, self.agents, self.local_ratio, self.max_cycles = copies, N, local_ratio, max_cycles
        self.continuous, self.ends_on_success = continuous_actions, terminate_on_success
        self.position = np.zeros((2, 2 * N, copies))  # of agents, then of landmarks
        self.velocity = np.zeros((2, N, copies))
        self.elapsed = np.zeros(copies, np.int64)
        self.obs = np.zeros((copies, N, 6 * N), np.float32)  # valid until the next step or reset
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
        self.position[:, : self.agents] += self.velocity * DT
        self.velocity *= KEPT
        self.velocity += force * DT
        self.elapsed += 1
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

    def state(self) -> Array:
        """What a central critic sees, [K, N D] float32: all observations, one agent after the other."""
        return self.obs.reshape(self.copies, -1)

    def arrays(self) -> Arrays:
        """All that the copies are."""
        return {name: getattr(self, name).copy() for name in ("position", "velocity", "elapsed")}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Go on from `arrays()`."""
        for name in ("position", "velocity", "elapsed"):
            getattr(self, name)[...] = arrays[name]
        self._look()

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


class SpreadShard:
    """N env copies as columns of their agents, those of the first copy first. `distrl.envs.shard.Shard`.

    Episodes have the seeds that they have where mpe2 is stepped itself (`distrl.envs.team.TeamShard`), so all is the same.
    """

    @staticmethod
    def fits(settings: EnvSettings, layout: Layout | None) -> bool:
        """Whether arrays do all that is asked of mpe2, which they may stand for."""
        if settings.id.replace("-v", "_v") != ID or settings.vectorize != "auto":
            return False
        known = {*inspect.signature(SpreadWorld).parameters, "dynamic_rescaling"} - {"copies"}  # the one is of pictures
        layouts = [] if layout is None else layout.members or [layout]
        plain = all({(AGENT,), (OBSERVATION,)} <= {part.path for part in own.parts} for own in layouts)
        return settings.kwargs.keys() <= known and plain

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int, layout: Layout | None = None) -> None:
        """`layout`: of a row of an observation; None: as the env's spaces say."""
        self.seed, self.shard, self.copies = seed, shard, copies
        self.frame_stack, self.replays, self.active = 0, False, None
        self.limit = settings.max_episode_steps or math.inf
        self.world = SpreadWorld(copies, **{k: v for k, v in settings.kwargs.items() if k != "dynamic_rescaling"})
        self.agents, layout = self.world.agents, layout or describe_team(settings).obs_layout
        self.episode = np.zeros(copies, np.int64)
        self.obs, self._wide = np.tile(layout.examples(), (copies, 1)), bool(layout.members)
        self._views = []  # of each agent what it sees, and what a central critic does, [N, ...]
        for place, name in enumerate(layout.agents):
            own, rows = layout.of(name), self.obs[place :: self.agents]
            rows = rows[:, : own.nbytes].view(own.dtype) if self._wide else rows
            views = {part.path: part.of(rows) for part in own.parts}
            views[AGENT,][:, own.agents.index(name)] = 1
            self._views.append((views[OBSERVATION,], None if own.central is None else own.central.of(rows)))
        self._begin(np.arange(copies))
        self._see()

    def step(self, action: Array) -> Step:
        if self._wide:
            action = narrowed(action, *(((5,), "float32") if self.world.continuous else ((), "int64")))
        reward, terminated, truncated = self.world.step(action.reshape(self.copies, self.agents, *action.shape[1:]))
        truncated |= (self.world.elapsed >= self.limit) & ~terminated
        self._see()
        ended, final_obs = np.flatnonzero(terminated | truncated), self.obs[:0]
        if len(ended):
            final_obs = self.obs.reshape(self.copies, self.agents, -1)[ended].reshape(-1, self.obs.shape[1])
            self.episode[ended] += 1
            self._begin(ended)
            self._see()
        n = self.agents
        return Step(self.obs, reward.ravel(), np.repeat(terminated, n), np.repeat(truncated, n), final_obs)

    def arrays(self) -> Arrays:
        return self.world.arrays() | {"episode": self.episode.copy()}

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        self.world.restore(snapshot.env)
        self.episode = snapshot.env["episode"].copy()
        self._see()
        return np.ones(self.copies, bool)

    def close(self) -> None:
        pass

    def _begin(self, copies: Array) -> None:
        episodes, first = self.episode[copies].tolist(), self.shard * self.copies
        seeds = [derive(self.seed, "episode", first + i, n) for i, n in zip(copies.tolist(), episodes, strict=True)]
        self.world.reset(copies, seeds)

    def _see(self) -> None:
        for place, (own, central) in enumerate(self._views):
            own[:] = self.world.obs[:, place]
            if central is not None:
                central[:] = self.world.state()
