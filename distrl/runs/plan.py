"""What a run will be made of: checked before anything is started or written."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from distrl.acting.make import initial_weights, judged_policy, make_policy
from distrl.acting.network import single_threaded
from distrl.acting.opponents import apart, beginning
from distrl.acting.tables import TablePolicy
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.mdp import read_table
from distrl.envs.multi import grouped
from distrl.envs.native import NativeShard
from distrl.errors import UserError
from distrl.execution.resources import Node, cpu_count, share_out
from distrl.files import refuse_used
from distrl.models.opponents import read_runs
from distrl.runs.origin import COPY, read_origin
from distrl.runs.resume import check_same, resume_point
from distrl.settings import Config
from distrl.sizes import check_fits
from distrl.storage.fetch import check_storage
from distrl.tracking.where import check_tracking, tracking_uri
from distrl.training.checkpoint import read_checkpoint_config
from distrl.types import Array, EnvInfo, Origin, Policy
from distrl.workers.replay import check_memory, replay_row_bytes

LITTLE_WORK = 5e7  # parameters times rows of a minibatch: what two learners save by sharing less, they lose by speaking
IMAGE = 2**12  # bytes of an observation, from which on networks reuse their parameters so often that this says nothing
SMALLER_IMAGES = 3.5  # by so many times those of Atari are, in a stack of four, by the wrapper of that name


@dataclass(frozen=True)
class Plan:
    """What a run will be made of."""

    config: Config
    info: EnvInfo
    policy: Policy
    judged: Policy  # what plays in evaluations
    initial_weights: Array
    origin: Origin | None  # what these are of, where `init_from` says so
    run_dir: Path
    named: bool  # by the user; any other name gets a number where it is taken
    start: Path | None  # the checkpoint to go on from; None: the beginning
    resuming: bool
    object_store_bytes: int
    replay_bytes: int  # of all replays together
    warnings: tuple[str, ...]

    @property
    def replay_note(self) -> str | None:
        """What the replay takes, in memory and in checkpoints; None without a replay."""
        replay, checkpoint = self.config.replay, self.config.checkpoint
        if replay is None:
            return None
        kept = f", and up to as much in each of {checkpoint.keep} checkpoints" if checkpoint.replay else ""
        return f"the replay of {replay.capacity:,} steps takes {self.replay_bytes / 2**20:,.0f} MiB of memory{kept}"

    @property
    def policy_note(self) -> str:
        """How large the policy is."""
        if isinstance(self.policy, TablePolicy):
            return self.policy.size
        return f"{sum(array.size for array in self.policy.arrays().values()):,} parameters"

    @property
    def runners_note(self) -> str:
        """How many runners there will be, and where."""
        if self.config.cluster.address != "local":
            return f"{self.config.cluster.runners} processes, on the cluster at {self.config.cluster.address}"
        cpus = cpu_count()
        node = Node(cpus=cpus, gpus=self.config.learner.count)
        return f"{len(share_out(self.config, [node]).runners)} processes ({cpus} CPUs here)"

    @property
    def learners_note(self) -> str | None:
        """How many learners there will be; None: one, which does all."""
        learner = self.config.learner
        if learner.slices == 1:
            return None
        each = f"{learner.slices // learner.count} of the {learner.slices} slices of a minibatch"
        return f"{learner.count} {'process' if learner.count == 1 else 'processes'}, {each} each"


def plan_run(config: Config, resume: Path | None = None) -> Plan:
    """Check everything that can be checked without starting anything. Raises `UserError`; makes no file."""
    single_threaded()
    info = grouped(describe_env(config.env), config.policies)
    _check_sizes(config, info)
    _check_env(config, info)
    goes_on = None if resume is None else resume_point(resume)[0]
    runs = read_runs(config.opponents, goes_on)
    policy = make_policy(config, info, runs)
    _check_runners(config)
    run_dir, start = (_new_directory(config, info), None) if resume is None else _resumed_run(config, resume)
    before = config.learner.device if start is None else load_config(start).learner.device
    if config.learner.device == "auto":  # a run keeps the kind of device that it began on
        config = config.on_device(before)
    if config.track.mlflow:
        check_tracking(tracking_uri(config, run_dir))
    if config.storage is not None:
        check_storage(config.storage, run_dir, new=resume is None)
    weights, origin = initial_weights(config, policy), None
    if config.init_from is not None:
        copied = None if resume is None else run_dir / COPY  # a run that goes on has its own
        origin = read_origin(copied or Path(config.init_from), *apart(policy, weights)[:2], info)
    return Plan(
        config=config.model_copy(update={"run_dir": str(run_dir)}),
        info=info,
        policy=policy,
        judged=judged_policy(config, policy, info, runs),
        initial_weights=weights if origin is None else beginning(policy, origin.vector),
        origin=origin,
        run_dir=run_dir,
        named=config.run_dir is not None,
        start=start,
        resuming=resume is not None,
        object_store_bytes=_object_store_bytes(config, info),
        replay_bytes=_replay_bytes(config, info),
        warnings=(*_warnings(config, info, before), *_small(config, info, len(weights))),
    )


def _check_env(config: Config, info: EnvInfo) -> None:
    """The env has what the config asks of it."""
    if config.env.vectorize == "table":
        read_table(config.env)
    if config.env.vectorize == "native" and not NativeShard.fits(config.env, config.rollout.envs_per_shard):
        raise UserError(
            f"env.vectorize is 'native', but {info.id} has no vector form that can be used. Set it to 'auto'."
        )
    if config.replay is not None:
        config.replay.check_capacity(config, max(1, len(info.agents)))
    if config.stop.return_mean == "auto" and info.reward_threshold is None:
        raise UserError(f"stop.return_mean is 'auto', but {info.id} has no reward threshold. Give a number instead.")


def _check_runners(config: Config) -> None:
    """This machine can run as many runners as are asked for; what a cluster can is known when it is joined."""
    if config.cluster.address == "local" and config.cluster.runners != "auto":
        share_out(config, [Node(cpus=cpu_count(), gpus=config.learner.count)])


def _new_directory(config: Config, info: EnvInfo) -> Path:
    """Where a new run goes: nothing is there yet, or the name is one that is numbered where there is."""
    name = f"{config.algorithm.name}-{info.id.split('/')[-1].split(':')[-1].lower()}-{time.strftime('%Y%m%d-%H%M%S')}"
    if config.storage is not None:  # where other machines may begin a run in the same second
        name += f"-{secrets.token_hex(3)}"
    run_dir = Path(config.run_dir or f"runs/{name}").expanduser().absolute()
    if config.run_dir is not None:
        refuse_used(run_dir)
    return run_dir


def _resumed_run(config: Config, resume: Path) -> tuple[Path, Path | None]:
    """The directory of a run that goes on, and its checkpoint, which is of the same config."""
    run_dir, start = resume_point(resume)
    if start is not None:
        check_same(read_checkpoint_config(start), config, start)
    return run_dir, start


def _warnings(config: Config, info: EnvInfo, before: str) -> Iterator[str]:
    """`before`: the device that the run learnt on so far."""
    device = config.learner.device
    if before not in ("auto", device):
        yield f"this run learnt on {before} until here; on {device} it goes on to other bits than it would there."
    if info.max_episode_steps is None and not info.turns:
        yield f"{info.id} has no time limit: an episode may never end. Set env.max_episode_steps, say to 1000."
    if unread := info.obs_layout.unread:
        yield f"observations of {info.id} have a text, {', '.join(unread)}, which no network here reads; it is left out."
    if (least := config.cluster.bounds[0]) > (shards := config.rollout.shards):
        yield (
            f"cluster.runners is {config.cluster.runners}, but there are only {shards} shards to roll: {shards} of them will "
            f"work. More shards of fewer copies each would need more, to other weights: rollout.shards={least}."
        )
    if config.schedule.kind == "async":
        yield (
            "schedule.kind is async: what comes first depends on the machines, so this run cannot be repeated "
            "bit for bit."
        )


def _small(config: Config, info: EnvInfo, parameters: int) -> Iterator[str]:
    """A word where several learners do not pay."""
    rows = config.algorithm.minibatch_rows(config)
    if config.learner.count > 1 and parameters * rows < LITTLE_WORK and info.obs_layout.nbytes < IMAGE:
        yield (
            f"learner.count is {config.learner.count}, but a minibatch of {rows:,} is little work for {parameters:,} parameters: "
            "one learner is likely to be as fast. Set learner.count=1; it changes only the speed."
        )


def _check_sizes(config: Config, info: EnvInfo) -> None:
    """What is collected and kept fits into this machine; of a cluster's machines nothing is known here."""
    if config.cluster.address != "local":
        return
    rollout, obs = config.rollout, info.obs_layout.nbytes
    wanted, replay = _object_store_bytes(config, info), _replay_bytes(config, info)
    of_agents = f" of {len(info.agents)} agents" if info.agents else ""
    check_fits(
        wanted + replay,
        f"rollout.shards={rollout.shards:,} x rollout.envs_per_shard={rollout.envs_per_shard:,} x rollout.steps={rollout.steps:,} "
        f"are {rollout.env_steps:,} env steps{of_agents} an iteration with observations of {obs:,} bytes. With what is on its way"
        f"{f', and {replay / 2**30:.1f} GiB of a replay,' if replay else ''} that takes",
        _what_fits(config, info, replay),
    )


