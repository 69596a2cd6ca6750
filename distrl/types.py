"""The arrays that travel, with their shapes, and what a policy and an algorithm are.

T: steps of a fragment. N: env copies of a shard. S: shards. B: samples in a batch. A: actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from distrl.errors import UserError
from distrl.layouts import Layout, action_layout, choices_of, joint_layout, observation_layout, row_space, space_text

if TYPE_CHECKING:  # what acts needs no gymnasium
    import gymnasium as gym

Array = NDArray[Any]
Arrays = dict[str, Array]  # a state in named arrays: what checkpoints hold and workers hand over


@dataclass(frozen=True)
class Weights:
    """What a policy needs to act, as one flat vector (float32; float64 of tables): one message, read in place by every runner."""

    version: int  # learner updates behind it
    vector: Array  # [P]


@dataclass(frozen=True)
class Origin:
    """Weights of another run that a run begins with, and what is known of them."""

    vector: Array  # [P]: version 0 acts by it
    env_steps: int  # of training behind them, there
    source: dict[str, Any]  # where they were read and their sha256, as plain JSON


@dataclass
class Fragment:
    """T steps of one shard: a pure function of config, seed, shard, iteration, shard state and weights."""

    shard: int
    iteration: int
    version: int  # of the weights that acted
    obs: Array  # [T + 1, N, ...]; obs[t + 1] is what the policy saw next: after an end, the first of a new episode
    action: Array  # [T, N, ...], as the env got them
    reward: Array  # [T, N] float64, as the env gave them
    terminated: Array  # [T, N] bool: the episode ended in a state of value 0
    truncated: Array  # [T, N] bool: the episode was cut off (and did not terminate); its value goes on
    final_obs: Array  # [E, ...]: true last observations of the E ended episodes, in the order of nonzero(ended)
    extras: Arrays  # what the policy said beside the action, [T, N, ...]: log_prob; raw_action where it is another one;
    # and, of a recurrent one, the `memory` that it began with, [1, N, H]
    stack: int = 0  # C: an observation is the newest C frames, and here are single frames; see distrl.fragments:
    # obs is [C - 1 + T + 1, N, ...], beginning with the older frames of the first one; final_obs [E, ...]
    agents: int = 1  # of an env copy: N are the copies' agents, those of the first copy first
    active: Array | None = (
        None  # [T + 1, N] bool: who acted on obs[t]; None: all. Where nobody did, the action is nobody's
    )

    @property
    def acted(self) -> Array:
        """[T, N] bool: somebody took that step."""
        return np.ones_like(self.terminated) if self.active is None else self.active[:-1]

    @property
    def env_steps(self) -> int:
        """Steps of env copies, of all agents together."""
        return self.reward.size // self.agents

    @property
    def raw_action(self) -> Array:
        """What is learnt from: the actions before they were clipped or squashed for the env."""
        return self.extras.get("raw_action", self.action)

    @property
    def ended(self) -> Array:
        """[T, N] bool: the episode was over after this step."""
        return self.terminated | self.truncated


@dataclass
class Episodes:
    """The episodes that ended in a fragment, in (step, env copy) order."""

    returns: Array  # [E] float64, sums of the env's own rewards
    lengths: Array  # [E] int64
    infos: Arrays = field(default_factory=dict)  # [E] float64 each: what `env.report` names of the last step's info
    agents: Arrays = field(
        default_factory=dict
    )  # [E] float64 each: the returns of each agent, whose sums `returns` are


@dataclass
class Fresh:
    """What who learns has not yet of the observations of a batch."""

    size: int  # rows of its ring
    at: Array  # [M] int64: which they are
    rows: Array  # [M, ...] observations, or single frames of them


@dataclass
class Batch:
    """Transitions drawn from a replay for U updates of B: n-step returns, and what they bootstrap from."""

    key: Array  # [U, B] int64: names the transition, for its new priority
    obs: Array  # [U, B, ...]; [U, B, A, ...] of A agents that learn as one, and so are action and next_obs
    action: Array  # [U, B, ...]
    reward: Array  # [U, B] float32: r_0 + gamma r_1 + ... + gamma^(m-1) r_{m-1}, m <= n
    discount: Array  # [U, B] float32: gamma^m, 0 where the episode terminated on the way
    next_obs: Array  # [U, B, ...]: m steps later; anything where the discount is 0
    weight: Array  # [U, B] float32: importance weights, not yet divided by their maximum
    # Where this is given, obs and next_obs are int64 rows of the replay's ring, of each frame of a stack. Who learns has a
    # copy of these rows once it has what is fresh.
    fresh: Fresh | None = None


@dataclass(frozen=True)
class Priorities:
    """What became of the transitions of a batch, for the replay that it came from."""

    key: Array  # [M] int64
    td_error: Array  # [M] float32


Drawn = Batch | list[Batch]  # by a replay for an update; of groups of agents a batch for each
Told = Priorities | list[Priorities]  # to that replay, likewise


@dataclass
class Snapshot:
    """A shard between two fragments, small and portable: enough to rebuild it anywhere."""

    iteration: int  # the next fragment to roll
    returns: Array  # [N] float64, of the episodes under way; [N, A] of the agents of N env copies
    lengths: Array  # [N] int64
    env: Arrays  # what the shard needs to rebuild its env copies: its `arrays`, and of one that replays the `action`s
    # [sum of lengths, ...] of the episodes under way, one env copy after the other; see distrl.envs.journal
    memory: Array | None = None  # [N, H]: what a recurrent policy remembers of the episodes under way


@dataclass
class Report:
    """What the driver learns of a fragment: numbers, and what its `Journal` of the shard needs."""

    shard: int
    iteration: int
    episodes: Episodes
    after: Snapshot  # the shard after it, whole but for the actions of one that replays
    actions: Array | None  # these, [T, N, ...] of this fragment; None where `after` is whole
    started: float  # unix time of the first env step
    seconds: dict[str, float] = field(default_factory=dict)  # act, step, snapshot
    unfaithful: bool = False  # the shard could not be rebuilt exactly: fresh episodes were started


@dataclass(frozen=True)
class Spread:
    """How one number is spread over some episodes."""

    mean: float
    std: float  # of the episodes, not of their mean
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(float(np.mean(values)), float(np.std(values)), float(min(values)), float(max(values)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spread:
        return cls(*(float(data[name]) for name in ("mean", "std", "min", "max")))

    def __format__(self, spec: str) -> str:
        """'MEAN ± STD (min MIN, max MAX)', every number in the format `spec`."""
        mean, std, low, high = (format(value, spec) for value in (self.mean, self.std, self.min, self.max))
        return f"{mean} ± {std} (min {low}, max {high})"


@dataclass(frozen=True)
class Evaluation:
    """How well one version of the weights plays. The evaluator makes this record; whoever tells a score reads it."""

    version: int  # of the weights
    env_steps: int  # of training behind them
    greedy: bool  # the best actions were taken; else sampled ones
    episodes: int
    returns: Spread
    lengths: Spread  # in steps
    scores: dict[str, Spread] = field(default_factory=dict, hash=False)  # by the names of `env.report`
    agents: dict[str, Spread] = field(default_factory=dict, hash=False)  # returns of each, whose sums `returns` are; of
    # games against opponents, those of the trained policy in that seat, and `returns` are its own in all of them
    against: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict, hash=False)  # by opponent, then mean:
    # the return from each seat; and, where what one wins the others lose, win, draw and loss: shares of the games
    elo: float | None = None  # over the league

    @property
    def mean(self) -> float:
        """The mean return: what the best model is chosen by."""
        return self.returns.mean

    @property
    def played(self) -> str:
        """Such as '100 greedy episodes'."""
        return f"{self.episodes:,} {'greedy' if self.greedy else 'sampled'} episode{'s' * (self.episodes != 1)}"

    @property
    def told(self) -> list[tuple[str, str]]:
        """Lines for people, each with a name: of several agents what each reached, of games how they went."""
        agents = ", ".join(f"{name} {of_agent.mean:.2f}" for name, of_agent in self.agents.items())
        games = [
            (
                f"as {seat} against {name}",
                ", ".join(
                    f"mean {by_seat[seat]:.2f}" if what == "mean" else f"{by_seat[seat]:.1%} {what}"
                    for what, by_seat in found.items()
                ),
            )
            for name, found in self.against.items()
            for seat in next(iter(found.values()))
        ]
        elo = [] if self.elo is None else [("Elo over the league", f"{round(self.elo)}")]
        return [*([("agents", agents)] if agents else []), *games, *elo]

    def metrics(self, group: str) -> dict[str, float]:
        """The numbers of the record as metrics: 'GROUP/return_mean' and so on."""
        numbers = {
            "return_mean": self.returns.mean,
            "return_std": self.returns.std,
            "length_mean": self.lengths.mean,
            **{f"scores/{name}_mean": score.mean for name, score in self.scores.items()},
            **{f"agents/{name}_mean": of_agent.mean for name, of_agent in self.agents.items()},
            **{
                f"against/{name}/{outcome}": float(np.mean(list(by_seat.values())))
                for name, outcomes in self.against.items()
                for outcome, by_seat in outcomes.items()
            },
            **({} if self.elo is None else {"elo": self.elo}),
            "episodes": self.episodes,
            "env_steps": self.env_steps,
            "version": self.version,
        }
        return {f"{group}/{name}": float(value) for name, value in numbers.items()}

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON, as result.json holds it: the returns' spread lies at the top."""
        return asdict(self.returns) | {
            "episodes": self.episodes,
            "env_steps": self.env_steps,
            "version": self.version,
            "greedy": self.greedy,
            "length": asdict(self.lengths),
            "scores": {name: asdict(score) for name, score in self.scores.items()},
            "agents": {name: asdict(of_agent) for name, of_agent in self.agents.items()},
            "against": self.against,
            "elo": self.elo,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """The record that `to_json` wrote. Raises `UserError` where it is none."""
        try:
            return cls(
                version=data["version"],
                env_steps=data["env_steps"],
                greedy=data["greedy"],
                episodes=data["episodes"],
                returns=Spread.from_json(data),
                lengths=Spread.from_json(data["length"]),
                scores={name: Spread.from_json(score) for name, score in data["scores"].items()},
                agents={name: Spread.from_json(of_agent) for name, of_agent in data.get("agents", {}).items()},
                against=data.get("against", {}),
                elo=data.get("elo"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"This is no evaluation as this distrl writes it: {type(error).__name__} {error}."
            ) from None


@runtime_checkable
class Policy(Protocol):
    """What acts. Works in NumPy alone, so that runners need no torch; see distrl.acting.policies."""

    obs_layout: Layout  # how observations are to come
    action_layout: Layout  # how actions go out

    def load(self, vector: Array) -> None:
        """Take new weights, a flat vector [P]."""

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """The randomness of a whole fragment, [T, N, ...]: one row a step."""

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        """Sampled actions [N, ...] for obs [N, ...], as the env takes them, and what the learner wants to know beside them."""

    def greedy(self, obs: Array) -> Array:
        """The best actions [N, ...] for obs [N, ...]."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every array of weights by name, in the order in which they lie in the vector."""

    def arrays(self) -> Arrays:
        """The weights by name."""

    def describe(self) -> dict[str, Any]:
        """What `from_description` needs to make this policy again, as plain JSON; `type` is its name in distrl.registry."""

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        """The policy that `describe` told of, without weights yet."""


class Stateful(Protocol):
    """What a checkpoint holds."""

    def state(self) -> Arrays:
        """All that it needs to go on bit for bit."""

    def load_state(self, state: Arrays) -> None:
        """Go on from a `state()`, or from one with more in it."""


class Algorithm(Stateful, Protocol):
    """What learns: owns networks, optimiser, targets. Knows nothing of Ray, files or MLflow.

    It learns from the fragments of an iteration (`OnPolicy`) or from what a replay draws (`OffPolicy`).
    """

    def weights(self) -> Array:
        """The acting weights, a flat vector [P], in memory of its own."""


class OnPolicy(Algorithm, Protocol):
    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        """Learn from the S fragments of an iteration, in shard order. `progress` in [0, 1] drives schedules."""


class OffPolicy(Algorithm, Protocol):
    def learn(self, batch: Batch, env_steps: int, progress: float) -> tuple[dict[str, float], Array]:
        """Make the U updates of a batch; U may be 0. Returns metrics and the TD errors [U, B].

        Args:
            env_steps: counted so far, with those of this iteration; `progress` is their share of the run
        """


@dataclass
class Step:
    """What one step of a shard gives."""

    obs: Array  # [N, ...], valid until the next step
    reward: Array  # [N] float64
    terminated: Array  # [N] bool
    truncated: Array  # [N] bool, and not terminated
    final_obs: list[Array] | Array  # [E, ...] of the E ended episodes, by env copy
    infos: Sequence[dict[str, float]] = ()  # likewise: what `env.report` names of their last infos


@dataclass(frozen=True)
class EnvInfo:
    """What distrl needs to know of an environment before it makes many copies."""

    id: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    max_episode_steps: int | None
    reward_threshold: float | None
    render_modes: tuple[str, ...]
    render_fps: int
    action_mask: NDArray[np.bool_] | None = None  # [states, A]: which actions do anything, where the env says so
    frame_stack: int = 0  # > 0: observations are stacks of so many frames; see distrl.fragments
    mask_in_info: bool = False  # the info names the actions that are allowed, as `action_mask`
    agents: Mapping[str, tuple[gym.Space[Any], gym.Space[Any]]] = field(default_factory=dict)  # of several agents, by
    # name: what each sees and does. `observation_space` is then that of a row: an `observation` and which `agent`'s it is
    groups: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # of agents that share a policy; {}: all share one
    turns: bool = False  # they act one after the other
    state_space: gym.Space[Any] | None = None  # of what the env tells of all, if it does
    central: bool = False  # that is laid beside what each agent sees, for a critic

    @cached_property
    def obs_layout(self) -> Layout:
        """How observations travel. Raises `UserError` for spaces that cannot."""
        if self.groups:
            return joint_layout({name: self.of(name).obs_layout for name in self.agents})
        in_info = self.mask_in_info and self.action_mask is None
        try:
            choices = choices_of(self.action_layout)
            self._check_alike()
            state = self.state_space if self.central else None
            return observation_layout(
                self.observation_space, choices, in_info, self.action_mask, tuple(self.agents), state
            )
        except ValueError as error:
            raise UserError(
                f"Observations of {self.id} are {space_text(self.observation_space)}, which cannot be learnt from: {error}. Make arrays "
                "of numbers of them, with gymnasium.wrappers.TransformObservation or a wrapper of your own."
            ) from None

    @cached_property
    def action_layout(self) -> Layout:
        """How actions travel. Raises `UserError` for spaces that cannot."""
        if self.groups:
            return joint_layout({name: self.of(name).action_layout for name in self.agents})
        try:
            return action_layout(self.action_space)
        except ValueError as error:
            raise UserError(
                f"Actions of {self.id} are {space_text(self.action_space)}, which no policy here can choose: {error}. Make numbers of "
                "them, with gymnasium.wrappers.TransformAction or a wrapper of your own."
            ) from None

    def of(self, agent: str) -> EnvInfo:
        """What the group of an agent needs to know: the same of these agents alone."""
        names = next(names for names in self.groups.values() if agent in names)
        spaces = self.agents[names[0]]
        seen, own = row_space(spaces[0], len(names)), {name: self.agents[name] for name in names}
        return replace(self, observation_space=seen, action_space=spaces[1], agents=own, groups={})

    def _check_alike(self) -> None:
        """Raise `UserError` where agents see or do different things."""
        names = list(self.agents)
        for what, place in (("observations", 0), ("actions", 1)):
            for name in names[1:]:
                one, other = self.agents[names[0]][place], self.agents[name][place]
                if one != other:
                    raise UserError(
                        f"{self.id} has agents whose {what} differ: those of {names[0]} are {one}, those of {name} {other}. "
                        "One policy cannot be shared by them: set policies=per_agent, or give groups of those that are alike, such as "
                        f"policies={{first: [{names[0]}], others: [{name}]}}."
                    )
