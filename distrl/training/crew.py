"""Who works for a run: the learner, and the runners, which are replaced and watched for those that hang."""

from __future__ import annotations

import time

from distrl.execution import Execution, Worker
from distrl.execution.resources import Resources
from distrl.settings import Config
from distrl.types import Arrays, Origin, Policy
from distrl.workers.learner import Learner
from distrl.workers.runner import Runner


class Crew:
    def __init__(
        self, config: Config, policy: Policy, execution: Execution, resources: Resources, origin: Origin | None
    ) -> None:
        """`policy`: without weights; every worker gets a copy."""
        self.config, self.policy, self.execution, self.resources = config, policy, execution, resources
        self.origin = origin
        self.runners: list[Worker] = []
        self.started: set[Worker] = set()  # runners that have answered

    def learner(self, state: Arrays) -> Worker:
        """A fresh one, to go on from the state of a checkpoint; empty: from the beginning."""
        arguments, resources = (self.config, self.policy, state or None, self.origin), self.resources
        return self.execution.spawn(
            Learner, *arguments, name="learner", cpus=resources.learner_cpus, gpus=resources.learner_gpus
        )

    def start(self) -> None:
        """As many runners as there shall be, in place of all there are."""
        self.dismiss()
        self.runners = [self._spawn() for _ in range(self.resources.runners)]

    def dismiss(self) -> None:
        """End all runners."""
        for runner in self.runners:
            self.execution.kill(runner)
        self.runners = []

    def runner_of(self, shard: int) -> Worker:
        """Who is asked for a shard's fragments."""
        return self.runners[shard % len(self.runners)]

    def replace(self, runner: Worker) -> None:
        """A fresh process in the place of one."""
        self.execution.kill(runner)
        self.runners[self.runners.index(runner)] = self._spawn()

    def hung(self, busy: set[Worker], watch: Watch) -> list[tuple[Worker, str]]:
        """Those of the busy runners whose heartbeat has not moved since the last look, and where they are."""
        beats, found = {}, []
        for runner in busy:
            progress = self.execution.progress(runner, "progress")
            if progress is None and runner not in self.started:
                continue  # its process is still starting
            beat, where = (-1, "an unknown place, for it does not answer") if progress is None else progress
            self.started.add(runner)
            if not where:
                continue  # it waits for weights
            if watch.beats.get(runner) == beat:
                found.append((runner, where))
            else:
                beats[runner] = beat
        watch.beats = beats
        return found

    def _spawn(self) -> Worker:
        config, cpus = self.config, self.resources.cpus_per_runner
        arguments = config.env, config.rollout, config.seed, self.policy, config.cluster.rebuild_timeout_s
        return self.execution.spawn(Runner, *arguments, name="runner", cpus=cpus)


class Watch:
    """How long nothing was heard of any runner, and their heartbeats at the last look."""

    def __init__(self, limit: float) -> None:
        self.limit, self.interval = limit, min(0.5, limit / 4)
        self.beats: dict[Worker, int] = {}
        self.heard()

    def heard(self) -> None:
        self.since = time.perf_counter()

    def too_long(self) -> bool:
        return time.perf_counter() - self.since > self.limit
