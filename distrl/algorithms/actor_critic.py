"""What actor-critic algorithms share: their settings, policy and critic, and advantages of what the runners brought.

Imported without torch, so that settings are checked and runners start without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from distrl.acting.kinds import AnySpec
from distrl.acting.network import NetworkSpec
from distrl.acting.policies import StochasticPolicy
from distrl.acting.recurrent import RecurrentPolicy
from distrl.acting.spaces import NetworkSettings, action_distribution, encoder_of, stochastic_policy
from distrl.errors import UserError
from distrl.fragments import after_waiting, true_successors, unstacked
from distrl.learning.losses import approximate_kl, vtrace
from distrl.learning.scale import Scale
from distrl.learning.schedules import Rate, Schedule, check_schedules
from distrl.learning.slices import WHOLE
from distrl.seeding import stream
from distrl.settings import Config, Fraction, Positive
from distrl.settings import Settings as Base
from distrl.types import Array, Arrays, EnvInfo, Fragment, Stateful

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from distrl.learning.distributions import Bound
    from distrl.learning.gradients import Pull

AT_ONCE = 8192  # observations that a network is asked for without gradients, at most


class MemorySettings(Base):
    kind: Literal["gru", "lstm"] = Field(
        default="gru", description="Cho et al. 2014, arXiv:1406.1078, or Hochreiter and Schmidhuber 1997"
    )
    size: Positive = Field(default=64, description="numbers that actor and critic see of what is remembered")


class ActorCriticSettings(NetworkSettings):
    """What PPO and A2C have in common."""

    gamma: Fraction = Field(default=0.99, description="discount of a step")
    gae_lambda: Fraction = Field(
        default=0.95, description="of generalised advantage estimation; 0: one step; 1: whole returns"
    )
    lr: Rate = Field(default=Schedule(start=3e-4, end=0.0), description="of the actor, and of a shared body")
    critic_lr: Rate | None = Field(default=None, description="null: as lr")
    value_coef: float = Field(default=0.5, ge=0, description="weight of the value loss")
    entropy_coef: Schedule = Field(
        default=Schedule(start=0.0), description="weight of the entropy, which is made large"
    )
    optimizer: Literal["adam", "rmsprop"] = Field(default="adam", description="of actor and critic")
    max_grad_norm: float | None = Field(default=0.5, gt=0, description="of the actor's gradient, and of the critic's")
    normalize_advantage: bool = Field(default=True, description="of a minibatch: to mean 0, deviation 1")
    normalize_value: bool = Field(default=True, description="the critic learns targets scaled to mean 0, deviation 1")
    vtrace: bool = Field(
        default=False, description="correct advantages for the age of the weights that acted (V-trace)"
    )
    action_probs: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="of the untrained policy, of Discrete actions; null: all alike"
    )
    log_std_init: float = Field(
        default=0.0, description="of Box actions: the first log-deviation; 0 is half the range of a bounded component"
    )
    state_dependent_std: bool = Field(default=False, description="of Box actions: the deviation depends on the state")
    squash: bool = Field(default=False, description="bounded Box actions: tanh of a Gaussian, instead of a clipped one")
    shared_body: bool = Field(default=False, description="actor and critic share all layers but the heads")
    critic: Literal["own", "central"] = Field(
        default="own",
        description="of several agents. own: it sees what the agent sees; central: the env's state of all as well (MAPPO), which "
        "is needed to learn alone",
    )
    memory: MemorySettings | None = Field(
        default=None, description="behind the hidden layers, such as {kind: gru, size: 64}; null: none"
    )

    @property
    def any_age(self) -> bool:
        return self.vtrace

    @property
    def discount(self) -> float:
        return self.gamma

    def check(self, config: Config) -> None:
        check_schedules(self, config)
        if self.shared_body and self.critic_lr is not None:
            raise UserError(
                "algorithm.critic_lr needs a critic of its own: set algorithm.shared_body=false, or leave it out."
            )
        if self.critic == "central" and self.memory is not None:
            raise UserError(
                "algorithm.memory is one that actor and critic share, and a central critic sees other things. Set algorithm.critic=own, "
                "or algorithm.memory=null and algorithm.shared_body=false."
            )
        if self.critic == "central" and (self.shared_body or self.network is not None):
            key = "shared_body=false" if self.shared_body else "network=null"
            raise UserError(
                f"algorithm.critic is central, so that actor and critic see different things: set algorithm.{key}."
            )
        if self.memory is not None and not self.shared_body:
            raise UserError("algorithm.memory is one that actor and critic share: set algorithm.shared_body=true.")
        if self.memory is not None and self.network is not None:
            raise UserError(
                "algorithm.memory is behind distrl's own hidden layers, and algorithm.network is in their place. Set one of them to null."
            )
        if self.memory is not None and config.track.register_as is not None:
            raise UserError(
                f"track.register_as is {config.track.register_as!r}, but what MLflow serves takes each observation by itself, "
                "and a policy with algorithm.memory remembers. Set track.register_as=null."
            )


def make_policy(settings: ActorCriticSettings, info: EnvInfo) -> StochasticPolicy:
    """The acting policy for an env's spaces. Raises `UserError` for spaces that nothing here can take."""
    if settings.critic == "central":
        if info.state_space is None:
            raise UserError(
                f"algorithm.critic is central, which needs a state of all agents, and {info.id} tells none: its state() does not "
                "work. Set algorithm.critic=own."
            )
        info = replace(info, central=True)
    if info.turns and settings.memory is not None:
        raise UserError(
            f"algorithm.memory is of agents that act at every step, and those of {info.id} wait for their turns. Set it to null."
        )
    distribution = action_distribution(
        info, settings.action_probs, settings.log_std_init, settings.state_dependent_std, settings.squash
    )
    policy = stochastic_policy(info, distribution, **settings.of_network)
    memory = settings.memory
    return policy if memory is None else RecurrentPolicy.of(policy, memory.size, memory.kind)


