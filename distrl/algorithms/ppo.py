"""Proximal policy optimisation with a clipped surrogate (Schulman et al. 2017, arXiv:1707.06347).

    for every iteration:
        values and GAE advantages of the S x T x N steps, with the weights of now
        for every epoch, for every minibatch in a fresh random order:
            minimise  L_clip + value_coef L_value - entropy_coef H

The ratio is taken against the log-probabilities that the runners acted with, so a batch that is one version old
(schedule.lag: 1) is corrected for like any other off-policy step inside the trust region. How far an update has gone
(approx_kl, target_kl, adaptive_kl) is measured from the policy that it began with; how far that already was from the
policy that acted is staleness_kl.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distrl.acting.policies import StochasticPolicy
from distrl.algorithms.actor_critic import ActorCritic, ActorCriticSettings
from distrl.algorithms.actor_critic import initial_weights as initial_weights
from distrl.algorithms.actor_critic import make_policy as make_policy
from distrl.algorithms.recurrent import Recurrent
from distrl.errors import UserError
from distrl.learning.losses import approximate_kl, clipped_surrogate, explained_variance, normalised, value_loss
from distrl.learning.schedules import KLControl, Rate, Schedule
from distrl.seeding import stream
from distrl.settings import Config
from distrl.types import Fragment

if TYPE_CHECKING:
    import torch

NEEDS_TORCH = True


class Settings(ActorCriticSettings):
    name: Literal["ppo"] = Field(description="proximal policy optimisation")
    epochs: int = Field(default=4, ge=1, description="how often an update goes through the steps of an iteration")
    minibatch_size: int = Field(default=512, ge=2, description="steps of a minibatch; divides those of an iteration")
    clip: Rate = Field(default=Schedule(start=0.2), description="epsilon of the clipped surrogate")
    value_clip: float | None = Field(
        default=None,
        gt=0,
        description="how far the critic may move in an update before that pays no more; null: anyhow",
    )
    target_kl: float | None = Field(
        default=None, gt=0, description="stop the epochs of an update beyond 1.5 times this KL"
    )
    adaptive_kl: float | None = Field(default=None, gt=0, description="move the lr to keep an update's KL near this")

    def minibatch_rows(self, config: Config) -> int:
        return self.minibatch_size // (1 if self.memory is None else config.rollout.steps)

    def check(self, config: Config) -> None:
        super().check(config)
        batch = config.rollout.env_steps
        if batch % self.minibatch_size:
            raise UserError(
                f"algorithm.minibatch_size is {self.minibatch_size}, which does not divide the {batch} steps of an iteration "
                f"(rollout.shards x envs_per_shard x steps). Take a divisor, such as {math.gcd(batch, self.minibatch_size)}."
            )
        if self.memory is not None and self.minibatch_size % config.rollout.steps:
            raise UserError(
                f"algorithm.minibatch_size is {self.minibatch_size}; with algorithm.memory it must be a multiple of "
                f"rollout.steps={config.rollout.steps}, as sequences are learnt from whole. Take such a multiple, or {batch}."
            )
        if self.adaptive_kl is not None and self.lr.end is not None:
            raise UserError(
                "algorithm.adaptive_kl moves the learning rate itself: give a number that it begins with, such as "
                f"algorithm.lr={self.lr.start:g}."
            )


class PPO(ActorCritic):
    """`distrl.types.Algorithm`."""

    def __init__(self, settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> None:
        super().__init__(settings, policy, seed, device)
        self.settings = settings
        self.control = KLControl(settings.adaptive_kl, settings.lr.start)  # of the learning rates
        self.parts.append(self.control)

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        s, torch = self.settings, self.torch
        batch = self.batch(fragments)
        env_steps = iteration * sum(f.env_steps for f in fragments)
        clip, entropy_coef = s.clip(progress, env_steps), s.entropy_coef(progress, env_steps)
        rates = {name: rate * self.control.factor for name, rate in self.rates(progress, env_steps).items()}
        old_value = self.scale.apply(batch.value)  # what the critic gives out, which its change is measured from
        if s.normalize_value:
            self.scale.update(batch.target)
        per_step = (old_value, self.scale.apply(batch.target), batch.advantage)
        columns = (batch.obs, batch.action, batch.acted, *(self.tensor(x).flatten() for x in per_step))

        count, size = len(batch.obs), s.minibatch_size
        epochs = []
        for epoch in range(s.epochs):
            order = self.tensor(batch.order(stream(self.seed, "minibatch", iteration, epoch), size))
            shuffled = [column.index_select(0, order) for column in columns]
            if s.normalize_advantage:
                shuffled[-1] = normalised(shuffled[-1], size)
            parts = []
            for minibatch in zip(*(torch.split(column, size) for column in shuffled), strict=True):
                obs, action, acted, old, target, advantage = minibatch
                policy, value, pull = self.traced(obs)
                log_prob = policy.log_prob(action)
                surrogate, by_log_prob = clipped_surrogate(log_prob - acted, advantage, clip)
                squares, by_value = value_loss(value, target, old, s.value_clip)
                pull(policy.gradient(action, by_log_prob, -entropy_coef / size), s.value_coef * by_value)
                norm = self.optimizer.descend(rates)
                parts.append((surrogate, squares, policy.entropy(), log_prob, norm[None]))
            surrogate, squares, entropy, log_prob, norm = (torch.cat(x) for x in zip(*parts, strict=True))
            kl = approximate_kl(log_prob - batch.began.index_select(0, order))
            clipped = ((log_prob - shuffled[2]).expm1().abs() > clip).float()
            epochs.append(torch.stack([x.mean() for x in (-surrogate, 0.5 * squares, entropy, kl, clipped, norm)]))
            if s.target_kl is not None and kl.item() > 1.5 * s.target_kl:
                break
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
        metrics = dict(zip(names, torch.stack(epochs).mean(0).tolist(), strict=True))
        self.control.adapt(metrics["approx_kl"])
        return metrics | {
            "staleness_kl": batch.staleness,
            "explained_variance": explained_variance(batch.value, batch.target),
            "learning_rate": rates["actor"],
            "clip_range": clip,
            "minibatches": float(len(epochs) * count // size),
        }


class RecurrentPPO(Recurrent, PPO):
    """PPO whose minibatches are of whole sequences."""


def make(settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> PPO:
    return (PPO if settings.memory is None else RecurrentPPO)(settings, policy, seed, device)
