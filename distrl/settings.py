"""What a run is: every setting, typed, with its default, rule and meaning. Knows no torch, no Ray and no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from distrl.errors import UserError
from distrl.yaml_format import write_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of everything in a config: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def check(self, config: Config) -> None:
        """Raise `UserError` where these settings contradict the rest of the config."""


class AlgorithmSettings(Settings):
    """Base of an algorithm's settings."""

    sparse: ClassVar[bool] = False  # an update changes few of the weights, so that sending the changes is less
    name: str = Field(description="of a registered algorithm, or the module that one is in")

    @model_validator(mode="before")
    @classmethod
    def _remembers(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "memory" in data and "memory" not in cls.model_fields:
            raise ValueError(f"memory is for ppo and a2c, and this is {data.get('name')}. Leave algorithm.memory out")
        return data

    def minibatch_rows(self, config: Config) -> int:
        """Of a minibatch, or its sequences where these stay whole, to be cut by `learner.slices`; 0: it cannot be cut."""
        return 0

    @property
    def any_age(self) -> bool:
        """Whether it can learn from what weights of any age did."""
        return self.replayed is not None

    @property
    def replayed(self) -> Replayed | None:
        """What a replay needs to know, of an algorithm that learns from one."""
        return None

    @property
    def discount(self) -> float | None:
        """gamma, of an algorithm that learns from fragments whose numbers may be scaled (`normalize`); None of others."""
        return None


@dataclass(frozen=True)
class Replayed:
    """How an algorithm learns from a replay."""

    batch_size: int
    n_step: int
    gamma: float
    values: tuple[str, str] | None = None  # the acting policy's extras that are Q(s, a) of what it did and V(s), if any
    joint: bool = False  # what all agents of an env copy did is one step; else each of them has steps of its own
    looks_up: bool = False  # it asks for the observations of some updates at a time, batch.obs[i:j]: arrays, or tensors on its device


def _check_plain(value: object, name: str) -> None:
    """Raise `ValueError` for what JSON has no form for, itself and nothing else."""
    if isinstance(value, dict):
        for key, part in value.items():
            if type(key) is not str:
                raise ValueError(f"the key {key!r} in {name} is a {type(key).__name__}; put it in quotes")
            _check_plain(part, f"{name}.{key}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            _check_plain(part, f"{name}.{number}")
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; files hold finite numbers alone, so give one that is large enough")
    elif type(value) is tuple:
        raise ValueError(f"{name} is a tuple; files hold lists, so give one")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"{name} is a {type(value).__name__}; files hold numbers, texts, true, false, null, lists and mappings. "
            "Give one of them (a date as a text in quotes)"
        )


def _written_as_they_are(value: dict[str, Any]) -> dict[str, Any]:
    """What config.yaml and policy.json cannot hold would come back as something else, for another env."""
    for name, part in value.items():
        _check_plain(part, name)
    return value


Arguments = Annotated[dict[str, Any], AfterValidator(_written_as_they_are)]


class WrapperSettings(Settings):
    name: str = Field(
        description="a name in distrl.registry.WRAPPERS, or the place of a wrapper, such as gymnasium.wrappers.ClipAction"
    )
    kwargs: Arguments = Field(default={}, description="its arguments beside the env")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core))]}


