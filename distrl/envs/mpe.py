"""Worlds of mpe2 in arrays, as a shard: `distrl.envs.spread` and `distrl.envs.reference`."""

from __future__ import annotations

import inspect
import math

import numpy as np

from distrl.envs import reference, spread
from distrl.envs.multi import describe_team
from distrl.envs.reference import ReferenceWorld
from distrl.envs.spread import SpreadWorld
from distrl.layouts import AGENT, OBSERVATION, Layout, narrowed
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot, Step

WORLDS: dict[str, type[SpreadWorld] | type[ReferenceWorld]] = {
    spread.ID: SpreadWorld,
    reference.ID: ReferenceWorld,
}  # by the ids of those that they stand for


class ParticleShard:
    """Env copies as columns of their agents, those of the first copy first. `distrl.envs.shard.Shard`.

    Episodes have the seeds that they have where mpe2 is stepped itself (`distrl.envs.team.TeamShard`), so all is the same.
    """

    @staticmethod
    def fits(settings: EnvSettings, layout: Layout | None) -> bool:
        """Whether arrays do all that is asked of mpe2, which they may stand for."""
        world = WORLDS.get(_name(settings))
        if world is None or settings.vectorize != "auto":
            return False
        known = {*inspect.signature(world).parameters, "dynamic_rescaling"} - {"copies"}  # the one is of pictures
        layouts = [] if layout is None else layout.members or [layout]
        plain = all({(AGENT,), (OBSERVATION,)} <= {part.path for part in own.parts} for own in layouts)
        return settings.kwargs.keys() <= known and plain

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int, layout: Layout | None = None) -> None:
        """`layout`: of a row of an observation; None: as the env's spaces say."""
        self.seed, self.shard, self.copies = seed, shard, copies
        self.frame_stack, self.replays, self.active = 0, False, None
        self.limit = settings.max_episode_steps or math.inf
        world = WORLDS[_name(settings)]
        self.world = world(copies, **{k: v for k, v in settings.kwargs.items() if k != "dynamic_rescaling"})
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


def _name(settings: EnvSettings) -> str:
    return settings.id.replace("-v", "_v")
