"""The loop: ask for fragments, hand them to the learner, count, evaluate, checkpoint, recover.

Iteration k takes S fragments, one of each shard or the first that came (`distrl.training.schedule` says which, and by
what weights they are acted), and makes version k + 1 of the weights of them.

Everything that is decided (when to stop, what is best, when to evaluate) is decided from counted things in their order,
so that it cannot depend on which process was faster. A lost runner or evaluator is replaced and asked again; a lost
learner or replay takes the run back to the newest checkpoint, from where it replays to the same bits. Rows already
recorded are not recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distrl.errors import Left, WorkerLost
from distrl.execution import Execution, Worker
from distrl.execution.resources import Resources
from distrl.execution.watched import WatchedExecution
from distrl.training.callbacks import Callbacks
from distrl.training.checkpoints import Checkpoints
from distrl.training.collector import Collector
from distrl.training.crew import Crew
from distrl.training.evaluations import Evaluations
from distrl.training.handover import Handover
from distrl.training.job import Job
from distrl.training.progress import Ledger, Progress
from distrl.training.recovery import Interrupted, Observer, Recovery, TimeUp
from distrl.training.updates import Updates


@dataclass(eq=False)
class Trainer:
    """The loop over its parts, which `make_trainer` puts together."""

    job: Job
    recovery: Recovery
    ledger: Ledger
    updates: Updates
    collector: Collector
    evaluations: Evaluations
    checkpoints: Checkpoints
    handover: Handover

    @property
    def progress(self) -> Progress:
        return self.ledger.progress

    def run(self) -> None:
        """Train until something ends the run: `progress.stopped` tells what."""
        self.checkpoints.begin()
        self.recovery.restarts = self.progress.restarts
        while True:
            try:
                self.progress.stopped = self._train()
                self.recovery.decided = True
                self.checkpoints.save()
                self._finish()
                return
            except (Interrupted, Left) as interruption:
                self.checkpoints.leave()
                self.progress.stopped = str(interruption)
                return
            except WorkerLost as lost:
                self.checkpoints.go_back(lost)

    def _train(self) -> str:
        """Iterate until something that was asked for ends the run; returns what."""
        while (reason := self.ledger.reason_to_stop()) is None:
            try:
                self.handover.at(self.progress.iteration)
                self._iterate(self.progress.iteration)
                self.checkpoints.after(self.progress.iteration)
            except TimeUp:
                return "seconds"
        return reason

    def _iterate(self, k: int) -> None:
        self.collector.ask_ahead()
        evaluated = self.evaluations.at(k)
        fragments, reports = self.collector.collect()
        row, self.progress.evaluated = self.ledger.open(k, reports) | evaluated, {}
        self.updates.submit(k, row, fragments)
        self.progress.iteration = k + 1
        self.collector.forget_old()

    def _finish(self) -> None:
        for i, evaluated in enumerate(self.evaluations.finish()):  # rows that a resumed run replaces
            self.recovery.record(self.ledger.head(self.progress.iteration + i) | evaluated)

    @property
    def workers(self) -> list[Worker]:
        """All that run now."""
        evaluator = self.evaluations.evaluator
        return [*self.collector.crew.all_runners, *self.updates.workers, *([] if evaluator is None else [evaluator])]


def make_trainer(
    job: Job,
    execution: Execution,
    resources: Resources,
    observer: Observer,
    interrupted: Callable[[], str | None],
    callbacks: Callbacks | None = None,
    again: Callable[[], Execution] | None = None,
) -> Trainer:
    """The parts of a run, put together.

    Args:
        interrupted: asked often; a reason ends the run with a checkpoint
        again: starts another execution where this one dies; raises `UserError` where there is none
    """
    config, policy = job.config, job.policy
    execution = WatchedExecution(execution, config.cluster, again, lambda: recovery.patience())
    recovery = Recovery(config, execution, observer, interrupted, callbacks)
    ledger = Ledger(config, job.threshold, recovery, observer)
    crew = Crew(job, execution, resources, recovery)
    updates = Updates(config, execution, crew, recovery, ledger)
    collector = Collector(config, execution, crew, recovery, updates)
    evaluations = Evaluations(config, policy, job.about, execution, recovery, updates, job.run_dir)
    checkpoints = Checkpoints(job, recovery, ledger, updates, collector, evaluations)
    handover = Handover(config, execution, crew, recovery, ledger, updates, evaluations, checkpoints)
    return Trainer(job, recovery, ledger, updates, collector, evaluations, checkpoints, handover)
