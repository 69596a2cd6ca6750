"""Deep Q-learning from a replay (Mnih et al. 2015, Nature 518), and what Rainbow made common since.

    for every minibatch (s, a, R, gamma^m, s') that the replay drew:
        minimise  w huber(y - Q(s, a)),   y = R + gamma^m V(s')

        V(s') = Q_target(s', argmax_a Q(s', a))         double (van Hasselt et al. 2016, arXiv:1509.06461)
              = tau log sum_a exp(Q_target(s', a)/tau)  munchausen (Vieillard et al. 2020, arXiv:2007.14430)
              = max_a Q_target(s', a)                   neither

R is the sum of up to n rewards (n_step, Sutton 1988) and w the importance weight of prioritised replay (Schaul et al.
2016, arXiv:1511.05952). The target network is a copy of the online one, taken every so many updates (tau 1) or
followed slowly (tau < 1, Lillicrap et al. 2016, arXiv:1509.02971). The networks: dueling (Wang et al. 2016,
arXiv:1511.06581), layer_norm (Ba et al. 2016, arXiv:1607.06450). With a `mixer` a step is what all agents of a team do,
R what they earn together, and Q and V are the sums of theirs (VDN, Sunehag et al. 2018, arXiv:1706.05296).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from distrl.acting.distributions import FORBIDDEN
from distrl.acting.policies import EpsilonGreedyPolicy
from distrl.acting.spaces import Activation, NetworkSettings, discrete_actions, network_spec
from distrl.errors import UserError
from distrl.learning.losses import (
    greedy_value,
    huber_loss,
    huber_slope,
    munchausen_bonus,
    soft_value,
    td_target,
    together,
)
from distrl.learning.schedules import Rate, Schedule, Share, check_schedules
from distrl.learning.slices import WHOLE
from distrl.seeding import stream
from distrl.settings import Config, Fraction, Positive, Replayed
from distrl.settings import Settings as BaseSettings
from distrl.types import Array, Arrays, Batch, EnvInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from distrl.learning.networks import Network

NEEDS_TORCH = True
AT_ONCE = 512  # observations for which the target network is asked at once, at most


class Munchausen(BaseSettings):
    """Vieillard et al. 2020, arXiv:2007.14430."""

    alpha: Fraction = Field(default=0.9, description="weight of the log-probability that is added to the reward")
    temperature: float = Field(default=0.03, gt=0, description="tau: of the softmax over action values")
    floor: float = Field(default=-1.0, le=0, description="the least of the log-probability's part")


class Settings(NetworkSettings):
    name: Literal["dqn"] = Field(description="deep Q-learning from a replay")
    gamma: Fraction = Field(default=0.99, description="discount of a step")
    n_step: int = Field(
        default=1, ge=1, description="rewards that are summed before the value of a state stands for the rest"
    )
    batch_size: int = Field(default=64, ge=1, description="steps of a minibatch")
    lr: Rate = Field(default=Schedule(start=1e-3), description="of Adam")
    adam_eps: float = Field(default=1e-8, gt=0, description="epsilon of Adam")
    max_grad_norm: float | None = Field(default=10.0, gt=0, description="longer gradients are cut to it; null: never")
    huber: float | None = Field(default=1.0, gt=0, description="where the squared error turns linear; null: nowhere")
    target_every: int = Field(default=500, ge=1, description="updates between changes of the target network")
    tau: float = Field(default=1.0, gt=0, le=1, description="how far it then goes to the online one; 1: all the way")
    double: bool = Field(
        default=True, description="the online network chooses the next action, the target network values it"
    )
    dueling: bool = Field(default=False, description="a network of state value and advantages")
    munchausen: Munchausen | None = Field(
        default=None, description="add the policy's log-probability to the reward; {}: on"
    )
    mixer: Literal["vdn"] | None = Field(
        default=None,
        description="of several agents. vdn: the sum of their values learns what all earn together; null: each learns for itself",
    )
    hidden: tuple[Positive, ...] = Field(default=(256, 256), description="units of the hidden layers")
    activation: Activation = Field(default="relu", description="after every hidden layer")
    epsilon: Share = Field(
        default=Schedule(start=1.0, end=0.05, over=10_000),
        description="how often an action of `action_probs` is taken instead of the best one",
    )
    action_probs: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        default=None, description="of the actions when exploring; null: all alike"
    )
    ladder: float = Field(
        default=0.0, ge=0, description="env copy n of a shard explores with epsilon^(1 + ladder n/(N-1)); Ape-X uses 7"
    )

    @field_validator("action_probs")
    @classmethod
    def _probabilities(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and not abs(sum(value) - 1) < 1e-3:
            raise ValueError(f"must sum to 1, not {sum(value):g}")
        return value

    @property
    def replayed(self) -> Replayed:
        return Replayed(
            self.batch_size, self.n_step, self.gamma, ("q", "value"), joint=self.mixer is not None, looks_up=True
        )

    def minibatch_rows(self, config: Config) -> int:
        return self.batch_size

    def check(self, config: Config) -> None:
        check_schedules(self, config)
        if self.dueling and (self.network is not None or not self.hidden):
            lacking = "algorithm.hidden is empty. Give one" if self.network is None else "algorithm.network has none"
            raise UserError(f"algorithm.dueling doubles the last hidden layer, but {lacking}. Or set it to false.")


def make_policy(settings: Settings, info: EnvInfo) -> EpsilonGreedyPolicy:
    """The acting policy for an env's spaces. Raises `UserError` for spaces that DQN cannot take."""
    if info.turns:
        raise UserError(
            f"DQN here learns from steps that follow upon each other, and agents of {info.id} wait for their turns. Set "
            "algorithm.name=ppo or a2c."
        )
    if settings.mixer is not None and not info.agents:
        raise UserError(
            f"algorithm.mixer={settings.mixer} is of several agents, and {info.id} has one alone. Set algorithm.mixer=null."
        )
    if settings.mixer is not None and len(info.agents) == 1:
        raise UserError(
            f"algorithm.mixer={settings.mixer} sums the values of agents that share a policy, and {next(iter(info.agents))!r} of {info.id} "
            "shares none. Set policies=shared, or algorithm.mixer=null."
        )
    probs, remedy = settings.action_probs or (), "Set algorithm.name=ppo or a2c, which take actions of every kind."
    action = discrete_actions(info, "DQN", remedy, probs, "algorithm.action_probs")
    spec = network_spec(info, int(action.n), dueling=settings.dueling, **settings.of_network)
    return EpsilonGreedyPolicy(spec, info.obs_layout, int(action.start), probs, settings.ladder)


