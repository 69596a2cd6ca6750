"""Synchronous advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, in the synchronous form of OpenAI 2017).

    for every iteration:
        values and GAE advantages of the S x T x N steps, with the weights of now
        for every minibatch (by default there is one: all steps):
            minimise  -E[ log pi(a|s) A ] + value_coef L_value - entropy_coef H

A batch that is one version old (schedule.lag: 1), or of any age (schedule.kind: async), is corrected by V-trace
(Espeholt et al. 2018, arXiv:1802.01561): that is IMPALA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from distrl.acting.policies import StochasticPolicy
from distrl.algorithms.actor_critic import ActorCritic, ActorCriticSettings
from distrl.algorithms.actor_critic import initial_weights as initial_weights
from distrl.algorithms.actor_critic import make_policy as make_policy
from distrl.algorithms.recurrent import Recurrent
from distrl.errors import UserError
from distrl.learning.losses import explained_variance, normalised, policy_gradient, value_loss
from distrl.learning.schedules import Rate, Schedule
from distrl.seeding import stream
from distrl.settings import Config
from distrl.types import Fragment

if TYPE_CHECKING:
    import torch

NEEDS_TORCH = True


class Settings(ActorCriticSettings):
    name: Literal["a2c"] = Field(description="synchronous advantage actor-critic")
    lr: Rate = Field(default=Schedule(start=7e-4, end=0.0), description="of the actor, and of a shared body")
    normalize_advantage: bool = Field(default=False, description="of a minibatch: to mean 0, deviation 1")
    vtrace: bool = Field(default=True, description="correct advantages for the age of the weights that acted (V-trace)")
    optimizer: Literal["adam", "rmsprop"] = Field(default="rmsprop", description="of actor and critic")
    minibatches: int = Field(default=1, ge=1, description="gradient steps of an iteration, each on a part of its steps")

    def minibatch_rows(self, config: Config) -> int:
        return config.rollout.env_steps // self.minibatches // (1 if self.memory is None else config.rollout.steps)

    def check(self, config: Config) -> None:
        super().check(config)
        if config.rollout.env_steps % self.minibatches:
            raise UserError(
                f"algorithm.minibatches is {self.minibatches}, which does not divide the {config.rollout.env_steps} steps of "
                "an iteration (rollout.shards x envs_per_shard x steps). Take a divisor."
            )
        copies = config.rollout.shards * config.rollout.envs_per_shard
        if self.memory is not None and copies % self.minibatches:
            raise UserError(
                f"algorithm.minibatches is {self.minibatches}; with algorithm.memory it must divide the {copies} env copies "
                "(rollout.shards x envs_per_shard), as sequences are learnt from whole. Take a divisor, such as 1."
            )


class A2C(ActorCritic):
    """`distrl.types.Algorithm`."""

    def __init__(self, settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> None:
        super().__init__(settings, policy, seed, device)
        self.settings = settings

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        s, torch = self.settings, self.torch
        batch = self.batch(fragments)
        env_steps = iteration * sum(f.env_steps for f in fragments)
        rates, entropy_coef = self.rates(progress, env_steps), s.entropy_coef(progress, env_steps)
        if s.normalize_value:
            self.scale.update(batch.target)
        per_step = (self.scale.apply(batch.target), batch.advantage)
        columns = [batch.obs, batch.action, *(self.tensor(x).flatten() for x in per_step)]
        count = len(batch.obs)
        if s.minibatches > 1:
            whole = batch.order(stream(self.seed, "minibatch", iteration), count // s.minibatches)
            order = self.tensor(whole[: count // s.minibatches * s.minibatches])
            columns = [column.index_select(0, order) for column in columns]
        if s.normalize_advantage:
            columns[-1] = normalised(columns[-1], count // s.minibatches)
        parts = []
        for minibatch in zip(*(torch.split(column, count // s.minibatches) for column in columns), strict=True):
            obs, action, target, advantage = minibatch
            policy, value, pull = self.traced(obs)
            gain, by_log_prob = policy_gradient(policy.log_prob(action), advantage)
            squares, by_value = value_loss(value, target, value, None)
            pull(policy.gradient(action, by_log_prob, -entropy_coef / len(value)), s.value_coef * by_value)
            norm = self.optimizer.descend(rates)
            parts.append((gain, squares, policy.entropy(), norm[None]))
        gain, squares, entropy, norm = (torch.cat(x) for x in zip(*parts, strict=True))
        means = torch.stack([x.mean() for x in (-gain, 0.5 * squares, entropy, norm)])
        names = ("policy_loss", "value_loss", "entropy", "grad_norm")
        return dict(zip(names, means.tolist(), strict=True)) | {
            "staleness_kl": batch.staleness,
            "explained_variance": explained_variance(batch.value, batch.target),
            "learning_rate": rates["actor"],
        }


class RecurrentA2C(Recurrent, A2C):
    """A2C whose minibatches are of whole sequences."""


def make(settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> A2C:
    return (A2C if settings.memory is None else RecurrentA2C)(settings, policy, seed, device)