def initial_weights(settings: ActorCriticSettings, policy: StochasticPolicy, seed: int) -> Array:
    """The weights of version 0."""
    return policy.initial(stream(seed, "actor"))


def critic_spec(settings: ActorCriticSettings, policy: StochasticPolicy) -> AnySpec:
    """A network like the actor's, which gives one number; a central critic sees the state of all agents, too."""
    spec, central = replace(policy.network.spec, outputs=1, free=0), policy.obs_layout.central
    if central is None or not isinstance(spec, NetworkSpec):
        return spec
    return replace(spec, encoders=(*spec.encoders, encoder_of(central, settings.body)))


@dataclass
class ActorCriticBatch:
    """What an update learns from: B = T S N steps, on the device, but for values and advantages."""

    obs: Tensor  # [B, ...]
    action: Tensor  # [B, ...] raw
    acted: Tensor  # [B] log pi(a|s) of the policy that acted
    began: Tensor  # [B] of the policy that the update begins with
    value: Array  # [T, S N] by the critic that the update begins with; [B] where not all agents acted all the time
    advantage: Array  # likewise

    @property
    def target(self) -> Array:
        """Of the value."""
        return self.advantage + self.value

    @property
    def staleness(self) -> float:
        """KL(acted || began), estimated."""
        return approximate_kl(self.began - self.acted).item()

    def order(self, rng: np.random.Generator, size: int) -> Array:
        """The B steps in a random order, to be cut into whole minibatches of `size`; a rest is left out."""
        return rng.permutation(len(self.obs))[: len(self.obs) // size * size or None]


def advantages(
    fragments: list[Fragment], value: Array, final: Array, age: Array, gamma: float, gae_lambda: float
) -> tuple[Array, Array | None]:
    """Of the steps of an iteration, [T, S N]; and [T, S N] bool: which are steps, where agents do not all act all the time.

    Args:
        value, final: V [T + 1, S N] of all observations, and [E] of the last ones of episodes, fragment by fragment
        age: [T S N] log of how much likelier each action is by now
    """
    terminated, ended, reward = (
        np.concatenate([getattr(f, name) for f in fragments], axis=1) for name in ("terminated", "ended", "reward")
    )
    next_value = true_successors(value[1:], final, fragments)
    next_value[terminated] = 0.0
    learnt, active = None, [f.active for f in fragments if f.active is not None]
    if active:
        reward, next_value, ended, learnt = after_waiting(np.concatenate(active, axis=1), reward, next_value, ended)
    return vtrace(age.reshape(ended.shape), reward, value[:-1], next_value, ended, gamma, gae_lambda, learnt), learnt


class ActorCritic:
    """Actor and critic; the parameters of each lie in one flat vector. An algorithm adds its `update`."""

    slices = WHOLE  # of its minibatches

    def __init__(
        self, settings: ActorCriticSettings, policy: StochasticPolicy, seed: int, device: torch.device
    ) -> None:
        import torch  # here and not above: settings are checked, and runners started, without it

        from distrl.learning.distributions import bind
        from distrl.learning.encoders import Masks
        from distrl.learning.gradients import tracing_pair
        from distrl.learning.networks import make_network
        from distrl.learning.optimizer import FlatParameters, make_optimizer

        self.torch, self.shared, self.seed, self.device = torch, settings, seed, device
        self.bind, self.distribution, self.obs_shape = bind, policy.distribution, policy.obs_layout.shape
        self.masks = Masks(policy.obs_layout).to(device)
        spec, value_spec = policy.network.spec, critic_spec(settings, policy)
        self.actor = make_network(spec, policy.network.vector)
        self.critic = make_network(value_spec, value_spec.initial(stream(seed, "critic"), head_gain=1.0))
        critic: nn.Module = self.critic.head if settings.shared_body else self.critic
        self.parameters = {k: FlatParameters([m], device) for k, m in (("actor", self.actor), ("critic", critic))}
        self.trace = tracing_pair(self.actor, self.critic, settings.shared_body)
        self.optimizer = make_optimizer(settings.optimizer, self.parameters, 1e-5, settings.max_grad_norm)
        self.scale = Scale()  # of the value targets
        self.parts: list[Stateful] = [self.optimizer, self.scale]  # all that a checkpoint holds

    def traced(self, obs: Tensor) -> tuple[Bound, Tensor, Pull]:
        """pi(.|s), V(s) [B] for obs [B, ...], and what takes the gradients of a loss by what the actor gives out and by V."""
        outputs, value, pull = self.slices.traced(self.trace, self.parameters.values(), obs)
        return self.policy(obs, outputs), value, pull

    def policy(self, obs: Tensor, outputs: Tensor) -> Bound:
        """pi(.|s), by what the actor gives out for obs [B, ...]."""
        return self.bind(self.distribution, outputs, self.masks(obs))

    def values(self, obs: Tensor) -> Array:
        """V(s) [...] for obs [..., *obs_shape], computed in parts that fit any memory."""
        flat, lead = obs.reshape(-1, *self.obs_shape), obs.shape[: obs.ndim - len(self.obs_shape)]
        if len(flat) == 0:
            return np.zeros(lead, np.float32)
        body = (self.actor if self.shared.shared_body else self.critic).body
        value = self.slices.asked(lambda x: self.critic.head(body(x)), flat, most=AT_ONCE)
        return self.scale.undo(value.cpu().numpy()).reshape(lead)

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s) [B] with the weights of now, for obs [B, ...] and raw actions [B, ...]; in parts, as `values`."""
        return self.slices.asked(lambda o, a: self.policy(o, self.actor(o)).log_prob(a), obs, action, most=AT_ONCE)

    def tensor(self, array: Array) -> Tensor:
        """A copy on the device, in torch's own aligned memory; to a GPU from pinned memory, so that nobody waits for it."""
        return self.torch.tensor(array, pin_memory=self.device.type == "cuda").to(self.device, non_blocking=True)

    def batch(self, fragments: list[Fragment]) -> ActorCriticBatch:
        """The fragments of an iteration side by side, with values and advantages by the weights of now."""
        fragments = [unstacked(fragment) for fragment in fragments]
        seen = self.tensor(np.concatenate([f.obs for f in fragments], axis=1))  # [T + 1, S * N, ...]
        obs = seen[:-1].flatten(0, 1)
        action = self.tensor(np.concatenate([f.raw_action for f in fragments], axis=1)).flatten(0, 1)
        acted = self.tensor(np.concatenate([f.extras["log_prob"] for f in fragments], axis=1)).flatten()
        began = self.log_prob(obs, action)
        value = self.values(seen)
        final = self.values(self.tensor(np.concatenate([f.final_obs for f in fragments])))
        age = (began - acted).cpu().numpy() if self.shared.vtrace else np.zeros(len(obs))
        advantage, learnt = advantages(fragments, value, final, age, self.shared.gamma, self.shared.gae_lambda)
        if learnt is None or learnt.all():
            return ActorCriticBatch(obs, action, acted, began, value[:-1], advantage)
        obs, action, acted, began = (x[self.tensor(learnt).flatten()] for x in (obs, action, acted, began))
        return ActorCriticBatch(obs, action, acted, began, value[:-1][learnt], advantage[learnt])

    def rates(self, progress: float, env_steps: int) -> dict[str, float]:
        """Learning rates of now, by what they are of."""
        s = self.shared
        return {"actor": s.lr(progress, env_steps), "critic": (s.critic_lr or s.lr)(progress, env_steps)}

    def weights(self) -> Array:
        vector: Array = self.parameters["actor"].vector.detach().cpu().numpy().copy()
        return vector

    def state(self) -> Arrays:
        return {name: array for part in self.parts for name, array in part.state().items()}

    def load_state(self, state: Arrays) -> None:
        for part in self.parts:
            part.load_state(state)
