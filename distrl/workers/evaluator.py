"""Playing episodes in envs of their own with a version of the weights. Imports no torch."""

from __future__ import annotations

import copy

import numpy as np

from distrl.acting.episodes import Acting
from distrl.acting.network import single_threaded
from distrl.envs.shard import make_shard
from distrl.heartbeat import HEART, at_work
from distrl.seeding import derive, stream
from distrl.settings import EnvSettings
from distrl.types import Evaluation, Policy, Spread, Weights
from distrl.workers.versions import Message, whole

COPIES = 32  # at most so many env copies play side by side


@at_work
class Evaluator:
    def __init__(self, env: EnvSettings, seed: int, policy: Policy) -> None:
        single_threaded()
        self.env, self.seed, self.policy = env, seed, copy.deepcopy(policy)  # in one process it would be shared
        self.number = -1

    def where(self) -> str:
        """What it is playing, for a watchdog."""
        return f"evaluation {self.number} of {self.env.id}{HEART.of_copy}"

    def evaluate(
        self,
        message: Message,
        env_steps: int,
        episodes: int,
        greedy: bool,
        number: int,
        keyframe: Weights | None = None,
    ) -> Evaluation:
        """`episodes` episodes, the same number (give or take one) on every env copy, so that short ones are not favoured.

        Args:
            env_steps: of training behind the weights
            number: of this evaluation in the run; with the seed it fixes the episodes.
            message, keyframe: the weights to act by, as they travel; see distrl.workers.versions
        """
        self.number, copies = number, min(episodes, COPIES)
        seed = derive(self.seed, "evaluation", number)
        shard = make_shard(self.env, seed, 0, copies, self.policy.obs_layout)
        self.policy.load(whole(message, keyframe).vector)
        wanted = np.full(copies, episodes // copies) + (np.arange(copies) < episodes % copies)
        played = np.zeros(copies, np.int64)
        current, lengths = np.zeros(copies), np.zeros(copies, np.int64)
        done: list[tuple[int, int, float, int, dict[str, float]]] = []  # (round, env copy, return, length, infos)
        rng, acting = stream(seed, "action"), Acting(self.policy, copies)
        try:
            while (played < wanted).any():
                obs = shard.obs.astype(self.policy.obs_layout.dtype, copy=False)
                if greedy:
                    action = acting.greedy(obs)
                else:
                    action, _ = acting.act(obs, self.policy.draw(rng, 1, copies)[0])
                step = shard.step(action)
                HEART.beat()
                current += step.reward
                lengths += 1
                infos = iter(step.infos)
                ended = step.terminated | step.truncated
                acting.forget(ended)
                for copy in np.flatnonzero(ended).tolist():
                    info = next(infos, {})
                    if played[copy] < wanted[copy]:
                        done.append((int(played[copy]), copy, float(current[copy]), int(lengths[copy]), info))
                    played[copy] += 1
                    current[copy], lengths[copy] = 0.0, 0
        finally:
            shard.close()
        done.sort(key=lambda d: d[:2])
        return Evaluation(
            message.version,
            env_steps,
            greedy,
            len(done),
            Spread.of([d[2] for d in done]),
            Spread.of([d[3] for d in done]),
            {name: Spread.of([d[4][name] for d in done]) for name in self.env.report},
        )
