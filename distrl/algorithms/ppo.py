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
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from distrl.acting.policies import StochasticPolicy
from distrl.acting.spaces import NetworkSettings, action_distribution, stochastic_policy
from distrl.errors import UserError
from distrl.fragments import true_successors, unstacked
from distrl.learning.losses import approximate_kl, clipped_surrogate, explained_variance, gae, value_loss
from distrl.learning.scale import Scale
from distrl.seeding import stream
from distrl.settings import Config, Fraction
from distrl.types import Array, Arrays, EnvInfo, Fragment

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from distrl.learning.distributions import Bound

NEEDS_TORCH = True
AT_ONCE = 8192  # observations that a network is asked for without gradients, at most
Schedule = Literal["constant", "linear"]


class Settings(NetworkSettings):
    name: Literal["ppo"]
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    epochs: int = Field(default=4, ge=1)
    minibatch_size: int = Field(default=512, ge=2)
    lr: float = Field(default=3e-4, gt=0, description="of the actor, and of a shared body")
    critic_lr: float | None = Field(default=None, gt=0, description="null: as lr")
    lr_schedule: Schedule = "linear"
    clip: float = Field(default=0.2, gt=0, description="epsilon of the clipped surrogate")
    clip_schedule: Schedule = "constant"
    value_clip: float | None = Field(default=None, gt=0)
    value_coef: float = Field(default=0.5, ge=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    max_grad_norm: float | None = Field(default=0.5, gt=0, description="of the actor's gradient, and of the critic's")
    normalize_advantage: bool = True
    normalize_value: bool = Field(default=True, description="the critic learns targets scaled to mean 0, deviation 1")
    target_kl: float | None = Field(
        default=None, gt=0, description="stop the epochs of an update beyond 1.5 times this KL"
    )
    adaptive_kl: float | None = Field(default=None, gt=0, description="move the lr to keep an update's KL near this")
    action_probs: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="of the untrained policy, of Discrete actions; null: all alike"
    )
    log_std_init: float = Field(
        default=0.0, description="of Box actions: the first log-deviation; 0 is half the range of a bounded component"
    )
    state_dependent_std: bool = Field(default=False, description="of Box actions: the deviation depends on the state")
    squash: bool = Field(default=False, description="bounded Box actions: tanh of a Gaussian, instead of a clipped one")
    shared_body: bool = Field(default=False, description="actor and critic share all layers but the heads")

    def check(self, config: Config) -> None:
        batch = config.rollout.env_steps
        if batch % self.minibatch_size:
            raise UserError(
                f"algorithm.minibatch_size is {self.minibatch_size}, which does not divide the {batch} steps of an iteration "
                f"(rollout.shards x envs_per_shard x steps). Take a divisor, such as {math.gcd(batch, self.minibatch_size)}."
            )
        for name in ("lr_schedule", "clip_schedule"):
            if getattr(self, name) == "linear" and config.stop.env_steps is None:
                raise UserError(
                    f"algorithm.{name} is 'linear', which needs stop.env_steps to know where it ends. Set one."
                )
        if self.adaptive_kl is not None and self.lr_schedule != "constant":
            raise UserError(
                "algorithm.adaptive_kl sets the learning rate itself: set algorithm.lr_schedule=constant with it."
            )
        if self.shared_body and self.critic_lr is not None:
            raise UserError(
                "algorithm.critic_lr needs a critic of its own: set algorithm.shared_body=false, or leave it out."
            )


def make_policy(settings: Settings, info: EnvInfo) -> StochasticPolicy:
    """The acting policy for an env's spaces. Raises `UserError` for spaces that nothing here can take."""
    distribution = action_distribution(
        info, settings.action_probs, settings.log_std_init, settings.state_dependent_std, settings.squash
    )
    return stochastic_policy(info, distribution, **settings.network)


