"""What a run will be made of, checked before anything is started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from distrl.acting.network import single_threaded
from distrl.config import load_config
from distrl.envs.make import describe_env
from distrl.envs.mdp import read_table
from distrl.envs.native import NativeShard
from distrl.errors import UserError
from distrl.execution.resources import cpu_count, share_out
from distrl.models.store import newest_checkpoint
from distrl.registry import algorithm_module
from distrl.settings import Config, dotted
from distrl.tracking.where import check_tracking, tracking_uri
from distrl.training.checkpoint import read_checkpoint_config
from distrl.types import Array, EnvInfo, Policy
from distrl.workers.replay import replay_row_bytes, too_large

CHANGEABLE = ("stop", "cluster", "track", "checkpoint", "run_dir")  # on resume: what cannot change the arithmetic


@dataclass(frozen=True)
class Plan:
    """What a run will be made of, known before anything is started."""

    config: Config
    info: EnvInfo
    policy: Policy
    initial_weights: Array
    run_dir: Path
    start: Path | None  # the checkpoint to go on from
    resuming: bool
    object_store_bytes: int
    replay_bytes: int  # of all replays together
    warnings: tuple[str, ...]


def plan_run(config: Config, resume: Path | None = None) -> Plan:
    """Check everything that can be checked without starting anything. Raises `UserError`; makes no file."""
    single_threaded()
    info = describe_env(config.env)
    if config.env.vectorize == "table":
        read_table(config.env)
    if config.env.vectorize == "native" and not NativeShard.fits(config.env, config.rollout.envs_per_shard):
        raise UserError(
            f"env.vectorize is 'native', but {info.id} has no vector form that can be used. Set it to 'auto'."
        )
    module = algorithm_module(config.algorithm.name)
    policy: Policy = module.make_policy(config.algorithm, info)
    if config.stop.return_mean == "auto" and info.reward_threshold is None:
        raise UserError(f"stop.return_mean is 'auto', but {info.id} has no reward threshold. Give a number instead.")
    if config.cluster.address == "local" and config.cluster.runners != "auto":
        share_out(config, float(cpu_count()), gpus=None)
    warnings = []
    if info.max_episode_steps is None:
        warnings.append(
            f"{info.id} has no time limit: an episode may never end. Set env.max_episode_steps, say to 1000."
        )
    if config.schedule.kind == "async":
        warnings.append(
            "schedule.kind is async: what comes first depends on the machines, so this run cannot be repeated bit for bit."
        )
    start = None
    if resume is not None:
        run_dir, start = resume_point(resume)
        if start is not None:
            _same_config(read_checkpoint_config(start), config, start)
    else:
        name = f"{config.algorithm.name}-{info.id.split('/')[-1].split(':')[-1].lower()}"
        run_dir = Path(config.run_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise UserError(
                f"run_dir {str(run_dir)!r} exists. Choose another one, or go on with it: --resume {run_dir}"
            )
    if config.track.mlflow:
        check_tracking(tracking_uri(config, run_dir))
    obs = info.observation_space
    obs_bytes = 8 if obs.shape is None or obs.dtype is None else int(obs.dtype.itemsize * max(1, _size(obs.shape)))
    in_flight = (3 + config.schedule.ahead) * config.rollout.env_steps * (obs_bytes + 64)
    replay_bytes = 0
    if config.replay is not None:
        replay_bytes = _replay_bytes(
            config, obs_bytes // max(1, info.frame_stack) // (2 if obs.dtype == np.float64 else 1)
        )
        in_flight += int(3 * config.replay.samples_per_insert * config.rollout.env_steps * (2 * obs_bytes + 32))
    return Plan(
        config=config.model_copy(update={"run_dir": str(run_dir)}),
        info=info,
        policy=policy,
        initial_weights=module.initial_weights(config.algorithm, policy, config.seed),
        run_dir=run_dir,
        start=start,
        resuming=resume is not None,
        object_store_bytes=256 * 2**20 + in_flight,
        replay_bytes=replay_bytes,
        warnings=tuple(warnings),
    )


def _replay_bytes(config: Config, frame_bytes: int) -> int:
    """What the replays will take. Raises `UserError` where that is more than this machine has free."""
    assert config.replay is not None
    size = config.replay.capacity * replay_row_bytes(frame_bytes, action=8)
    free = psutil.virtual_memory().available
    if config.cluster.address == "local" and size > free:
        raise UserError(too_large(config.replay.capacity, size, free))
    return size


def resume_point(path: Path) -> tuple[Path, Path | None]:
    """The run directory and the checkpoint meant by --resume: a run (its newest checkpoint) or a checkpoint."""
    path = path.absolute()
    run_dir: Path
    start: Path | None
    if (path / "manifest.json").exists() or path.parent.name == "checkpoints":
        run_dir, start = path.parent.parent, path
    else:
        run_dir = path
        start = newest_checkpoint(path)
    if not (run_dir / "config.yaml").exists():
        raise UserError(f"There is no run to resume at {str(path)!r}: it has no config.yaml.")
    return run_dir, start


def load_resumed_config(resume: Path, overrides: Sequence[str], source: Path | None = None) -> Config:
    """The config of the run to resume, with overrides of what may change. Raises `UserError` for any other."""
    run_dir, _ = resume_point(resume)
    config = load_config(run_dir / "config.yaml", overrides)
    _same_config((run_dir / "config.yaml").read_text(encoding="utf-8"), config, run_dir)
    if source is not None:
        _same_config(load_config(source, overrides).to_yaml(), config, source)
    return config


def _same_config(text: str, config: Config, where: Path) -> None:
    import yaml

    old, new = ({k: v for k, v in dotted(yaml.safe_load(t)).items() if v != {}} for t in (text, config.to_yaml()))
    different = [k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k.split(".")[0] not in CHANGEABLE]
    if different:
        changes = ", ".join(f"{k} ({old.get(k)!r} there, {new.get(k)!r} here)" for k in sorted(different))
        raise UserError(
            f"{where} is of another config: {changes}. A resumed run may change only {', '.join(CHANGEABLE)}; "
            "start a new run for the rest."
        )


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def replay_note(plan: Plan) -> str:
    """What the replay takes, in memory and in checkpoints."""
    assert plan.config.replay is not None
    size = f"{plan.replay_bytes / 2**20:,.0f} MiB"
    kept = (
        f", and up to as much in each of {plan.config.checkpoint.keep} checkpoints"
        if plan.config.checkpoint.replay
        else ""
    )
    return f"the replay of {plan.config.replay.capacity:,} steps takes {size} of memory{kept}"
