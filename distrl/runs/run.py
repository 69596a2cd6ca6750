"""A run from its config to its result: checks first, then the directory, then training, then what people look at."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from distrl import signals
from distrl.errors import Diverged, UserError
from distrl.execution import Execution
from distrl.execution.local import LocalExecution
from distrl.execution.resources import Resources, cpu_count, share_out
from distrl.files import locked, new_directory, write_text
from distrl.registry import algorithm_module
from distrl.runs.plan import Plan, plan_run
from distrl.runs.result import Result, present, write_result
from distrl.settings import Config
from distrl.tracking.console import Console, RunObserver
from distrl.tracking.metrics import MetricsLog
from distrl.tracking.mlflow import MlflowTracker, Status
from distrl.tracking.where import collect_tags, tracking_uri
from distrl.training.trainer import Job, make_trainer


def train(config: Config, *, local: bool = False, resume: str | Path | None = None, quiet: bool = False) -> Result:
    """Train as the config says, and leave everything in the run directory.

    Args:
        local: everything in this process, without Ray; the same weights bit for bit
        resume: a run directory, or one of its checkpoints, to go on from
        quiet: no progress display
    Raises:
        UserError: the config cannot be run; nothing was made
        EnvError, Diverged: training failed; the run directory holds all up to there
        KeyboardInterrupt: it was to end before it began; later on the wish ends it with a checkpoint
    """
    plan = plan_run(config, None if resume is None else Path(resume))
    request = signals.Request()
    with _taken(plan, named=config.run_dir is not None) as (plan, keep):
        execution, resources = _start_execution(plan, local)
        try:
            with signals.handled(request):
                keep()
                return _train(plan, execution, resources, request, quiet)
        finally:
            execution.close()


@contextmanager
def _taken(plan: Plan, named: bool) -> Iterator[tuple[Plan, Callable[[], None]]]:
    """The plan with its run directory for this process alone, and what keeps a new one when the run begins.

    Args:
        named: by the user; other names are numbered where they are there already
    """
    if plan.resuming:
        with locked(plan.run_dir):
            yield plan, lambda: None
        return
    with new_directory(plan.run_dir, numbered=not named) as (run_dir, keep):
        yield replace(plan, run_dir=run_dir, config=plan.config.model_copy(update={"run_dir": str(run_dir)})), keep


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


def _train(plan: Plan, execution: Execution, resources: Resources, request: signals.Request, quiet: bool) -> Result:
    config, run_dir = plan.config, plan.run_dir
    write_text(run_dir / "config.yaml", config.to_yaml())
    tracker = _start_tracker(plan) if config.track.mlflow else None
    console = Console(config.stop.env_steps, quiet)
    observer = RunObserver(MetricsLog(run_dir / "metrics.jsonl"), console, tracker)
    for message in plan.warnings:
        observer.warn(message)
    if plan.replay_note is not None:
        observer.note(plan.replay_note)
    about = {
        "algorithm": config.algorithm.name,
        "env": config.env.model_dump(mode="json"),
        "observation": {
            "shape": list(plan.info.observation_space.shape or ()),
            "dtype": str(plan.info.observation_space.dtype),
        },
    }
    job = Job(config, plan.policy, plan.initial_weights, about, plan.info.reward_threshold, run_dir, plan.start)
    trainer = make_trainer(job, execution, resources, observer, lambda: request.reason)
    status, error = "failed", None
    try:
        write_result(trainer, "running", None)
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
            result = write_result(trainer, status, error)
        except UserError as full:
            if error is None:
                raise
            console.warn(str(full))  # what ended the run matters more
        if status == "finished":
            execution.close()  # plots and videos need no workers, and some memory
            for message in present(plan):
                console.warn(message)
        if tracker is not None:
            outcomes: dict[str, Status] = {"finished": "FINISHED", "interrupted": "KILLED"}
            behind = tracker.finish(outcomes.get(status, "FAILED"), timeout=60)
            if behind:
                observer.warn(behind)
    return result


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