class PPO:
    """`distrl.types.Algorithm`; the actor's parameters and the critic's each lie in one flat vector."""

    def __init__(self, settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> None:
        import torch  # here and not above: settings are checked, and runners started, without it

        from distrl.learning.distributions import bind
        from distrl.learning.encoders import Masks
        from distrl.learning.networks import Network
        from distrl.learning.optimizer import Adam, FlatParameters

        self.torch = torch
        self.settings, self.seed, self.device = settings, seed, device
        self.bind, self.distribution, self.obs_shape = bind, policy.distribution, policy.obs_layout.shape
        self.masks = Masks(policy.obs_layout).to(device)
        spec, value_spec = policy.network.spec, replace(policy.network.spec, outputs=1, free=0)
        self.actor = Network(spec, initial_weights(settings, policy, seed))
        self.critic = Network(value_spec, value_spec.initial(stream(seed, "critic"), head_gain=1.0))
        critic_parts: list[nn.Module] = [self.critic.head] if settings.shared_body else [self.critic]
        self.parameters = {
            "actor": FlatParameters([self.actor], device),
            "critic": FlatParameters(critic_parts, device),
        }
        self.optimizer = Adam(self.parameters, 1e-5, settings.max_grad_norm)
        self.lr = settings.lr
        self.scale = Scale()  # of the value targets

    def forward(self, obs: Tensor) -> tuple[Bound, Tensor]:
        """pi(.|s), and V(s) [B], for obs [B, ...]."""
        features = self.actor.features(obs)
        value = self.critic.head(features) if self.settings.shared_body else self.critic(obs)
        return self.policy(obs, self.actor.outputs(features)), value.squeeze(1)

    def policy(self, obs: Tensor, outputs: Tensor) -> Bound:
        """pi(.|s), by what the actor gives out for obs [B, ...]."""
        return self.bind(self.distribution, outputs, self.masks(obs))

    def values(self, obs: Array) -> Array:
        """V(s) [...] for obs [..., *obs_shape], computed in slices that fit any memory."""
        flat, lead = obs.reshape(-1, *self.obs_shape), obs.shape[: obs.ndim - len(self.obs_shape)]
        if len(flat) == 0:
            return np.zeros(lead, np.float32)
        body = self.actor if self.settings.shared_body else self.critic
        with self.torch.no_grad():
            slices = [
                self.critic.head(body.features(self.tensor(flat[i : i + AT_ONCE])))
                for i in range(0, len(flat), AT_ONCE)
            ]
            value: Array = self.scale.undo(self.torch.cat(slices).cpu().numpy())
        return value.reshape(lead)

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s) [B] with the weights of now, for obs [B, ...] and raw actions [B, ...]; in slices, as `values`."""
        with self.torch.no_grad():
            slices = (self.torch.split(x, AT_ONCE) for x in (obs, action))
            return self.torch.cat([self.policy(o, self.actor(o)).log_prob(a) for o, a in zip(*slices, strict=True)])

    def tensor(self, array: Array) -> Tensor:
        """A copy on the device, in torch's own aligned memory."""
        return self.torch.tensor(array, device=self.device)

    def advantages(self, fragments: list[Fragment]) -> tuple[Array, Array]:
        """Values and GAE advantages, each [T, S * N], with the weights of now."""
        value = self.values(np.concatenate([f.obs for f in fragments], axis=1))  # [T + 1, S * N]
        final_value = self.values(np.concatenate([f.final_obs for f in fragments]))
        next_value = true_successors(value[1:], final_value, fragments)
        reward, terminated, ended = (
            np.concatenate(x, axis=1) for x in zip(*((f.reward, f.terminated, f.ended) for f in fragments), strict=True)
        )
        next_value[terminated] = 0.0
        return value[:-1], gae(reward, value[:-1], next_value, ended, self.settings.gamma, self.settings.gae_lambda)

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        s, torch = self.settings, self.torch
        left = max(0.0, 1.0 - progress)
        lr = self.lr * (left if s.lr_schedule == "linear" else 1.0)
        rates = {"actor": lr, "critic": lr * (s.critic_lr or s.lr) / s.lr}
        clip = s.clip * (left if s.clip_schedule == "linear" else 1.0)

        fragments = [unstacked(fragment) for fragment in fragments]
        value, advantage = self.advantages(fragments)
        target = advantage + value
        old_value = self.scale.apply(value)  # what the critic gives out, which its change is measured from
        if s.normalize_value:
            self.scale.update(target)
        obs = self.tensor(np.concatenate([f.obs[:-1] for f in fragments], axis=1)).flatten(0, 1)
        action = self.tensor(np.concatenate([f.raw_action for f in fragments], axis=1)).flatten(0, 1)
        acted = self.tensor(np.concatenate([f.extras["log_prob"] for f in fragments], axis=1)).flatten()
        began = self.log_prob(obs, action)  # by the policy that this update begins with
        per_step = (old_value, self.scale.apply(target), advantage)
        columns = (obs, action, acted, began, *(self.tensor(x).flatten() for x in per_step))

        batch, size = len(obs), s.minibatch_size
        totals = torch.zeros(6, device=self.device)
        updates = 0
        for epoch in range(s.epochs):
            order = self.tensor(stream(self.seed, "minibatch", iteration, epoch).permutation(batch))
            epoch_kl = torch.zeros((), device=self.device)
            shuffled = (torch.split(column[order], size) for column in columns)
            for obs_, action_, acted_, began_, old_value_, target_, adv in zip(*shuffled, strict=True):
                policy, new_value = self.forward(obs_)
                log_prob = policy.log_prob(action_)
                log_ratio = log_prob - acted_
                if s.normalize_advantage:
                    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                policy_loss = clipped_surrogate(log_ratio, adv, clip)
                v_loss = value_loss(new_value, target_, old_value_, s.value_clip)
                entropy = policy.entropy().mean()
                loss = policy_loss + s.value_coef * v_loss - s.entropy_coef * entropy
                norm = self.optimizer.minimise(loss, rates)
                with torch.no_grad():
                    kl = approximate_kl(log_prob - began_)
                    clipped = ((log_ratio.exp() - 1).abs() > clip).float().mean()
                    epoch_kl += kl
                    totals += torch.stack([policy_loss, v_loss, entropy, kl, clipped, norm])
                updates += 1
            if s.target_kl is not None and epoch_kl.item() * size / batch > 1.5 * s.target_kl:
                break
        names = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm")
        metrics = dict(zip(names, (totals / updates).tolist(), strict=True))
        if s.adaptive_kl is not None:
            self.adapt(metrics["approx_kl"], s.adaptive_kl)
        return metrics | {
            "staleness_kl": approximate_kl(began - acted).item(),
            "explained_variance": explained_variance(value, target),
            "learning_rate": lr,
            "clip_range": clip,
            "minibatches": float(updates),
        }

    def adapt(self, kl: float, wanted: float) -> None:
        """Keep KL(old || new) near `wanted` through the learning rate (as Schulman et al. do through a penalty)."""
        if kl > 2 * wanted:
            self.lr = max(self.lr / 1.5, 1e-6)
        elif kl < wanted / 2:
            self.lr = min(self.lr * 1.5, 1e-2)

    def weights(self) -> Array:
        vector: Array = self.parameters["actor"].vector.detach().cpu().numpy().copy()
        return vector

    def state(self) -> Arrays:
        return {"lr": np.array(self.lr), **self.optimizer.state(), **self.scale.state()}

    def load_state(self, state: Arrays) -> None:
        self.lr = float(state["lr"])
        self.optimizer.load_state(state)
        self.scale.load_state(state)


def initial_weights(settings: Settings, policy: StochasticPolicy, seed: int) -> Array:
    """The weights of version 0."""
    return policy.initial(stream(seed, "actor"))


def make(settings: Settings, policy: StochasticPolicy, seed: int, device: torch.device) -> PPO:
    return PPO(settings, policy, seed, device)
