"""A run from its config to its result: checks first, then the directory, then training, then what people look at. Floor 6."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distrl.checkpoint import newest_checkpoint, read_checkpoint, read_model, versions, weights_sha256
from distrl.config import Config, algorithm_module, dotted, load_config
from distrl.envs import EnvInfo, describe_env
from distrl.envs.shard import NativeShard
from distrl.envs.table import read_table
from distrl.errors import Diverged, UserError
from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.files import write_text
from distrl.policy import single_threaded
from distrl.track import Console, MetricsLog, MlflowTracker, Status, check_tracking, collect_tags, tracking_uri
from distrl.trainer import Resources, Trainer
from distrl.types import Array, Policy
from distrl.workers.replay import replay_row_bytes, too_large

RUNNERS_PER_CPU = 32  # more processes than that on a core are a mistake
CHANGEABLE = ("stop", "cluster", "track", "checkpoint", "run_dir")  # on resume: what cannot change the arithmetic


@dataclass
class Result:
    """How a run ended; `data` is what result.json holds."""

    run_dir: Path
    data: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.data["status"])


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
            _same_config(read_checkpoint(start)[3], config, start)
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


def share_out(config: Config, cpus: float, gpus: float | None) -> Resources:
    """Share the CPUs and GPUs of a cluster among the workers. `gpus` None: not known yet.

    Raises:
        UserError: the config asks for more than there is.
    """
    cluster, shards = config.cluster, config.rollout.shards
    if gpus is not None and config.learner.device == "cuda" and gpus < 1:
        raise UserError("learner.device is 'cuda', but there is no GPU here. Set learner.device=auto or cpu.")
    if cpus <= 0:
        raise UserError(f"No CPU is free on the cluster at {cluster.address!r}. Wait for its other jobs, or end one.")
    wanted = min(shards, max(1, int(cpus))) if cluster.runners == "auto" else cluster.runners
    each = cluster.cpus_per_runner
    if each is not None and wanted * each > cpus:
        raise UserError(
            f"cluster.runners={wanted} at cluster.cpus_per_runner={each:g} need {wanted * each:g} CPUs; {cpus:g} are free. "
            f"Lower one of them; they change only the speed."
        )
    if wanted > RUNNERS_PER_CPU * cpus:
        raise UserError(
            f"cluster.runners={wanted} is more than {RUNNERS_PER_CPU} processes on each of the {cpus:g} CPUs here. "
            f"Set at most {int(RUNNERS_PER_CPU * cpus)}, or 'auto'; it changes only the speed."
        )
    runners = min(wanted, shards)
    if each is not None:
        return Resources(runners, each, 0, 0 if config.learner.device == "cpu" else min(1.0, gpus or 0))
    unit = int(10_000 * min(1.0, cpus / (runners + config.learner.threads))) / 10_000  # Ray counts in ten-thousandths
    learner_gpus = 0 if config.learner.device == "cpu" else min(1.0, gpus or 0)
    return Resources(runners, unit, unit * config.learner.threads, learner_gpus)


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class _Signals:
    """Ctrl-C and SIGTERM ask the run to end; the second Ctrl-C leaves at once (a janitor ends Ray's processes)."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> str | None:
        return self.reason

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self.reason is not None:
                os._exit(130)
            self.reason = "interrupted"
            print("\nEnding the run with a checkpoint; once more to leave at once.", file=sys.stderr, flush=True)

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Observer:
    """Rows to metrics.jsonl and the console; what MLflow's process has to say to the console."""

    def __init__(self, log: MetricsLog, console: Console, tracker: MlflowTracker | None) -> None:
        self.log, self.console, self.tracker = log, console, tracker
        self.warned: set[str] = set()

    def record(self, row: dict[str, float]) -> None:
        self.log.append(row)
        self.console.update(row)
        if self.tracker is not None and (message := self.tracker.poll()):
            self.console.warn(message)

    def note(self, message: str) -> None:
        self.console.note(message)

    def warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            self.console.warn(message)


def train(config: Config, *, local: bool = False, resume: str | Path | None = None, quiet: bool = False) -> Result:
    """Train as the config says, and leave everything in the run directory.

    Args:
        local: everything in this process, without Ray; the same weights bit for bit
        resume: a run directory, or one of its checkpoints, to go on from
        quiet: no progress display
    Raises:
        UserError: the config cannot be run; nothing was made
        EnvError, Diverged: training failed; the run directory holds all up to there
    """
    plan = plan_run(config, None if resume is None else Path(resume))
    signals = _Signals()
    with signals.handled():
        execution, resources = _start_execution(plan, local)
        try:
            return _train(plan, execution, resources, signals, quiet)
        finally:
            execution.close()


def _start_execution(plan: Plan, local: bool) -> tuple[Execution, Resources]:
    config = plan.config
    if local:
        from distrl.workers.learner import choose_device

        torch = algorithm_module(config.algorithm.name).NEEDS_TORCH
        gpus = 1.0 if torch and config.learner.device != "cpu" and choose_device("auto") == "cuda" else 0.0
        share_out(
            config.model_copy(update={"cluster": config.cluster.model_copy(update={"runners": 1})}), cpu_count(), gpus
        )
        return LocalExecution(), Resources(runners=1)
    from distrl.execution.cluster import RayExecution

    execution = RayExecution(config.cluster.address, plan.object_store_bytes)
    try:
        return execution, share_out(config, execution.cpus, execution.gpus)
    except BaseException:
        execution.close()
        raise


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


def _train(plan: Plan, execution: Execution, resources: Resources, signals: _Signals, quiet: bool) -> Result:
    config, run_dir = plan.config, plan.run_dir
    with _locked(run_dir):
        write_text(run_dir / "config.yaml", config.to_yaml())
        tracker = _start_tracker(plan) if config.track.mlflow else None
        console = Console(config.stop.env_steps, quiet)
        observer = _Observer(MetricsLog(run_dir / "metrics.jsonl"), console, tracker)
        for message in plan.warnings:
            observer.warn(message)
        if plan.replay_bytes:
            observer.note(replay_note(plan))
        about = {
            "algorithm": config.algorithm.name,
            "env": config.env.model_dump(mode="json"),
            "observation": {
                "shape": list(plan.info.observation_space.shape or ()),
                "dtype": str(plan.info.observation_space.dtype),
            },
        }
        trainer = Trainer(
            config,
            plan.policy,
            plan.initial_weights,
            about,
            plan.info.reward_threshold,
            execution,
            resources,
            run_dir,
            observer,
            signals,
            plan.start,
        )
        status, error = "failed", None
        try:
            _write_result(trainer, "running", None)
            trainer.run()
            status = "interrupted" if trainer.progress.stopped == "interrupted" else "finished"
        except Diverged as caught:
            status, error = "diverged", str(caught)
            raise
        except BaseException:
            error = traceback.format_exc()
            raise
        finally:
            console.close()
            try:
                result = _write_result(trainer, status, error)
            except UserError as full:
                if error is None:
                    raise
                console.warn(str(full))  # what ended the run matters more
            if status == "finished":
                execution.close()  # plots and videos need no workers, and some memory
                for message in _present(plan):
                    console.warn(message)
            if tracker is not None:
                outcomes: dict[str, Status] = {"finished": "FINISHED", "interrupted": "KILLED"}
                behind = tracker.finish(outcomes.get(status, "FAILED"), timeout=60)
                if behind:
                    observer.warn(behind)
        return result


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """The run directory, made where it is missing, for this process alone."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"run_dir {str(run_dir)!r} cannot be written: {error}.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is in use by another process that trains it. Wait for it, or end it.") from None
        yield
    finally:
        os.close(handle)


def _start_tracker(plan: Plan) -> MlflowTracker:
    config = plan.config
    params = config.model_dump(mode="json", exclude={"run_dir", "track"})
    return MlflowTracker.start(
        plan.run_dir,
        uri=tracking_uri(config, plan.run_dir),
        experiment=config.track.experiment,
        tags=collect_tags(),
        params=params,
        run_name=plan.run_dir.name,
        register_as=config.track.register_as,
    )


def _write_result(trainer: Trainer, status: str, error: str | None) -> Result:
    progress, final = trainer.progress, trainer.final
    sha256 = None
    last = newest_checkpoint(trainer.run_dir)
    if status != "running" and last is not None:
        sha256 = weights_sha256(read_model(last)[0])
    data: dict[str, Any] = {
        "status": status,
        "stopped_by": progress.stopped,
        "env_steps": progress.env_steps,
        "episodes": progress.episodes,
        "return_mean": progress.return_mean,
        "evaluation": None
        if final is None
        else {
            "mean": final.mean,
            "std": final.std,
            "min": min(final.returns),
            "max": max(final.returns),
            "episodes": len(final.returns),
            "env_steps": final.env_steps,
            "greedy": trainer.config.evaluation.greedy,
            **{
                name: {"mean": float(np.mean(v)), "std": float(np.std(v)), "min": min(v), "max": max(v)}
                for name, v in final.infos.items()
            },
        },
        "weights_sha256": sha256,
        "startup_s": None if trainer.first_step is None else trainer.first_step - psutil.Process().create_time(),
        "train_s": progress.train_s,
        "time_to_threshold_s": progress.time_to_threshold_s,
        "steps_to_threshold": progress.steps_to_threshold,
        "steps_to_streak": progress.steps_to_streak,
        "env_steps_per_s": progress.env_steps / progress.train_s if progress.train_s else None,
        "seconds": {name.removeprefix("time/").removesuffix("_s"): value for name, value in trainer.totals.items()},
        "restarts": trainer.restarts,
        "versions": versions(),
        "error": error,
    }
    write_text(trainer.run_dir / "result.json", json.dumps(data, indent=1))
    return Result(trainer.run_dir, data)


def _present(plan: Plan) -> list[str]:
    """Curves, a video and a model card. What cannot be made is told, and costs the run nothing."""
    from distrl import maps, report, video

    run_dir, failed = plan.run_dir, []
    try:
        report.plot_training(run_dir, run_dir / "plots")
        maps.plot_map(run_dir, run_dir / "plots" / "policy.png")
        write_text(run_dir / "best" / "README.md", report.model_card(run_dir))
        if plan.config.track.video and "rgb_array" in plan.info.render_modes:
            policy, _ = read_model(run_dir / "best")
            video.record_video(policy, plan.config.env, run_dir / "videos" / "best.webm", seed=plan.config.seed)
    except (UserError, OSError, ImportError) as error:
        failed.append(f"not all pictures of this run could be made: {error}")
    return failed
