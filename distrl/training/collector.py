"""Asking runners for fragments, and getting them whatever becomes of the runners.

A fragment is known by (shard, number): the shard's first is its number 0. The driver holds futures, reports and
journals, never the arrays of a rollout.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from distrl.envs.journal import Journal
from distrl.errors import EnvError, ExecutionLost, WorkerLost
from distrl.execution import Execution, Future, Worker
from distrl.settings import Config
from distrl.training.checkpoint import RunState
from distrl.training.crew import Crew
from distrl.training.recovery import ENV_ATTEMPTS, Recovery
from distrl.training.schedule import Key, make_schedule
from distrl.training.updates import Updates
from distrl.types import Report, Snapshot
from distrl.workers.runner import Before

ATTEMPTS = 5  # at a fragment whose runner dies each time
AHEAD = 2  # fragments of a shard asked for at once, so that its runner goes on without waiting for the driver


@dataclass(frozen=True)
class Asked:
    """A fragment that a runner is rolling."""

    key: Key
    fragment: Future
    runner: Worker


class Collector:
    """Gathers the fragments of an iteration. What becomes of those that fail is for `Retries`."""

    def __init__(self, config: Config, execution: Execution, crew: Crew, recovery: Recovery, updates: Updates) -> None:
        self.config, self.execution, self.crew = config, execution, crew
        self.recovery, self.updates, self.schedule = recovery, updates, make_schedule(config)
        self.retries = Retries(self)

    def load(self, state: RunState) -> None:
        """Forget what is in flight and go on from these snapshots."""
        self.progress = state.progress  # its iteration is being collected
        first = {shard: 0 if s is None else s.iteration for shard, s in state.snapshots.items()}
        self.next = dict(first)  # number of each shard's next fragment to ask for
        self.learnt = dict(first)  # and of its first that was not handed to the learner
        self.journals = {shard: Journal(s) for shard, s in state.snapshots.items()}
        self.fragments: dict[Key, tuple[Future, Report]] = {}  # rolled, in the order of their arrival
        self.asked: dict[Future, Asked] = {}  # by the future of their reports
        self.retries.attempts.clear()
        self.crew.live.clear()
        self.crew.node_died = False
        if not self.crew.runners:
            self.crew.start()

    def newest_snapshots(self) -> dict[int, Snapshot | None]:
        """Of each shard, before its first fragment that the learner was not given."""
        return {shard: self.journals[shard].before(number) for shard, number in self.learnt.items()}

    def acting_version(self) -> int:
        """Of the weights that act in a fragment of this iteration that is asked for now."""
        return self._version(self.progress.iteration)

    def ask_ahead(self) -> None:
        """Ask for the next fragments of every shard that the schedule lets go on."""
        in_flight, k = [*(asked.key for asked in self.asked.values()), *self.fragments], self.progress.iteration
        rolling = Counter(asked.key[0] for asked in self.asked.values())
        for depth in range(AHEAD):
            for shard in self.next:
                key = shard, self.next[shard]
                if rolling[shard] <= self.crew.ahead(shard, depth) and self.schedule.may_roll(key, k, in_flight):
                    self.ask(key)
                    rolling[shard] += 1
                    in_flight.append(key)

    def collect(self) -> tuple[list[Future], list[Report]]:
        """The fragments of the iteration and their reports, when all have come and the learner is at most `lag` behind."""
        while (
            batch := self.schedule.batch(self.progress.iteration, self.fragments)
        ) is None or self._learner_is_behind():
            self.recovery.check()
            self.retries.follow()
            # Wait only for each shard's oldest fragment; later ones depend on it.
            oldest = {asked.key[0]: future for future, asked in reversed(self.asked.items())}
            learning = self.updates.oldest
            done = self.recovery.wait([*oldest.values(), *learning], 0.5)
            for future in done:
                if future in learning:
                    self.updates.settle(len(self.updates.unsettled) - 1)
                else:
                    self._take(future)
            if done:
                self.ask_ahead()
        for shard, number in batch:
            self.learnt[shard] = number + 1
        taken = [self.fragments.pop(key) for key in batch]
        return [fragment for fragment, _ in taken], [report for _, report in taken]

    def forget_old(self) -> None:
        """An iteration was handed to the learner: drop what only that one needed."""
        for shard, journal in self.journals.items():
            journal.forget(self.learnt[shard])
        self.updates.versions.forget_before(self._version(self.progress.iteration) - 1)  # it makes that one

    def _learner_is_behind(self) -> bool:
        return len(self.updates.unsettled) > self.schedule.lag

    def _version(self, number: int) -> int:
        return self.schedule.version(number, finished=self.progress.iteration - len(self.updates.unsettled))

    def ask(self, key: Key) -> None:
        shard, number = key
        runner, has_it = self.crew.runner_of(shard)
        message, *keyframe = self.updates.versions.of(self._version(number))
        before: Before = "live" if has_it else self.journals[shard].before(number)
        report, fragment = self.execution.submit_pair(runner, "rollout", shard, number, message, before, *keyframe)
        self.asked[report] = Asked(key, fragment, runner)
        self.next[shard] = number + 1

    def _take(self, future: Future) -> None:
        if future not in self.asked:  # asked again in the meantime
            return
        asked = self.asked[future]
        try:
            report: Report = self.execution.get(future)
        except EnvError as error:
            self.retries.after_error(asked, error)
            return
        except ExecutionLost:
            raise
        except WorkerLost as lost:
            if lost.worker is None or lost.worker in self.crew.all_runners:
                self.retries.after_loss(asked.runner, lost)
            elif lost.worker in self.updates.workers:
                raise
            return  # else of a runner that was replaced already
        del self.asked[future]
        report.seconds["ship"] = max(0.0, time.time() - report.started - sum(report.seconds.values()))
        self.fragments[asked.key] = asked.fragment, report
        self.journals[asked.key[0]].add(report.after, report.actions)


class Retries:
    """Asks again for fragments whose env raised or whose runner is gone, until it must be their own fault."""

    def __init__(self, collector: Collector) -> None:
        self.collector, self.crew, self.recovery = collector, collector.crew, collector.recovery
        self.config = collector.config
        self.attempts: Counter[Key] = Counter()

    def follow(self) -> None:
        """Follow the nodes. Raises `WorkerLost` where one has died, since fragments that the learner waits for lay there.

        Ray says nothing of that: the learner would wait for ever, and runners for its weights.
        """
        self.crew.follow({asked.runner for asked in self.collector.asked.values()})
        if self.crew.node_died:
            learner = self.collector.updates.learner
            raise WorkerLost(learner, "a node died, and with it fragments that it was to learn from")

    def after_error(self, asked: Asked, error: EnvError) -> None:
        shard = asked.key[0]
        for other in [f for f, entry in self.collector.asked.items() if entry.key[0] == shard]:
            del self.collector.asked[other]  # it, and what was to go on from there
        del self.crew.live[shard]
        self.attempts[asked.key] += 1
        if self.attempts[asked.key] >= ENV_ATTEMPTS:
            raise error
        self.recovery.count_restart(f"{str(error).splitlines()[0]}; trying that fragment again")
        self.collector.ask(asked.key)

    def after_loss(self, runner: Worker, lost: WorkerLost) -> None:
        """A fresh process in the place of a runner, or others, asked for all that the old one owed."""
        if runner not in self.crew.all_runners:
            return
        owed = {future: asked.key for future, asked in self.collector.asked.items() if asked.runner is runner}
        for future in owed:
            del self.collector.asked[future]
        if owed:
            first = min(owed.values(), key=lambda key: key[1])
            self.attempts[first] += 1
            if self.attempts[first] >= ATTEMPTS:
                copies = self.config.rollout.envs_per_shard
                raise RuntimeError(
                    f"fragment {first[1]} of shard {first[0]} of {self.config.env.id} took its runner down {ATTEMPTS} times "
                    f"(env copies {first[0] * copies} and up, seed {self.config.seed}): {lost}"
                ) from lost
        if self.crew.replace(runner):
            self.recovery.count_restart(f"a runner was lost ({lost}); another takes its place")
        for key in owed.values():
            self.collector.ask(key)