def _what_fits(config: Config, info: EnvInfo, replay: int) -> str:
    """What to do where an iteration does not fit beside the replay."""
    available, wanted = 0.9 * psutil.virtual_memory().available, _object_store_bytes(config, info) + replay
    free, sizes = available - replay, config.rollout.model_dump()
    while _object_store_bytes(_with_rollout(config, sizes), info) > free and max(sizes.values()) > 1:
        sizes[max(sizes, key=lambda name: sizes[name])] //= 2
    smaller = [f"rollout.{name}={size}" for name, size in sizes.items() if size != getattr(config.rollout, name)]
    remedies = [f"Set {' '.join(smaller)}."]
    if _object_store_bytes(_with_rollout(config, sizes), info) > free:
        remedies = [] if config.replay is None else ["Set replay.capacity lower."]
    raw = config.env.id.rpartition(":")[2].startswith("ALE/") and not config.env.wrappers
    if raw and wanted < SMALLER_IMAGES * available:
        remedies.append("Set env.wrappers=[atari], for smaller images.")
    return " Or: ".join(remedies) or "Wrap the env, for smaller observations."


def _with_rollout(config: Config, sizes: dict[str, int]) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=sizes)})


def _object_store_bytes(config: Config, info: EnvInfo) -> int:
    """What Ray's object store must hold at once, at most: fragments on their way, and batches of a replay."""
    obs, env_steps = info.obs_layout.nbytes, config.rollout.env_steps * info.obs_layout.rows
    fragments = (3 + config.schedule.ahead) * env_steps * (obs + 64)
    drawn = 0.0 if config.replay is None else 3 * config.replay.samples_per_insert * env_steps
    return 256 * 2**20 + fragments + int(drawn * (2 * obs + 32))


def _replay_bytes(config: Config, info: EnvInfo) -> int:
    """What all replays take together. Raises `UserError` where that is more than this machine has free."""
    if config.replay is None:
        return 0
    learning, frame = config.algorithm.replayed, info.obs_layout.nbytes // max(1, info.frame_stack)
    agents = len(info.agents) if learning is not None and learning.joint else 1
    row_bytes = replay_row_bytes(frame * agents, action=8 * agents)
    if config.cluster.address == "local":
        check_memory(config.replay.capacity, row_bytes)
    return config.replay.capacity * row_bytes
