"""A run from its config to its result: checks first, then the directory, then training, then what people look at."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from distrl import signals
from distrl.config import load_config
from distrl.errors import Diverged, UserError
from distrl.execution import Execution
from distrl.execution.alarm import alarm
from distrl.execution.gauges import Gauges
from distrl.execution.local import LocalExecution
from distrl.execution.moving import MovingExecution, RayBeside
from distrl.execution.resources import Resources, Seat, placement, share_out
from distrl.files import locked, new_directory, write_text
from distrl.heartbeat import HEART, leave
from distrl.models.opponents import copy_opponents
from distrl.models.store import newest_checkpoint
from distrl.registry import algorithm_module
from distrl.runs.origin import COPY, copy_origin
from distrl.runs.plan import Plan, plan_run
from distrl.runs.result import Result, present, write_result
from distrl.settings import Config
from distrl.storage.fetch import brought
from distrl.storage.uploader import StorageCopy
from distrl.stores import Store
from distrl.tracking.console import Console, RunObserver
from distrl.tracking.metrics import MetricsLog
from distrl.tracking.mlflow import MlflowTracker
from distrl.tracking.tensorboard import TensorBoard
from distrl.tracking.where import run_tags, tracking_uri
from distrl.training.callbacks import Callbacks
from distrl.training.checkpoints import LEAVE_S
from distrl.training.job import Job
from distrl.training.progress import PAUSED
from distrl.training.trainer import Trainer, make_trainer
from distrl.types import EnvInfo
from distrl.workers.learner import choose_device, gpu_count

if TYPE_CHECKING:
    from distrl.execution.cluster import RayExecution

LATE_S = 5.0  # behind `stop.grace_s`: by then whatever can end has ended
WRITE_S = 60.0  # behind that: a large checkpoint that is being written is waited for
# What runs the workers of a plan, the config with the device that the learner gets there, and what each worker gets.
Start = Callable[[Plan], tuple[Execution, Config, Resources]]


def train(
    config: Config | str | Path | Mapping[str, Any],
    *,
    local: bool = False,
    resume: str | Path | None = None,
    quiet: bool = False,
    callbacks: Sequence[object] = (),
    since: float | None = None,
) -> Result:
    """Train as the config says, and leave everything in the run directory.

    Args:
        config: or what `load_config` takes: a YAML file, a preset's name, a mapping
        local: everything in this process, without Ray; the same weights bit for bit
        resume: a run directory, or one of its checkpoints, to go on from; or a run's address in a store (`storage`)
        quiet: no progress display
        callbacks: objects with any of `on_iteration(row)` (a row of metrics.jsonl), `on_evaluation(evaluation)` (during
            training; a `distrl.types.Evaluation`) and `on_checkpoint(path)`. One that returns False ends the run as
            `stop` does, `stopped_by` being "callback"; one that raises ends it as `failed`, with a checkpoint. They are
            called in this process, whose training waits for them, and get copies
        since: unix time from which `startup_s` of the result is counted; None: now
    Raises:
        UserError: the config cannot be run; nothing was made
        EnvError, Diverged, what a callback raised: training failed; the run directory holds all up to there
        KeyboardInterrupt: it was to end before it began; later on the wish ends it with a checkpoint
    """
    since = time.time() if since is None else since
    told = Callbacks(callbacks)
    config = config if isinstance(config, Config) else load_config(config)
    plan = plan_run(config, None if resume is None else brought(resume, config.run_dir))

    return train_as(plan, lambda plan: _start(plan, local, quiet), told, since=since, quiet=quiet)


def train_as(
    plan: Plan,
    start: Start,
    callbacks: Callbacks,
    *,
    since: float,
    quiet: bool = False,
    pictures: bool = True,
    wish: Callable[[], str | None] = lambda: None,
) -> Result:
    """Train what is planned, as `train` does.

    Args:
        start: what runs the workers
        pictures: draw and record what people look at, at the end
        wish: asked often; a reason ends the run with a checkpoint, as a signal does
    """
    request = signals.Request()
    with _taken(plan) as (plan, keep):
        execution, config, resources = start(plan)
        plan = replace(plan, config=config)
        try:
            with signals.handled(request), alarm(config.cluster):
                keep()
                observer = _start_observer(plan, quiet)
                trainer = _make_trainer(
                    plan, execution, resources, observer, lambda: request.reason or wish(), callbacks
                )
                observer.console.follow(trainer.recovery.execution.doing)
                request.at_last(LEAVE_S, leave)  # of workers in this process
                request.at_last(config.stop.grace_s + LATE_S, lambda: _leave(trainer, since))
                try:
                    return _train(plan, trainer, request, observer, since, pictures)
                finally:
                    trainer.recovery.execution.close()
        finally:
            HEART.leave = False  # this process may go on
            execution.close()


@contextmanager
def _taken(plan: Plan) -> Iterator[tuple[Plan, Callable[[], None]]]:
    """The plan with its run directory for this process alone, and a call that keeps a new directory."""
    if plan.resuming:
        with locked(plan.run_dir):
            yield plan, lambda: None
        return
    with new_directory(plan.run_dir, numbered=not plan.named) as (run_dir, keep):
        own = {"run_dir": str(run_dir)} | ({} if plan.origin is None else {"init_from": str(run_dir / COPY)})
        yield replace(plan, run_dir=run_dir, config=plan.config.model_copy(update=own)), keep


def _start(plan: Plan, local: bool, quiet: bool) -> tuple[Execution, Config, Resources]:
    """This process, the config with the device that the learner gets in it, and what each worker gets; or so with a Ray."""
    config, torch = plan.config, algorithm_module(plan.config.algorithm.name).NEEDS_TORCH
    cluster, joined, alone = config.cluster, None, Resources((Seat(),), replay_bytes=plan.replay_bytes)
    if not local and (cluster.start == "wait" or cluster.address != "local"):
        if not quiet:
            what = "Starting Ray" if cluster.address == "local" else f"Joining Ray at {cluster.address}"
            print(f"{what} ...", file=sys.stderr, flush=True)
        there = joined, config, _ = _start_elsewhere(plan)  # what a cluster lacks is told before anything is made
        if cluster.start == "wait" or not _can_begin_here(config, plan.replay_bytes):
            return there
    else:
        config = on_device_here(config)
    if local:
        if config.learner.count > 1 and not quiet:
            print("With --local this process is the one learner, and has all slices; same weights.", file=sys.stderr)
        return LocalExecution(), config, alone
    beside = RayBeside(config, plan.object_store_bytes, plan.replay_bytes, torch, joined)
    return MovingExecution(beside), config, alone


def on_device_here(config: Config) -> Config:
    """The config with the device that its learner gets in this process. Raises `UserError` where that cannot be had."""
    wanted = config.learner.device
    matters = algorithm_module(config.algorithm.name).NEEDS_TORCH and wanted != "cpu"  # else loading torch is saved
    return config.on_device(choose_device(wanted, gpu_count() if matters else 0))


def _can_begin_here(config: Config, replay_bytes: int) -> bool:
    """Whether what goes on elsewhere can begin in this process: where it learns to the same bits, in half of the memory."""
    fits = replay_bytes < psutil.virtual_memory().available / 2
    return fits and (config.learner.device == "cpu" or gpu_count() > 0)


def _start_elsewhere(plan: Plan) -> tuple[Execution, Config, Resources]:
    """A Ray, likewise."""
    config, torch = plan.config, algorithm_module(plan.config.algorithm.name).NEEDS_TORCH
    execution = _start_ray(plan)
    try:
        nodes = execution.nodes()
        gpus = max((node.gpus for node in nodes), default=0)
        config = config.on_device(choose_device(config.learner.device, gpus if torch else 0))
        return execution, config, share_out(config, nodes, plan.replay_bytes)
    except BaseException:
        execution.close()
        raise


def nodes_note(plan: Plan) -> dict[str, str]:
    """What would go to each node of the cluster that the run joins, by its name. Raises `UserError` where it cannot be joined."""
    execution, _, resources = _start_elsewhere(plan)
    try:
        return placement(resources, execution.nodes())
    finally:
        execution.close()


def _start_ray(plan: Plan) -> RayExecution:
    from distrl.execution.cluster import RayExecution

    return RayExecution(plan.config.cluster.address, plan.object_store_bytes)


def _train(
    plan: Plan, trainer: Trainer, request: signals.Request, observer: RunObserver, since: float, pictures: bool
) -> Result:
    """Train with what was started, write the result and what people look at; then raise what ended the run, if it failed."""
    write_result(trainer, since, "running")
    status, error = _run(trainer)
    request.at_last(None)
    observer.close()
    try:
        result = write_result(trainer, since, status, error)
    except UserError as full:
        if error is None:
            raise
        observer.warn(str(full))  # what ended the run matters more
    if status == "finished":
        trainer.recovery.execution.close()  # plots and videos need no workers, and some memory
        trainer.evaluations.films.close(wait=True)
        if pictures:
            present(plan, observer)
    trainer.evaluations.films.close(wait=False)
    observer.finish(status, trainer.evaluations.final)
    if error is not None:
        raise error
    return result


def _start_observer(plan: Plan, quiet: bool) -> RunObserver:
    """Write the config, and begin to tell of the run: on the terminal, in metrics.jsonl and to MLflow."""
    config, run_dir = plan.config, plan.run_dir
    if plan.origin is not None:
        copy_origin(run_dir, plan.policy, plan.origin, _about(plan))
    if not plan.resuming:
        copy_opponents(run_dir, plan.judged, _about(plan))
    write_text(run_dir / "config.yaml", config.to_yaml())
    tracker = _start_tracker(plan) if config.track.mlflow else None
    log, console = MetricsLog(run_dir / "metrics.jsonl"), Console(config.stop.env_steps, quiet)
    copy = None if config.storage is None else StorageCopy(run_dir, str(Store.parse(config.storage) / run_dir.name))
    board = TensorBoard(run_dir) if config.track.tensorboard else None
    observer = RunObserver(log, console, tracker, board, copy, Gauges(config, run_dir))
    if copy is not None:
        observer.note(f"a copy of this run is kept in {copy.address}")
    for message in plan.warnings:
        observer.warn(message)
    if plan.replay_note is not None:
        observer.note(plan.replay_note)
    return observer


def _start_tracker(plan: Plan) -> MlflowTracker:
    config = plan.config
    params = config.model_dump(mode="json", exclude={"run_dir", "track"})
    return MlflowTracker.start(
        plan.run_dir,
        uri=tracking_uri(config, plan.run_dir),
        experiment=config.track.experiment,
        tags=run_tags(config, plan.run_dir),
        params=params,
        run_name=plan.run_dir.name,
        register_as=config.track.register_as,
    )


def _make_trainer(
    plan: Plan,
    execution: Execution,
    resources: Resources,
    observer: RunObserver,
    interrupted: Callable[[], str | None],
    callbacks: Callbacks,
) -> Trainer:
    about = _about(plan) | ({} if plan.origin is None else {"init_from": plan.origin.source})
    job = Job(
        plan.config,
        plan.policy,
        plan.initial_weights,
        about,
        plan.info.reward_threshold,
        plan.run_dir,
        plan.start,
        plan.judged,
        plan.origin,
    )
    again = None if type(execution) is LocalExecution else lambda: _start_ray(plan)
    return make_trainer(job, execution, resources, observer, interrupted, callbacks, again)


def _leave(trainer: Trainer, since: float) -> None:
    """End this process, which was asked to end long ago: an env, or what learns, hangs in it, or takes long."""
    if trainer.checkpoints.writing:
        until = time.monotonic() + WRITE_S
        while trainer.checkpoints.writing and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(LATE_S)  # in which it comes to its own end
    newest = newest_checkpoint(trainer.job.run_dir)
    trainer.progress.stopped = "interrupted"
    write_result(trainer, since, "interrupted")
    signals.tell(
        f"This process does not come to an end: it is still at {HEART.place or 'an unknown place'}. What is in no checkpoint is "
        f"lost; the run goes on from {'its beginning, as there is none yet' if newest is None else newest}.\n"
    )
    os._exit(130)


def _about(plan: Plan) -> dict[str, Any]:
    """Of the env and the algorithm, for model directories."""
    config, info = plan.config, plan.info
    return {
        "algorithm": config.algorithm.name,
        "env": config.env.model_dump(mode="json"),
        "observation": _tensors(info, "obs_layout", "observation_space"),
        "action": _tensors(info, "action_layout", "action_space"),
    }


def _tensors(info: EnvInfo, layout: str, space: str) -> Any:
    """The arrays that observations (or actions) are of; where agents are in groups those of each agent by name."""
    if info.groups:
        return {name: _tensors(info.of(name), layout, space) for name in info.agents}
    return getattr(info, layout).tensors(getattr(info, space))


def _run(trainer: Trainer) -> tuple[str, BaseException | None]:
    """Train until the end, whatever that is: the status for result.json, and what was raised."""
    try:
        trainer.run()
    except Diverged as error:
        return "diverged", error
    except BaseException as error:
        return "failed", error
    if (raised := trainer.recovery.callbacks.error) is not None:
        return "failed", raised
    return "interrupted" if trainer.progress.stopped in ("interrupted", PAUSED) else "finished", None
