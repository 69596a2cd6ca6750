"""The loop: ask for fragments, hand them to the learner, count, evaluate, checkpoint, recover.

Iteration k takes S fragments, one of each shard or the first that came (`distrl.training.schedule` says which, and by
what weights they are acted), and makes version k + 1 of the weights of them.

Everything that is decided (when to stop, what is best, when to evaluate) is decided from counted things in their order,
so that it cannot depend on which process was faster. A lost runner or evaluator is replaced and asked again; a lost
learner or replay takes the run back to the newest checkpoint, from where it replays to the same bits. Rows already
recorded are not recorded twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import WorkerLost
from distrl.execution import Execution, Worker
from distrl.execution.resources import Resources
from distrl.models.store import list_checkpoints
from distrl.settings import Config
from distrl.training.checkpoint import RunState, read_checkpoint, write_checkpoint
from distrl.training.collector import Collector
from distrl.training.evaluations import Evaluations
from distrl.training.progress import Ledger, Progress
from distrl.training.recovery import Interrupted, Observer, Recovery, TimeUp
from distrl.training.updates import Updates
from distrl.types import Array, Policy


@dataclass(frozen=True)
class Job:
    """What is to be trained."""

    config: Config
    policy: Policy  # without weights
    initial_weights: Array  # of version 0, [P]
    about: dict[str, Any]  # of the env and the algorithm, for model directories
    threshold: float | None  # the env's reward threshold
    run_dir: Path
    start: Path | None  # the checkpoint to go on from; None: the beginning


class Trainer:
    """The loop over its parts, which `make_trainer` puts together."""

    def __init__(
        self,
        job: Job,
        recovery: Recovery,
        ledger: Ledger,
        updates: Updates,
        collector: Collector,
        evaluations: Evaluations,
    ) -> None:
        self.job, self.config, self.run_dir = job, job.config, job.run_dir
        self.recovery, self.ledger, self.updates = recovery, ledger, updates
        self.collector, self.evaluations = collector, evaluations
        self.newest = job.start  # the newest checkpoint that was read or written
        self.progress = Progress()

    def run(self) -> None:
        """Train until something ends the run: `progress.stopped` tells what."""
        self._load()
        self.recovery.restarts = self.progress.restarts
        while True:
            try:
                self.progress.stopped = self._train()
                self.recovery.decided = True
                self._checkpoint()
                self._finish()
                return
            except Interrupted as interruption:
                if not self.recovery.decided:  # else all but the last evaluation is written
                    self._checkpoint()
                self.progress.stopped = str(interruption)
                return
            except WorkerLost as lost:
                self._go_back(lost)

    def _train(self) -> str:
        """Iterate until something that was asked for ends the run; returns what."""
        every = self.config.checkpoint.every
        while (reason := self.ledger.reason_to_stop()) is None:
            try:
                self._iterate(self.progress.iteration)
            except TimeUp:
                return "seconds"
            if every and self.progress.iteration % every == 0:
                self._checkpoint()
        return reason

    def _iterate(self, k: int) -> None:
        self.collector.ask_ahead()
        evaluated = self.evaluations.at(k)
        fragments, reports = self.collector.collect()
        row = self.ledger.open(k, reports) | evaluated
        self.updates.submit(k, row, fragments)
        self.progress.iteration = k + 1
        self.collector.forget_old()

    def _finish(self) -> None:
        row = self.ledger.head(self.progress.iteration)
        if evaluated := self.evaluations.finish():
            self.recovery.observer.record(row | evaluated)

    def _checkpoint(self) -> None:
        """Write the state between the updates so far and the next iteration."""
        self.updates.settle(0)
        k = self.progress.iteration
        if self.newest is not None and int(self.newest.name) == k:
            return
        path = self.run_dir / "checkpoints" / f"{k:08d}"
        write_checkpoint(path, self._state(), self.job.policy, self.job.about, self.config.to_yaml())
        self.newest = path
        older = [p for p in list_checkpoints(self.run_dir) if int(p.name) <= k]
        for old in older[: -self.config.checkpoint.keep]:
            shutil.rmtree(old)

    def _state(self) -> RunState:
        versions, k = self.updates.versions, self.progress.iteration
        self.progress.restarts = self.recovery.restarts
        weights = [versions.fetch(versions.of(v)) for v in (self.collector.acting_version(), k)]
        return RunState(
            self.progress,
            {w.version: w.vector for w in (*self.evaluations.weights().values(), *weights)},
            self.collector.newest_snapshots(),
            self.updates.state(),
            self.updates.replay_state() if self.config.checkpoint.replay else {},
            self.evaluations.best,
        )

    def _load(self) -> None:
        """Make all parts those of the newest checkpoint, or of the beginning."""
        shards = self.config.rollout.shards
        if self.newest is None:
            state = RunState.beginning(self.job.initial_weights, shards)
        else:
            state = read_checkpoint(self.newest, shards)
            if self.config.replay is not None and not state.replay:
                self.recovery.observer.warn(
                    f"{self.newest} holds no replay (checkpoint.replay was false): it fills anew, and the weights will "
                    "be others than without the interruption"
                )
        self.progress = state.progress
        self.progress.stopped, self.recovery.decided = None, False
        self.ledger.load(self.progress)
        self.updates.load(state)
        self.collector.load(state)
        self.evaluations.load(state)

    def _go_back(self, lost: WorkerLost) -> None:
        """The learner, or a replay that it learns from, is gone: start again from the newest checkpoint."""
        where = "the beginning" if self.newest is None else f"iteration {int(self.newest.name)}"
        replay = lost.worker in self.updates.workers and lost.worker is not self.updates.learner
        self.recovery.count_restart(
            f"{'a replay' if replay else 'the learner'} was lost ({lost}); going back to {where}"
        )
        self.updates.kill()
        if lost.worker is None:  # not known what is gone: all of it is replaced
            self.collector.replace_all()
            self.evaluations.replace()
        self._load()

    @property
    def workers(self) -> list[Worker]:
        """All that run now."""
        evaluator = self.evaluations.evaluator
        return [*self.collector.runners, *self.updates.workers, *([] if evaluator is None else [evaluator])]


def make_trainer(
    job: Job, execution: Execution, resources: Resources, observer: Observer, interrupted: Callable[[], str | None]
) -> Trainer:
    """The parts of a run, put together. `interrupted`: asked often; a reason ends the run with a checkpoint."""
    config, policy = job.config, job.policy
    recovery = Recovery(config, execution, observer, interrupted)
    ledger = Ledger(config, job.threshold, recovery, observer)
    updates = Updates(config, policy, execution, resources, recovery, ledger)
    collector = Collector(config, policy, execution, resources, recovery, updates)
    evaluations = Evaluations(config, policy, job.about, execution, recovery, updates, job.run_dir)
    return Trainer(job, recovery, ledger, updates, collector, evaluations)
