"""Rolling shards with a policy. Knows nothing of learning, Ray or files; imports no torch."""

from __future__ import annotations

import copy
import time
from typing import Literal

import numpy as np

from distrl.acting.network import single_threaded
from distrl.acting.policies import policy_input
from distrl.envs.shard import Shard, make_shard
from distrl.seeding import stream
from distrl.settings import EnvSettings, RolloutSettings
from distrl.types import Array, Arrays, Episodes, Fragment, Policy, Report, Snapshot, Weights
from distrl.workers.versions import Message, whole

Before = Snapshot | Literal["live"] | None


class Runner:
    """Rolls any fragment of any shard. Live shards are only a cache: a snapshot always suffices."""

    def __init__(self, env: EnvSettings, rollout: RolloutSettings, seed: int, policy: Policy) -> None:
        single_threaded()
        self.env, self.settings, self.seed, self.policy = (
            env,
            rollout,
            seed,
            copy.deepcopy(policy),
        )  # in one process it would be shared
        self.version: int | None = None
        self.shards: dict[int, tuple[Shard, Snapshot]] = {}
        self.steps = 0  # a heartbeat, with where it beats
        self.shard, self.iteration, self.step, self.busy = -1, -1, -1, False

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
        """
        self.shard, self.iteration, self.step, self.busy = shard, iteration, 0, True
        try:
            live, state, exact = self._shard(shard, iteration, before)
            self._load(message, keyframe)
            report, fragment = self._roll(live, state, message.version)
        except Exception as error:
            self.shards.pop(shard, None)
            error.add_note(f"while rolling step {self.step} of fragment {iteration} of shard {shard} of {self.env.id}")
            raise
        finally:
            self.busy = False
        report.unfaithful = not exact
        self.shards[shard] = live, report.snapshot
        return report, fragment

    def progress(self) -> tuple[int, str]:
        """Steps taken so far, and where it is now ('' when idle): what a watchdog needs to tell slow from hung."""
        if not self.busy:
            return self.steps, ""
        live = self.shards.get(self.shard)
        copy = "" if live is None or live[0].current < 0 else f", env copy {live[0].current} of the shard"
        return self.steps, f"step {self.step} of fragment {self.iteration} of shard {self.shard}{copy}"

    def _load(self, message: Message, keyframe: Weights | None) -> None:
        if message.version != self.version:
            self.policy.load(whole(message, keyframe).vector)
            self.version = message.version

    def _shard(self, shard: int, iteration: int, before: Before) -> tuple[Shard, Snapshot, bool]:
        cached = self.shards.get(shard)
        if cached is not None and cached[1].iteration == iteration:
            return *cached, True
        if before == "live":
            raise LookupError(f"shard {shard} is not before fragment {iteration} here")
        if cached is not None:
            cached[0].close()
        n = self.settings.envs_per_shard
        live = make_shard(self.env, self.seed, shard, n)
        if before is None:
            state = Snapshot(iteration, np.zeros(n), np.zeros(n, np.int64), live.snapshot())
            exact = True
        else:
            rebuilt = live.restore(before.env)
            state = Snapshot(iteration, before.returns * rebuilt, before.lengths * rebuilt, before.env)
            exact = bool(rebuilt.all())
        self.shards[shard] = live, state
        return live, state, exact

    def _roll(self, live: Shard, state: Snapshot, version: int) -> tuple[Report, Fragment]:
        shard, iteration, t_max, n = self.shard, self.iteration, self.settings.steps, self.settings.envs_per_shard
        noise = self.policy.draw(stream(self.seed, "action", shard, iteration), t_max, n)
        stack = live.frame_stack
        seen = policy_input(live.obs)  # a whole stack where `obs` holds single frames
        obs_dtype = seen.dtype
        if stack:
            obs = np.empty((stack + t_max, n, *live.obs.shape[2:]), obs_dtype)
            obs[:stack] = live.obs.swapaxes(0, 1)
        else:
            obs = np.empty((1 + t_max, *live.obs.shape), obs_dtype)
            obs[0] = live.obs
        newest = obs[stack:] if stack else obs[1:]
        reward = np.empty((t_max, n), np.float64)
        terminated, truncated = np.empty((t_max, n), bool), np.empty((t_max, n), bool)
        actions, extras = [], []
        final_obs: list[Array] = []
        infos: list[dict[str, float]] = []
        returns, lengths = state.returns.copy(), state.lengths.copy()
        ended_returns, ended_lengths = [], []
        acting = 0.0
        started, start = time.time(), time.perf_counter()
        for t in range(t_max):
            self.step = t
            before_act = time.perf_counter()
            action, extra = self.policy.act(seen, noise[t])
            acting += time.perf_counter() - before_act
            result = live.step(action)
            self.steps += n
            actions.append(action)
            extras.append(extra)
            if stack:
                seen = policy_input(result.obs)
                newest[t] = seen[:, -1]
            else:
                newest[t] = result.obs
                seen = newest[t]
            reward[t], terminated[t], truncated[t] = result.reward, result.terminated, result.truncated
            returns += result.reward
            lengths += 1
            if len(result.final_obs):
                ended = result.terminated | result.truncated
                last = np.asarray(result.final_obs, obs_dtype)
                final_obs.append(last[:, -1] if stack else last)
                infos += result.infos
                ended_returns.append(returns[ended])
                ended_lengths.append(lengths[ended])
                returns[ended], lengths[ended] = 0.0, 0
        rolling = time.perf_counter() - start
        stacked: Arrays = {key: np.stack([extra[key] for extra in extras]) for key in extras[0]}
        fragment = Fragment(
            shard=shard,
            iteration=iteration,
            version=version,
            obs=obs,
            action=np.stack(actions),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=np.concatenate([np.zeros((0, *obs.shape[2:]), obs_dtype), *final_obs]),
            extras=stacked,
            stack=stack,
        )
        episodes = Episodes(
            returns=np.concatenate([np.zeros(0), *ended_returns]),
            lengths=np.concatenate([np.zeros(0, np.int64), *ended_lengths]),
            infos={name: np.array([info[name] for info in infos]) for name in self.env.report},
        )
        snapshot = Snapshot(iteration + 1, returns, lengths, live.snapshot())
        seconds = {"act": acting, "step": rolling - acting, "snapshot": time.perf_counter() - start - rolling}
        return Report(shard, iteration, episodes, snapshot, started, seconds), fragment
