"""Running statistics of observations and returns, by which what an algorithm learns from is of order one.

As in VecNormalize (Stable-Baselines3), but by whole iterations, so that they are a function of the run and not of who
stepped which env copy first. NumPy alone: an algorithm that needs no torch learns without it here, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import numpy as np

from distrl.acting.make import initial_weights, of_member
from distrl.acting.normalise import EPSILON, LIMIT, NormalisedPolicy, without
from distrl.acting.opponents import OpposedPolicy
from distrl.acting.team import TeamPolicy
from distrl.errors import UserError
from distrl.fragments import unstacked
from distrl.learning.league import League
from distrl.learning.slices import WHOLE, Slices
from distrl.learning.team import Team
from distrl.registry import algorithm_module
from distrl.settings import Config
from distrl.types import Algorithm, Array, Arrays, Fragment, OnPolicy, Origin, Policy


class Moments:
    """Mean and variance [D] of all rows so far, float64. Before the first they are 0 and 1.

    Those of another b rows x are merged into those of a rows as of two populations (Chan et al. 1979):

        d        = mean(x) - mean,    w = b / (a + b)
        variance = (1 - w) variance + w var(x) + w (1 - w) d^2
        mean     = mean + w d
    """

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.variance = 0, np.zeros(size), np.ones(size)

    def update(self, rows: Array) -> None:
        """`rows`: [B, D] float64"""
        self.count += len(rows)
        share, apart = len(rows) / self.count, rows.mean(axis=0) - self.mean
        self.variance = (1 - share) * self.variance + share * rows.var(axis=0) + share * (1 - share) * apart**2
        self.mean = self.mean + share * apart

    def begin(self, count: int, mean: Array, scale: Array) -> None:
        """Go on from what `mean` and `scale` [D] were after so many rows."""
        self.count, self.mean = count, mean.astype(np.float64)
        self.variance = np.maximum(1 / scale.astype(np.float64) ** 2 - EPSILON, 0.0)

    @property
    def scale(self) -> Array:
        """1 / deviation, [D]"""
        scale: Array = 1 / np.sqrt(self.variance + EPSILON)
        return scale

    def state(self, name: str) -> Arrays:
        return {
            f"{name}.count": np.array(self.count),
            f"{name}.mean": self.mean,
            f"{name}.variance": self.variance,
        }

    def load_state(self, name: str, state: Arrays) -> None:
        self.count = int(state[f"{name}.count"])
        self.mean, self.variance = state[f"{name}.mean"].copy(), state[f"{name}.variance"].copy()


class ScaledRewards:
    """Rewards over the deviation of the discounted return so far, of every env copy:

        R_t = gamma R_(t-1) + r_t,    0 before an episode        r_t / sqrt(var(R) + EPSILON), clipped to +-LIMIT

    They are not centred, which would pay for, or tax, being alive.
    """

    def __init__(self, gamma: float, shards: int, copies: int) -> None:
        self.gamma, self.moments = gamma, Moments(1)
        self.returns = np.zeros((shards, copies))  # R of the episodes under way

    def update(self, fragments: Sequence[Fragment]) -> None:
        """Count the returns of an iteration; those of a shard follow upon its fragment before."""
        seen = []
        for fragment in fragments:
            running, ended = self.returns[fragment.shard], fragment.ended
            for t in range(len(ended)):
                running = self.gamma * running + fragment.reward[t]
                seen.append(running)
                running = np.where(ended[t], 0.0, running)
            self.returns[fragment.shard] = running
        self.moments.update(np.concatenate(seen)[:, None])

    def __call__(self, reward: Array) -> Array:
        scaled: Array = np.clip(reward * self.moments.scale, -LIMIT, LIMIT)
        return scaled

    def state(self) -> Arrays:
        return {"normalize.returns": self.returns} | self.moments.state("normalize.return")

    def load_state(self, state: Arrays) -> None:
        self.returns = state["normalize.returns"].copy()
        self.moments.load_state("normalize.return", state)


class Normalised:
    """An algorithm that is shown normalised observations and rewards. `distrl.types.OnPolicy`.

    Observations are normalised by the statistics of the version that an update begins with, and counted behind it: they are
    those that the version acted by, so that what the algorithm calls the policy of now is the policy of now, and the age of
    a batch is measured, and corrected for, as without them. The next version acts by the new ones. Counted are those
    that were acted upon, each once. Rewards, which nobody acts by, are scaled by statistics that they are in already.
    """

    def __init__(self, config: Config, policy: Policy, algorithm: OnPolicy, seen: int = 0) -> None:
        """`policy`: with its first weights, and with statistics of `seen` rows; it is kept."""
        self.algorithm = algorithm
        self.policy = policy if isinstance(policy, NormalisedPolicy) else None
        self.seen = Moments(0 if self.policy is None else self.policy.size)
        if self.policy is not None and seen:
            self.seen.begin(seen, self.policy.mean, self.policy.scale)
        gamma, rollout = config.algorithm.discount, config.rollout
        self.rewards: ScaledRewards | None = None
        if config.normalize.reward:
            assert gamma is not None  # see NormalizeSettings.check
            self.rewards = ScaledRewards(gamma, rollout.shards, rollout.envs_per_shard * policy.obs_layout.rows)

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        given = fragments
        if self.rewards is not None:
            self.rewards.update(given)
            given = [replace(f, reward=self.rewards(f.reward)) for f in given]
        if self.policy is None:
            return self.algorithm.update(given, iteration, progress)
        policy, given = self.policy, [unstacked(f) for f in given]
        rows = [_rows(policy, f.obs[:-1]) for f in given]
        policy.mean, policy.scale = self._statistics()
        shown = [replace(f, obs=policy.normalised(f.obs), final_obs=policy.normalised(f.final_obs)) for f in given]
        metrics = self.algorithm.update(shown, iteration, progress)
        self.seen.update(np.concatenate(rows))
        return metrics

    def _statistics(self) -> tuple[Array, Array]:
        """Mean and scale [D] as they travel."""
        return self.seen.mean.astype(np.float32), self.seen.scale.astype(np.float32)

    def weights(self) -> Array:
        weights = self.algorithm.weights()
        return weights if self.policy is None else self.policy.join(weights, *self._statistics())

    def state(self) -> Arrays:
        seen = {} if self.policy is None else self.seen.state("normalize.obs")
        rewards = {} if self.rewards is None else self.rewards.state()
        return self.algorithm.state() | seen | rewards

    def load_state(self, state: Arrays) -> None:
        self.algorithm.load_state(state)
        if self.policy is not None:
            self.seen.load_state("normalize.obs", state)
        if self.rewards is not None:
            self.rewards.load_state(state)


def _rows(policy: NormalisedPolicy, obs: Array) -> Array:
    """What is normalised of observations [T, N, ...], [T N, D] float64."""
    parts = [part.of(obs).reshape(-1, prod(part.shape)) for part in policy.parts]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def make_algorithm(
    config: Config, policy: Policy, device: Any, origin: Origin | None = None, slices: Slices = WHOLE
) -> Algorithm:
    """What learns, for the policy of `distrl.acting.make.make_policy`.

    Args:
        device: None where no torch is needed
        origin: what it begins with; None: fresh weights
        slices: of its minibatches, if it has any (`AlgorithmSettings.minibatch_rows`)
    Raises:
        UserError: the algorithm begins with weights of its own nevertheless
    """
    if isinstance(policy, TeamPolicy):
        return _make_team(config, policy, device, origin, slices)
    if isinstance(policy, OpposedPolicy):
        return League(config, policy, cast(OnPolicy, make_algorithm(config, policy.own, device, origin, slices)))
    module = algorithm_module(config.algorithm.name)
    vector = initial_weights(config, policy) if origin is None else origin.vector
    policy = copy.deepcopy(policy)  # in one process it would be shared
    policy.load(vector)
    algorithm = module.make(config.algorithm, without(policy), config.seed, device)
    if slices.count > 1:
        cast(Any, algorithm).slices = slices
    if config.normalize.obs or config.normalize.reward:
        seen = 0 if origin is None else origin.env_steps
        algorithm = Normalised(config, policy, cast(OnPolicy, algorithm), seen)
    if origin is not None and algorithm.weights().tobytes() != vector.tobytes():
        raise UserError(
            f"init_from: {config.algorithm.name} does not begin with the weights that it is given. Its make() must take them "
            "from the policy, see distrl.registry.AlgorithmModule; or leave init_from out."
        )
    return algorithm


def _make_team(config: Config, policy: TeamPolicy, device: Any, origin: Origin | None, slices: Slices) -> Algorithm:
    origins: list[Origin | None] = [None] * len(policy.members)
    if origin is not None:
        origins = [replace(origin, vector=vector) for vector in policy.split(origin.vector)]
    algorithms = [
        make_algorithm(of_member(config, number), member.policy, device, own, slices)
        for number, (member, own) in enumerate(zip(policy.members, origins, strict=True))
    ]
    return Team(policy, algorithms)
