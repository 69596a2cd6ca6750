"""Playing episodes in envs of their own with a version of the weights. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distrl.acting.network import single_threaded
from distrl.acting.opponents import OUTCOMES, OpposedPolicy, acting_in
from distrl.envs.journal import Underway
from distrl.envs.shard import make_shard
from distrl.heartbeat import HEART, at_work
from distrl.seeding import derive, stream
from distrl.settings import EnvSettings
from distrl.types import Array, Evaluation, Policy, Spread, Weights
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
        Raises:
            Left: this process is to end
        """
        with HEART.leavable():
            return self._evaluate(message, env_steps, episodes, greedy, number, keyframe)

    def _evaluate(
        self, message: Message, env_steps: int, episodes: int, greedy: bool, number: int, keyframe: Weights | None
    ) -> Evaluation:
        self.number, copies = number, min(episodes, COPIES)
        seed = derive(self.seed, "evaluation", number)
        shard = make_shard(self.env, seed, 0, copies, self.policy.obs_layout)
        self.policy.load(whole(message, keyframe).vector)
        wanted = np.full(copies, episodes // copies) + (np.arange(copies) < episodes % copies)
        played = np.zeros(copies, np.int64)
        agents, rows = self.policy.obs_layout.agents, self.policy.obs_layout.rows
        underway = Underway(copies, len(agents))
        done: list[tuple[int, int, Array, int, dict[str, float]]] = []  # (round, env copy, returns, length, infos)
        rng, acting = stream(seed, "action"), acting_in(self.policy, shard, copies, evaluating=True)
        try:
            while (played < wanted).any():
                obs = shard.obs.astype(self.policy.obs_layout.dtype, copy=False)
                if greedy:
                    action = acting.greedy(obs)
                else:
                    action, _ = acting.act(obs, self.policy.draw(rng, 1, copies * rows)[0])
                step = shard.step(action)
                HEART.beat()
                infos = iter(step.infos)
                ended = step.terminated | step.truncated
                acting.forget(ended)
                over = np.flatnonzero(ended.reshape(copies, rows).all(axis=1)).tolist()
                for copy, returns, length in zip(over, *underway.count(step), strict=True):
                    info = next(infos, {})
                    if played[copy] < wanted[copy]:
                        done.append((int(played[copy]), copy, returns, int(length), info))
                    played[copy] += 1
        finally:
            shard.close()
        done.sort(key=lambda d: d[:2])
        by_agent = np.array([d[2] for d in done]).reshape(len(done), rows)
        result = Evaluation(
            message.version,
            env_steps,
            greedy,
            len(done),
            Spread.of(by_agent.sum(axis=1).tolist()),
            Spread.of([d[3] for d in done]),
            {name: Spread.of([d[4][name] for d in done]) for name in self.env.report},
            {name: Spread.of(returns.tolist()) for name, returns in zip(agents, by_agent.T, strict=False)},
        )
        return judged(result, self.policy, [d[0] * copies + d[1] for d in done], by_agent)


def judged(result: Evaluation, policy: Policy, numbers: Sequence[int], by_agent: Array) -> Evaluation:
    """The record with what the trained policy reached, and against whom, where it has opponents.

    Args:
        numbers: of the episodes, which say who sat where
        by_agent: their returns [E, A]
    """
    if not isinstance(policy, OpposedPolicy):
        return result
    met = [policy.pairing(number) for number in numbers]
    own = np.array([returns[policy.seats[pairing.seat]].sum() for returns, pairing in zip(by_agent, met, strict=True)])
    found: dict[str, dict[str, list[float]]] = {}  # returns by opponent and seat
    for pairing, reached in zip(met, own.tolist(), strict=True):
        found.setdefault(pairing.name, {}).setdefault(pairing.seat, []).append(reached)
    against = {
        name: {"mean": {seat: float(np.mean(games)) for seat, games in by_seat.items()}}
        for name, by_seat in found.items()
    }
    if np.allclose(by_agent.sum(axis=1), 0.0):  # what one wins the others lose
        for name, by_seat in found.items():
            signs = {seat: np.sign(games) for seat, games in by_seat.items()}
            against[name] |= {
                outcome: {seat: float(np.mean(of_seat == sign)) for seat, of_seat in signs.items()}
                for outcome, sign in zip(OUTCOMES, (1, 0, -1), strict=True)
            }
    by_seat = {seat: [x for p, x in zip(met, own.tolist(), strict=True) if p.seat == seat] for seat in policy.seats}
    seats = {seat: Spread.of(values) for seat, values in by_seat.items() if values}
    elo = policy.rating if len(policy.past) else None
    return replace(result, returns=Spread.of(own.tolist()), agents=seats, against=against, elo=elo)
