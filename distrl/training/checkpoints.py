"""A run's checkpoints: the state of all its parts is put together and written, read and given back to them."""

from __future__ import annotations

import shutil

from distrl.errors import WorkerLost
from distrl.models.store import list_checkpoints
from distrl.training.checkpoint import RunState, read_checkpoint, write_checkpoint
from distrl.training.collector import Collector
from distrl.training.evaluations import Evaluations
from distrl.training.job import Job
from distrl.training.progress import Ledger
from distrl.training.recovery import Recovery
from distrl.training.updates import Updates


class Checkpoints:
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

    def save(self) -> None:
        """Write the state between the updates so far and the next iteration."""
        self.updates.settle(0)
        k = self.ledger.progress.iteration
        if self.newest is not None and int(self.newest.name) == k:
            return
        path = self.run_dir / "checkpoints" / f"{k:08d}"
        write_checkpoint(
            path, self.state(self.config.checkpoint.replay), self.job.policy, self.job.about, self.config.to_yaml()
        )
        self.newest = path
        older = [p for p in list_checkpoints(self.run_dir) if int(p.name) <= k]
        for old in older[: -self.config.checkpoint.keep]:
            shutil.rmtree(old)
        self.recovery.callbacks.checkpoint(path, k)

    def state(self, replay: bool) -> RunState:
        """Of all parts, after the newest update, which it waits for; with what the replays hold, or without."""
        versions, progress = self.updates.versions, self.ledger.progress
        progress.restarts = self.recovery.restarts
        weights = [versions.fetch(versions.of(v)) for v in (self.collector.acting_version(), progress.iteration)]
        return RunState(
            progress,
            {w.version: w.vector for w in (*self.evaluations.weights().values(), *weights)},
            self.collector.newest_snapshots(),
            self.updates.state(),
            self.updates.replay_state() if replay else {},
            self.evaluations.best,
        )

    def load(self) -> None:
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
        state.progress.stopped, self.recovery.decided = None, False
        self.give(state)

    def give(self, state: RunState) -> None:
        """Make all parts those of a state."""
        self.ledger.load(state.progress)
        self.updates.load(state)
        self.collector.load(state)
        self.evaluations.load(state)

    def go_back(self, lost: WorkerLost) -> None:
        """The learner, or a replay that it learns from, is gone: start again from the newest checkpoint."""
        where = "the beginning" if self.newest is None else f"iteration {int(self.newest.name)}"
        replay = lost.worker in self.updates.workers and lost.worker is not self.updates.learner
        self.recovery.count_restart(
            f"{'a replay' if replay else 'the learner'} was lost ({lost}); going back to {where}"
        )
        self.updates.kill()
        if lost.worker is None:  # not known what is gone: all of it is replaced
            self.collector.crew.start()
            self.evaluations.replace()
        self.load()