class DQN:
    """`distrl.types.OffPolicy`; the parameters of each network lie in one flat vector."""

    slices = WHOLE  # of its minibatches

    def __init__(self, settings: Settings, policy: EpsilonGreedyPolicy, device: torch.device) -> None:
        import torch  # here and not above: settings are checked, and runners started, without it

        from distrl.learning.encoders import Masks
        from distrl.learning.gradients import tracing
        from distrl.learning.networks import make_network
        from distrl.learning.optimizer import Adam, FlatParameters

        self.torch, self.settings, self.device, self.first_action = torch, settings, device, policy.first_action
        spec, weights = policy.network.spec, policy.network.vector
        self.online, self.target = make_network(spec, weights), make_network(spec, weights)
        online, target = (FlatParameters([network], device) for network in (self.online, self.target))
        self.vector, self.target_vector = online.vector, target.vector
        self.trace, self.masks = tracing(self.online), Masks(policy.obs_layout).to(device)
        self.optimizer = Adam({"online": online}, settings.adam_eps, settings.max_grad_norm)
        self.asks_online = settings.double and settings.munchausen is None  # what the next state is worth
        self.epsilon = settings.epsilon(0.0, 0)
        self.updates = 0

    def learn(self, batch: Batch, env_steps: int, progress: float) -> tuple[dict[str, float], Array]:
        s, torch = self.settings, self.torch
        self.epsilon, lr = s.epsilon(progress, env_steps), s.lr(progress, env_steps)
        count, size = batch.reward.shape
        metrics = {"epsilon": self.epsilon, "learning_rate": lr, "minibatches": float(count)}
        if count == 0:
            return metrics, np.zeros((0, size), np.float32)
        action, dims = self.tensor(batch.action - self.first_action).flatten(1), batch.action.ndim - 1  # [U, B A]
        reward, discount, weight = map(self.tensor, (batch.reward, batch.discount, batch.weight))
        weight /= weight.amax(1, keepdim=True) * size
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        done = 0
        while done < count:  # as many minibatches as the target network stays the same for
            until = min(count, done + s.target_every - self.updates % s.target_every, done + max(1, AT_ONCE // size))
            part = slice(done, until)
            obs, next_obs = (self.tensor(x[part]).flatten(1, dims) for x in (batch.obs, batch.next_obs))
            bonus, next_q = self.ask_target(obs, action[part], next_obs)
            paid = reward[part] + together(bonus, bonus.shape[0] * size).view(-1, size)
            known = (next_obs, next_q, paid, discount[part])
            if self.asks_online:  # as it is when the minibatch's turn has come
                targets = map(self.targets, *known)
            else:
                targets = iter(self.targets(*(x.flatten(0, 1) for x in known)).view(-1, size))
            columns = (obs, action[part].unsqueeze(2), targets, weight[part])
            for obs_, action_, target, weight_ in zip(*columns, strict=True):
                q, pull = self.slices.traced(self.trace, self.optimizer.parameters.values(), obs_)
                chosen = together(q.gather(1, action_), size)
                slope = weight_ * huber_slope(chosen, target, s.huber)
                each = slope[:, None].expand(-1, len(q) // size).reshape(-1, 1)  # of the agents whose sum it is
                pull(torch.zeros_like(q).scatter_(1, action_, each))
                found.append((target, chosen, self.optimizer.descend({"online": lr})))
            done = until
            self.updates += until - part.start
            if self.updates % s.target_every == 0:
                with torch.no_grad():
                    self.target_vector.lerp_(self.vector, s.tau)
        target, chosen, norm = (torch.stack(x) for x in zip(*found, strict=True))
        errors = target - chosen
        metrics |= {
            "loss": (weight * huber_loss(chosen, target, s.huber)).sum(1).mean().item(),
            "td_error": errors.abs().mean().item(),
            "q_mean": chosen.mean().item(),
            "grad_norm": norm.mean().item(),
        }
        return metrics, np.asarray(errors.cpu())

    def ask_target(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Munchausen's bonus [U, B] (else 0) and Q_target(s', .) [U, B, A], for several minibatches at once."""
        next_q = self.allowed(self.target, next_obs.flatten(0, 1)).view(*action.shape, -1)
        if self.settings.munchausen is None:
            return self.torch.zeros(action.shape, device=self.device), next_q
        m, target_q = self.settings.munchausen, self.allowed(self.target, obs.flatten(0, 1))
        bonus = munchausen_bonus(target_q, action.flatten(), m.alpha, m.temperature, m.floor)
        return bonus.view(action.shape), next_q

    def targets(self, next_obs: Tensor, next_q: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """y [B], of one minibatch or of several side by side."""
        if self.settings.munchausen is not None:
            value = soft_value(next_q, self.settings.munchausen.temperature)
        else:
            chooser = self.allowed(self.online, next_obs) if self.asks_online else next_q
            value = greedy_value(next_q, chooser)
        return td_target(reward, discount, together(value, len(reward)))

    def allowed(self, network: Network, obs: Tensor) -> Tensor:
        """Q(s, .) [B, A], without gradients, and with those of forbidden actions out of the way."""
        q, mask = self.slices.asked(network, obs), self.masks(obs)
        return q if mask is None else q.masked_fill(~mask, FORBIDDEN)

    def tensor(self, array: Array | Tensor) -> Tensor:
        """A copy on the device, in torch's own aligned memory; to a GPU from pinned memory, so that nobody waits for it.

        What is there already stays.
        """
        if isinstance(array, self.torch.Tensor):
            return array
        return self.torch.tensor(array, pin_memory=self.device.type == "cuda").to(self.device, non_blocking=True)

    def weights(self) -> Array:
        """The parameters, and epsilon behind them."""
        return np.append(self.vector.detach().cpu().numpy(), np.float32(self.epsilon))

    def state(self) -> Arrays:
        return {
            "target": self.target_vector.detach().cpu().numpy().copy(),
            "epsilon": np.array(self.epsilon),
            "updates": np.array(self.updates),
            **self.optimizer.state(),
        }

    def load_state(self, state: Arrays) -> None:
        self.epsilon, self.updates = float(state["epsilon"]), int(state["updates"])
        with self.torch.no_grad():
            self.target_vector.copy_(self.tensor(state["target"]))
        self.optimizer.load_state(state)


def initial_weights(settings: Settings, policy: EpsilonGreedyPolicy, seed: int) -> Array:
    """The weights of version 0, and epsilon behind them."""
    vector = policy.network.spec.initial(stream(seed, "online"), head_gain=1.0)
    return np.append(vector, np.float32(settings.epsilon(0.0, 0)))


def make(settings: Settings, policy: EpsilonGreedyPolicy, seed: int, device: torch.device) -> DQN:
    return DQN(settings, policy, device)