class EnvSettings(Settings):
    id: str = Field(
        description="a gymnasium id; 'module:id' imports the module first; of several agents: mpe2/..., butterfly/..., classic/... "
        "or sisl/... of PettingZoo, such as mpe2/simple_spread_v3, or 'module:function', which makes one"
    )
    kwargs: Arguments = Field(default={}, description="keyword arguments of gymnasium.make, or of what makes the env")
    max_episode_steps: int | None = Field(
        default=None, ge=1, description="time limit, in steps below the wrappers; null: the env's own"
    )
    wrappers: tuple[WrapperSettings, ...] = Field(
        default=(), description="around each env copy, the innermost first; a name alone stands for {name: ...}"
    )
    vectorize: Literal["auto", "native", "table", "single"] = Field(
        default="auto",
        description="native: the env's own vector form; table: its transition table; single: copies stepped one by one",
    )
    report: tuple[str, ...] = Field(
        default=(), description="keys of the info at an episode's end that are metrics of their own, such as score"
    )

    @field_validator("wrappers", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [{"name": part} if isinstance(part, str) else part for part in value]
        return value


class RolloutSettings(Settings):
    shards: int = Field(default=4, ge=1, description="fixed groups of env copies; part of the arithmetic")
    envs_per_shard: int = Field(default=16, ge=1, description="env copies in a shard, acted for in one batch")
    steps: int = Field(default=32, ge=1, description="T: steps of a fragment")

    @property
    def env_steps(self) -> int:
        """Env steps in one iteration."""
        return self.shards * self.envs_per_shard * self.steps


class ScheduleSettings(Settings):
    kind: Literal["lockstep", "async"] = Field(
        default="lockstep",
        description="lockstep: the same bits on any machine; async: no runner waits for another, not reproducible",
    )
    lag: Literal[0, 1] = Field(
        default=1, description="of lockstep. 0: collect, then learn; 1: both at once, one version late"
    )
    ahead: int = Field(default=4, ge=1, description="of async: iterations that runners may be before the learner")

    def check(self, config: Config) -> None:
        if self.kind == "async" and not config.algorithm.any_age:
            raise UserError(
                f"schedule.kind is async, which needs an algorithm that can learn from what old weights did: dqn, or a2c and "
                f"ppo with algorithm.vtrace=true; this is {config.algorithm.name}. Set schedule.kind=lockstep, or that."
            )
        foreign = "lag" if self.kind == "async" else "ahead"
        if getattr(self, foreign) != ScheduleSettings.model_fields[foreign].default:
            raise UserError(f"schedule.{foreign} has no meaning with schedule.kind={self.kind}. Leave it out.")


class NormalizeSettings(Settings):
    """Observations and rewards of order one, by running statistics that are part of the model."""

    obs: bool = Field(default=False, description="floating-point observations: mean 0, deviation 1, clipped to +-10")
    reward: bool = Field(
        default=False, description="what is learnt from: rewards over the deviation of returns, clipped to +-10"
    )

    def check(self, config: Config) -> None:
        on = [name for name in ("obs", "reward") if getattr(self, name)]
        if on and config.algorithm.discount is None:
            raise UserError(
                f"normalize.{on[0]} is true, which is for ppo and a2c; this is {config.algorithm.name}. "
                f"Set {' '.join(f'normalize.{name}=false' for name in on)}."
            )


class ReplaySettings(Settings):
    """The memory that an off-policy algorithm learns from."""

    capacity: int = Field(
        default=100_000,
        ge=1,
        description="steps kept, over all shards; each of several agents has its own, but with a mixer",
    )
    shards: int = Field(default=1, ge=1, description="replay actors that share the steps; part of the arithmetic")
    start: int = Field(default=1000, ge=1, description="env steps before the first update")
    samples_per_insert: float = Field(
        default=32.0, gt=0, description="how often a step is drawn on average: batch_size x updates per env step"
    )
    prioritized: bool = Field(default=False, description="Schaul et al. 2016, arXiv:1511.05952")
    alpha: float = Field(default=0.6, ge=0, le=1, description="p = |TD error|^alpha")
    beta: float = Field(default=0.4, ge=0, le=1, description="of the importance weights; rises to 1 at stop.env_steps")
    first_priority: Literal["acting", "max"] = Field(
        default="acting", description="of new steps: the TD error of the weights that acted, or the largest so far"
    )
    on_device: Literal["auto"] | bool = Field(
        default="auto",
        description="hold observations on the learner's device, too, so that each goes there once; changes speed alone. "
        "auto: images on a GPU, where they fit",
    )

    def check(self, config: Config) -> None:
        use, rollout = config.algorithm.replayed, config.rollout
        if use is None:
            raise UserError(f"replay is given, but {config.algorithm.name} learns from no replay. Leave it out.")
        if self.on_device is True and not (use.looks_up and config.policies == "shared"):
            what = "a policy of a group of agents" if use.looks_up else config.algorithm.name
            raise UserError(
                f"replay.on_device is true, but {what} takes its batches as they come. Set replay.on_device=auto."
            )
        if self.prioritized and self.first_priority == "acting" and use.values is None:
            raise UserError(
                f"replay.first_priority is acting, but the policy of {config.algorithm.name} tells no values of what "
                "it does. Set replay.first_priority=max."
            )
        copies = rollout.shards * rollout.envs_per_shard
        if use.batch_size > self.start:
            raise UserError(
                f"algorithm.batch_size is {use.batch_size}, more than the {self.start} steps of replay.start that are "
                f"there at the first update. Set replay.start to at least {max(use.batch_size, use.n_step * copies + 1)}."
            )
        if self.start <= use.n_step * copies:
            raise UserError(
                f"replay.start is {self.start}: {copies} env copies have then no whole return of "
                f"algorithm.n_step={use.n_step} steps each. Set replay.start to more than {use.n_step * copies}."
            )
        for name, value in (("rollout.shards", rollout.shards), ("algorithm.batch_size", use.batch_size)):
            if value % self.shards:
                raise UserError(
                    f"replay.shards is {self.shards}, which does not divide {name}={value}. Take a divisor."
                )
        self.check_capacity(config, 1)

    def check_capacity(self, config: Config, agents: int) -> None:
        """Raise `UserError` where the replay cannot hold enough of so many agents in each env copy."""
        use, rollout = config.algorithm.replayed, config.rollout
        assert use is not None
        copies = rollout.shards * rollout.envs_per_shard * (1 if use.joint else agents)
        least = max(self.start, copies * (2 * rollout.steps + use.n_step + 16))
        if self.capacity < least:
            raise UserError(
                f"replay.capacity is {self.capacity}; it must hold at least replay.start and two iterations: "
                f"{least} steps here."
            )


def _is_place(name: str) -> bool:
    """Whether it may be `module:name`."""
    return ":" in name and all(part.isidentifier() for part in name.replace(":", ".", 1).split("."))


class LeagueSettings(Settings):
    """Past versions of the trained policy, which it goes on playing against."""

    size: int = Field(
        default=10, ge=1, le=1000, description="past versions kept; of a full league the most beaten leaves"
    )
    add_every: int = Field(default=20, ge=1, description="iterations between two that join")
    priority: float = Field(
        default=1.0, ge=0, description="of one against whom a share p of games is won: (1 - p)^priority; 0: all alike"
    )


def _check_groups(given: Any) -> Any:
    """Say at once what may be given for `policies`, where each type by itself would say what it lacks."""
    lists = list(given.values()) if isinstance(given, Mapping) else []
    groups = bool(lists) and all(isinstance(names, (list, tuple)) for names in lists)
    if not groups and given not in ("shared", "per_agent"):
        raise ValueError(
            "it is shared, per_agent, or a list of agents for each policy, such as {adversaries: [adversary_*], others: [agent_*]}; "
            "all else is the same for all policies"
        )
    return given


class OpponentSettings(Settings):
    """Who sits where the trained policy does not. Which seat that has is drawn for every episode."""

    games: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={"self": 1.0},
        description="share of the games against: self (the weights of now, in all seats), league (its past versions), random, "
        "a function module:name, which is given an observation and a mask of actions and gives an action, or the path of a run",
    )
    seats: tuple[str, ...] | None = Field(
        default=None,
        description="where the trained policy sits: agents, or groups of policies, of whom one is drawn; null: in any",
    )
    league: LeagueSettings = Field(default=LeagueSettings(), description="of past versions of the trained policy")
    evaluation: tuple[str, ...] = Field(
        default=("random",),
        description="who evaluations are played against, from each seat in turn: random, functions and runs as in games, and "
        "earlier, the league's version of about half the updates",
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not sum(self.games.values()):
            raise ValueError("has no games: give one of them a share above 0, such as {self: 0.8, random: 0.2}")
        if self.seats == ():
            raise ValueError("has no seats: name some, or leave them out, for any")
        if not self.evaluation or {"self", "league"} & set(self.evaluation):
            raise ValueError(
                "evaluation must be some of random, earlier, functions and runs, such as [random, earlier]"
            )
        if len(set(self.runs.values())) < len(self.runs):
            raise ValueError("has runs whose directories have the same name; rename one")
        return self

    @property
    def others(self) -> list[str]:
        """Those who never change, random first where it is among them."""
        named = dict.fromkeys([*self.games, *self.evaluation])
        return sorted(
            (name for name in named if name not in ("self", "league", "earlier")), key=lambda name: name != "random"
        )

    @property
    def runs(self) -> dict[str, str]:
        """The short names of those that are runs, by their paths."""
        return {name: self.label(name) for name in self.others if name != "random" and not _is_place(name)}

    @staticmethod
    def label(name: str) -> str:
        """A short name: of a run that of its directory."""
        return name if _is_place(name) else name.rstrip("/").rpartition("/")[2]

    @property
    def slots(self) -> int:
        """Places for past versions."""
        return self.league.size if "league" in self.games or "earlier" in self.evaluation else 0

    def check(self, config: Config) -> None:
        memory = getattr(config.algorithm, "memory", None)
        met = self.slots or any(share for name, share in self.games.items() if name != "self")
        if memory is not None or (met and config.algorithm.discount is None):
            what = (
                f"algorithm.memory={memory.kind}" if memory is not None else f"algorithm.name={config.algorithm.name}"
            )
            raise UserError(
                f"opponents are played against by policies that learn from whole fragments and remember nothing, and here is {what}. "
                "Take ppo or a2c without algorithm.memory, or set opponents=null."
                + (
                    ""
                    if memory
                    else " With opponents.games={self: 1} and without earlier they are met in evaluations alone."
                )
            )


class StopSettings(Settings):
    env_steps: int | None = Field(
        default=1_000_000, ge=1, description="of training, over all env copies; null: no limit"
    )
    return_mean: float | Literal["auto"] | None = Field(
        default=None, description="mean of the last 100 training episodes; auto: the env's reward threshold"
    )
    seconds: float | None = Field(
        default=None, gt=0, description="wall-clock, of training in this process; the last evaluation comes after"
    )
    grace_s: float = Field(
        default=20,
        gt=0,
        description="after Ctrl-C or SIGTERM, for the update under way and a checkpoint; then the newest one must do",
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.env_steps is None and self.return_mean is None and self.seconds is None:
            raise ValueError("nothing ends this run: set stop.env_steps, stop.return_mean or stop.seconds")
        return self


class EvaluationSettings(Settings):
    every: int | Literal["auto"] = Field(default="auto", description="iterations; auto: 10 times in the run; 0: never")
    episodes: int = Field(default=20, ge=1, description="episodes of one evaluation during training")
    max_episode_steps: int | None = Field(default=None, ge=1, description="time limit; null: as in training")
    final_episodes: int = Field(default=100, ge=0, description="episodes of the last evaluation, of the best model")
    greedy: bool = Field(default=True, description="take the best actions; false: sample them as in training")

    @field_validator("every")
    @classmethod
    def _not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 'auto' or at least 0")
        return value


class CheckpointSettings(Settings):
    every: int = Field(default=25, ge=0, description="iterations between checkpoints; 0: only at the end")
    keep: int = Field(default=3, ge=1, description="how many of the newest to keep")
    replay: bool = Field(
        default=True, description="with the replay's content; false: smaller, but a resumed run learns other weights"
    )


class LearnerSettings(Settings):
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="part of the arithmetic. auto: cuda where there is a GPU; what a run got is written in its config.yaml, "
        "and kept when it is resumed",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of each learner; part of the arithmetic")
    precision: Literal["full", "fast"] = Field(
        default="full",
        description="of matrix products on a GPU; part of the arithmetic. full: float32's 23 bits of a factor; fast: 10 (TF32). "
        "The CPU's are full",
    )
    slices: int = Field(
        default=1, ge=1, description="parts of a minibatch, whose gradients are summed in order; part of the arithmetic"
    )
    count: int = Field(
        default=1,
        ge=1,
        description="processes that learn together, each from as many of the slices, with a GPU each on cuda; changes speed alone",
    )

    def check(self, config: Config) -> None:
        rows, name = config.algorithm.minibatch_rows(config), config.algorithm.name
        if self.precision == "fast" and self.device == "cpu":
            raise UserError(
                "learner.precision is fast, which a GPU's matrix products can be, but learner.device is cpu. Set "
                "learner.precision=full."
            )
        for key in ("slices", "count"):
            if getattr(self, key) > 1 and not rows:
                raise UserError(
                    f"learner.{key} is {getattr(self, key)}, but {name} has no minibatches that can be cut; those of ppo, a2c and "
                    "dqn can. Set learner.slices=1 learner.count=1."
                )
        if self.slices > max(1, rows):
            raise UserError(
                f"learner.slices is {self.slices}, more than the {rows} parts (rows, or whole sequences) that a minibatch of "
                f"{name} can be cut into. Set at most {rows}."
            )
        if self.slices % self.count:
            fewer = max(n for n in range(1, self.count) if self.slices % n == 0)
            more = -(-self.slices // self.count) * self.count
            raise UserError(
                f"learner.count is {self.count}, which does not divide learner.slices={self.slices}: each learner has as many. "
                f"Set learner.count={fewer}"
                + (f", or learner.slices={more}, which gives other bits." if more <= rows else ".")
            )


class ClusterSettings(Settings):
    runners: int | Literal["auto"] | Annotated[str, Field(pattern=r"^[1-9]\d*\.\.[1-9]\d*$")] = Field(
        default="auto",
        description="processes that roll shards; changes speed alone. auto: one for each CPU, also of nodes that come to a "
        "cluster; 2..8: so, but never fewer nor more; a number: so many",
    )
    address: str = Field(
        default="local", description="local: a Ray of this run's own; auto or host:port: an existing one"
    )
    start: Literal["at_once", "wait"] = Field(
        default="at_once",
        description="at_once: train in this process until Ray's workers are up, and go on there, with a Ray of this run's own "
        "only where that pays; wait: for them",
    )
    cpus_per_runner: float | None = Field(
        default=None, gt=0, description="Ray CPUs reserved for a runner; null: shared out"
    )
    step_timeout_s: float = Field(
        default=60,
        gt=0,
        description="an env copy that takes longer for a step, a reset or to be made has hung; so has any process that says "
        "nothing for so long, and its work goes to another one",
    )
    update_timeout_s: float = Field(
        default=600,
        gt=0,
        description="a learner that takes longer for a minibatch, or a replay for a call, has hung",
    )
    rebuild_timeout_s: float = Field(
        default=600, gt=0, description="replaying the episodes under way of a shard may take so long"
    )
    restarts: int = Field(default=20, ge=0, description="lost workers replaced before the run gives up")

    @field_validator("runners")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be 'auto', at least 1, or MIN..MAX")
        if isinstance(value, str) and ".." in value and int(value.partition("..")[0]) > int(value.partition("..")[2]):
            raise ValueError("must have the smaller number first, such as 2..8")
        return value

    def limit(self, worker: str) -> float:
        """Seconds between two beats of a worker's heart; what takes longer has hung."""
        return self.update_timeout_s if worker.lower() in ("learner", "replay") else self.step_timeout_s

    @property
    def bounds(self) -> tuple[int, int | None]:
        """The fewest and the most runners; None: as many as there are CPUs."""
        if self.runners == "auto":
            return 1, None
        least, _, most = str(self.runners).partition("..")
        return int(least), int(most or least)


class StreakSettings(Settings):
    """A mark of learning that is reported: so many consecutive training episodes with a return above."""

    episodes: int = Field(default=5, ge=1, description="how many in a row")
    above: float = Field(description="the return that each of them is above")


class TrackSettings(Settings):
    mlflow: bool = Field(default=True, description="send metrics and the best model to MLflow")
    uri: str | None = Field(default=None, description="null: MLFLOW_TRACKING_URI, else a SQLite store beside the run")
    experiment: str = Field(default="distrl", min_length=1, description="name of the MLflow experiment")
    description: str | None = Field(default=None, description="of the run in MLflow; null: algorithm, env and seed")
    register_as: str | None = Field(default=None, description="name in the MLflow model registry; null: not registered")
    tensorboard: bool = Field(default=False, description="write the metrics as event files into RUN/tensorboard, too")
    streak: StreakSettings | None = Field(
        default=None, description="report when so many training episodes in a row had a return above a mark"
    )
    video: bool = Field(
        default=True, description="record an episode of the best model at the end, where the env renders"
    )
    video_every: int = Field(
        default=0,
        ge=0,
        description="record the weights of every so many-th evaluation, too, beside the training; 0: none",
    )


class Config(Settings):
    """A whole run."""

    seed: int = Field(default=1, ge=0, lt=2**63, description="of all that is random")
    run_dir: str | None = Field(default=None, description="null: runs/<algorithm>-<env>-<time>")
    init_from: str | None = Field(
        default=None,
        description="a run, checkpoint or model whose weights this run begins with; in a run's own config: its copy of them",
    )
    storage: str | None = Field(
        default=None,
        description="where a copy of the run is kept: s3://BUCKET/DIR, gs://BUCKET/DIR, or a directory; null: nowhere",
    )
    env: EnvSettings = Field(description="what is trained on")
    policies: Annotated[Literal["shared", "per_agent"] | dict[str, tuple[str, ...]], BeforeValidator(_check_groups)] = (
        Field(
            default="shared",
            description="of several agents. shared: one for all; per_agent: one for each; or groups that share one, by patterns of names, "
            "such as {adversaries: [adversary_*], others: [agent_*]}",
        )
    )
    opponents: OpponentSettings | None = Field(
        default=None, description="of several agents: who is played against; null: oneself"
    )
    algorithm: SerializeAsAny[AlgorithmSettings] = Field(description="what learns, and how")
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="how much is collected for an iteration")
    schedule: ScheduleSettings = Field(default=ScheduleSettings(), description="who waits for whom")
    normalize: NormalizeSettings = Field(
        default=NormalizeSettings(), description="of observations and rewards, by running statistics"
    )
    replay: ReplaySettings | None = Field(default=None, description="of algorithms that learn from a replay alone")
    stop: StopSettings = Field(default=StopSettings(), description="what ends the run; the first that comes")
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(),
        description="episodes that are played and not learnt from; they choose the best model",
    )
    checkpoint: CheckpointSettings = Field(default=CheckpointSettings(), description="what a run goes on from")
    learner: LearnerSettings = Field(default=LearnerSettings(), description="the process that learns")
    cluster: ClusterSettings = Field(default=ClusterSettings(), description="the processes that roll, and Ray")
    track: TrackSettings = Field(default=TrackSettings(), description="MLflow and what else is reported")

    @property
    def iterations(self) -> int | None:
        """How many iterations `stop.env_steps` allows, or None without one."""
        return None if self.stop.env_steps is None else math.ceil(self.stop.env_steps / self.rollout.env_steps)

    def progress(self, env_steps: int) -> float:
        """The share of `stop.env_steps` that so many are; 0 without one."""
        return 0.0 if self.stop.env_steps is None else env_steps / self.stop.env_steps

    @property
    def evaluation_every(self) -> int:
        """Iterations between evaluations; 0 is never."""
        if self.evaluation.every == "auto":
            return 50 if self.iterations is None else max(1, math.ceil(self.iterations / 10))
        return self.evaluation.every

    def on_device(self, device: str) -> Self:
        """This config with another `learner.device`."""
        return self.model_copy(update={"learner": self.learner.model_copy(update={"device": device})})

    def to_yaml(self) -> str:
        """The resolved config, itself a valid input."""
        return write_yaml(self.model_dump(mode="json"))


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys, as overrides name them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat
