"""Rolling shards with a policy. Knows nothing of learning, Ray or files; imports no torch."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distrl.acting.episodes import Acting
from distrl.acting.network import single_threaded
from distrl.acting.opponents import acting_in
from distrl.envs.journal import Underway, compact
from distrl.envs.shard import Shard, make_shard
from distrl.heartbeat import HEART, at_work
from distrl.seeding import stream
from distrl.settings import EnvSettings, RolloutSettings
from distrl.types import Array, Episodes, Fragment, Policy, Report, Snapshot, Weights
from distrl.workers.versions import Message, whole

Before = Snapshot | Literal["live"] | None


@dataclass
class Live:
    """A shard that was rolled here, up to fragment `iteration`."""

    shard: Shard
    iteration: int
    underway: Underway
    acting: Acting


@at_work
class Runner:
    """Rolls any fragment of any shard. Live shards are only a cache: a snapshot always suffices."""

    def __init__(
        self,
        env: EnvSettings,
        rollout: RolloutSettings,
        seed: int,
        policy: Policy,
        rebuild_timeout_s: float = math.inf,
    ) -> None:
        single_threaded()
        self.env, self.settings, self.seed, self.rebuild_timeout_s = env, rollout, seed, rebuild_timeout_s
        self.policy = copy.deepcopy(policy)  # in one process it would be shared
        self.version: int | None = None
        self.shards: dict[int, Live] = {}
        self.heart = HEART  # and where it beats:
        self.shard, self.iteration, self.step = -1, -1, -1

    def rollout(
        self, shard: int, iteration: int, message: Message, before: Before, keyframe: Weights | None = None
    ) -> tuple[Report, Fragment]:
        """Fragment `iteration` of `shard`.

        Args:
            before: the snapshot before it; None: the shard's beginning; 'live': the shard was just rolled here to there
            message, keyframe: the weights to act by, as they travel; see distrl.workers.versions

        Raises:
            EnvError: the environment raised; the shard is dropped here, and can be rolled again anywhere.
            LookupError: `before` is 'live', but the shard is not; the fragment before it must have failed.
            UserError: the shard cannot be rebuilt in time.
        """
        self.shard, self.iteration, self.step = shard, iteration, 0
        try:
            live, exact = self._live(shard, iteration, before)
            self.heart.beat()
            self._load(message, keyframe)
            report, fragment = self._roll(live, message.version)
        except Exception as error:
            self.shards.pop(shard, None)
            error.add_note(f"while rolling step {self.step} of fragment {iteration} of shard {shard} of {self.env.id}")
            raise
        report.unfaithful = not exact
        return report, fragment

    def where(self) -> str:
        """What it is rolling, for a watchdog."""
        return (
            f"step {self.step} of fragment {self.iteration} of shard {self.shard} of {self.env.id}{self.heart.of_copy}"
        )

    def _load(self, message: Message, keyframe: Weights | None) -> None:
        if message.version != self.version:
            self.policy.load(whole(message, keyframe).vector)
            self.version = message.version

    def _live(self, shard: int, iteration: int, before: Before) -> tuple[Live, bool]:
        """The shard before fragment `iteration`, and whether it is exactly what it was."""
        live = self.shards.get(shard)
        if live is not None and live.iteration == iteration:
            return live, True
        if before == "live":
            raise LookupError(f"shard {shard} is not before fragment {iteration} here")
        if live is not None:
            live.shard.close()
        n = self.settings.envs_per_shard
        made = make_shard(self.env, self.seed, shard, n, self.policy.obs_layout)
        layout = self.policy.obs_layout
        rebuilt, underway = np.ones(n, bool), Underway(n, len(layout.agents))
        acting = acting_in(self.policy, made, n)
        if before is not None:
            rebuilt = made.restore(before, self.rebuild_timeout_s)
            underway.returns, underway.lengths = (before.returns.T * rebuilt).T, before.lengths * rebuilt
            acting.memory = before.memory
            acting.forget(np.repeat(~rebuilt, layout.rows))
        self.shards[shard] = Live(made, iteration, underway, acting)
        return self.shards[shard], bool(rebuilt.all())

    def _roll(self, live: Live, version: int) -> tuple[Report, Fragment]:
        envs, underway, acting, began = live.shard, live.underway, live.acting, live.acting.arrays()
        shard, iteration, t_max, n = self.shard, self.iteration, self.settings.steps, len(envs.obs)  # columns
        noise = self.policy.draw(stream(self.seed, "action", shard, iteration), t_max, n)
        stack, obs_dtype = envs.frame_stack, self.policy.obs_layout.dtype
        seen = envs.obs.astype(obs_dtype, copy=False)  # a whole stack where `obs` holds single frames
        first = seen.swapaxes(0, 1) if stack else seen[None]
        obs = np.concatenate([first, np.empty((t_max, *first.shape[1:]), first.dtype)])
        newest = obs[len(first) :]
        reward = np.empty((t_max, n), np.float64)
        terminated, truncated = np.empty((t_max, n), bool), np.empty((t_max, n), bool)
        actions, extras, active = [], [], [copy.copy(envs.active)]
        final_obs: list[Array] = []
        infos: list[dict[str, float]] = []
        ended: list[tuple[Array, Array]] = []
        act_s, started, start = 0.0, time.time(), time.perf_counter()
        for t in range(t_max):
            self.step = t
            before_act = time.perf_counter()
            action, extra = acting.act(seen, noise[t])
            act_s += time.perf_counter() - before_act
            result = envs.step(action)
            self.heart.beats += 1
            active.append(copy.copy(envs.active))
            actions.append(action)
            extras.append(extra)
            if stack:
                seen = result.obs.astype(obs_dtype, copy=False)
                newest[t] = seen[:, -1]
            else:
                newest[t] = result.obs
                seen = newest[t]
            reward[t], terminated[t], truncated[t] = result.reward, result.terminated, result.truncated
            ended.append(underway.count(result))
            if len(result.final_obs):
                last = np.asarray(result.final_obs, obs.dtype)
                final_obs.append(last[:, -1] if stack else last)
                acting.forget(result.terminated | result.truncated)
                infos += result.infos
        rolling = time.perf_counter() - start
        fragment = Fragment(
            shard=shard,
            iteration=iteration,
            version=version,
            obs=obs,
            action=np.stack(actions),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=np.concatenate([np.zeros((0, *obs.shape[2:]), obs.dtype), *final_obs]),
            extras={key: np.stack([extra[key] for extra in extras]) for key in extras[0]} | began,
            stack=stack,
            agents=self.policy.obs_layout.rows,
            active=None if envs.active is None else np.array(active),
        )
        live.iteration = iteration + 1
        after = Snapshot(live.iteration, underway.returns.copy(), underway.lengths.copy(), envs.arrays(), acting.memory)
        taken = self._taken(fragment, underway) if envs.replays else None
        seconds = {"act": act_s, "step": rolling - act_s, "snapshot": time.perf_counter() - start - rolling}
        return Report(shard, iteration, self._episodes(ended, infos), after, taken, started, seconds), fragment

    def _taken(self, fragment: Fragment, underway: Underway) -> Array:
        """The actions [T, N, ...] of env copies; of several agents [T, N, A, ...]."""
        action = fragment.action
        return compact(action.reshape(len(action), *underway.returns.shape, *action.shape[2:]))

    def _episodes(self, ended: list[tuple[Array, Array]], infos: list[dict[str, float]]) -> Episodes:
        """Of the returns and lengths that each step's ended episodes had, and of all their last infos."""
        returns, agents = np.concatenate([returns for returns, _ in ended]), self.policy.obs_layout.agents
        return Episodes(
            returns=returns.sum(axis=1) if agents else returns,
            lengths=np.concatenate([lengths for _, lengths in ended]),
            infos={name: np.array([info[name] for info in infos]) for name in self.env.report},
            agents=dict(zip(agents, returns.T, strict=True)) if agents else {},
        )
