"""A run's checkpoints: the state of all its parts is put together and written, read and given back to them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress

from distrl.errors import ExecutionLost, Left, WorkerLost
from distrl.models.store import list_checkpoints
from distrl.training.checkpoint import Owed, RunState, read_checkpoint, write_checkpoint
from distrl.training.collector import Collector
from distrl.training.evaluations import Evaluations
from distrl.training.job import Job
from distrl.training.progress import Ledger
from distrl.training.recovery import Impatient, Recovery
from distrl.training.updates import Updates

LEAVE_S = 0.5  # that an update is waited for where the run is to end


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
        self.owing = False  # it owes updates
        self.writing = False  # another one, now

    def after(self, k: int) -> None:
        """What is due before iteration k: a checkpoint, or that the learner and its replays leave a node that ends."""
        every, to_move = self.config.checkpoint.every, self.collector.crew.to_move
        if to_move or (every and k % every == 0):
            self.save()
        if to_move:
            self.recovery.observer.note("the learner and its replays move to other nodes")
            self._start_again()

    def save(self, leaving: bool = False) -> None:
        """Write the state between the updates so far and the next iteration; where the run is left, as it is by now."""
        owed = self._leave_update() if leaving else self._drain()
        k = self.ledger.progress.iteration
        if self.newest is not None and int(self.newest.name) == k and not (self.owing or owed):
            return
        path, self.writing = self.run_dir / "checkpoints" / f"{k:08d}", True
        try:
            state = self.state(self.config.checkpoint.replay, owed)
            write_checkpoint(path, state, self.job.policy, self.job.about, self.config.to_yaml())
        finally:
            self.writing = False
        self.newest, self.owing = path, bool(owed)
        older = [p for p in list_checkpoints(self.run_dir) if int(p.name) <= k]
        for old in older[: -self.config.checkpoint.keep]:
            shutil.rmtree(old)
        self.recovery.callbacks.checkpoint(path, k)

    def _drain(self) -> list[Owed]:
        """Wait for all updates, with an ear for what ends the run. None is owed then."""
        while self.updates.unsettled:
            self.recovery.check()
            if self.recovery.wait(self.updates.oldest, 0.5):
                self.updates.settle(len(self.updates.unsettled) - 1)
        return []

    def _leave_update(self) -> list[Owed]:
        """Wait a moment for the updates under way, then have the learner leave that which it is in; what it owes."""
        updates, until = self.updates, time.monotonic() + LEAVE_S
        with suppress(Left):
            while updates.unsettled and time.monotonic() < until:
                if self.recovery.wait(updates.oldest, 0.1):
                    updates.settle(len(updates.unsettled) - 1)
            if updates.unsettled:
                self.recovery.execution.leave(updates.learner)
            updates.settle(0)
        return updates.owed()

    def state(self, replay: bool, owed: Sequence[Owed] = ()) -> RunState:
        """Of all parts, after the newest update that is not owed; with what the replays hold, or without."""
        versions, progress = self.updates.versions, self.ledger.progress
        progress.restarts, newest = self.recovery.restarts, progress.iteration - len(owed)
        weights = [versions.fetch(versions.of(v)) for v in (min(self.collector.acting_version(), newest), newest)]
        return RunState(
            progress,
            {w.version: w.vector for w in (*self.evaluations.weights(newest).values(), *weights)},
            self.collector.newest_snapshots(),
            self.updates.state(),
            self.updates.replay_state() if replay else {},
            self.evaluations.best,
            [*owed],
        )

    def begin(self) -> None:
        """Make all parts those of the newest checkpoint, or of the beginning."""
        try:
            self.load()
        except WorkerLost as lost:
            self.go_back(lost)

    def load(self) -> None:
        """As `begin`, which goes on where a worker is lost meanwhile."""
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
        state.progress.stopped, self.recovery.decided, self.owing = None, False, bool(state.owed)
        self.give(state)

    def give(self, state: RunState) -> None:
        """Make all parts those of a state."""
        self.ledger.load(state.progress)
        self.updates.load(state)
        self.collector.load(state)
        self.evaluations.load(state)

    def leave(self) -> None:
        """Save, as the run was asked to end; where that cannot be done in time, the newest checkpoint must do."""
        try:
            self.save(leaving=True)
        except (Impatient, WorkerLost) as error:
            why = f"lost: {error}"
            if isinstance(error, Impatient):
                why = f"not done within stop.grace_s={self.config.stop.grace_s:g}"
            self.recovery.observer.warn(
                f"What was learnt since {self.where} is {why}. "
                + ("There is no checkpoint yet." if self.newest is None else f"The run goes on from {self.newest}.")
            )

    @property
    def where(self) -> str:
        """The newest checkpoint, for people."""
        return "the beginning" if self.newest is None else f"iteration {int(self.newest.name)}"

    def go_back(self, lost: WorkerLost) -> None:
        """The learner, or a replay that it learns from, or all is gone: start again from the newest checkpoint."""
        while True:
            try:
                self._tell(lost)
                return self._start_again(all_of_it=lost.worker is None)  # where it is not known what is gone
            except WorkerLost as again:
                lost = again

    def _tell(self, lost: WorkerLost) -> None:
        """Count a loss and tell of it; where all is gone, put another execution in its place."""
        if isinstance(lost, ExecutionLost):
            self.recovery.count_restart(f"{lost}; going back to {self.where}")
            self.recovery.observer.warn(f"the run goes on in {self.recovery.execution.renew()}")
        else:
            replay = lost.worker in self.updates.workers and lost.worker is not self.updates.learner
            what = "a replay" if replay else "the learner"
            self.recovery.count_restart(f"{what} was lost ({lost}); going back to {self.where}")

    def _start_again(self, all_of_it: bool = False) -> None:
        """Have a fresh learner and replays, at least, go on from the newest checkpoint."""
        self.updates.kill()
        if self.collector.crew.move(all_of_it):
            self.evaluations.replace()
        self.load()
