"""The loop: ask for fragments, hand them to the learner, count, evaluate, checkpoint, recover.

Iteration k takes S fragments, one of each shard or the first that came (`distrl.training.schedule` says which, and by what weights
they are acted), and makes version k + 1 of the weights of them.

The driver holds futures, reports and snapshots, never the arrays of a rollout. Everything that is decided (when to
stop, what is best, when to evaluate) is decided from counted things in their order, so that it cannot depend on which
process was faster. A lost runner or evaluator is replaced and asked again; a lost learner or replay takes the run back to the
newest checkpoint, from where it replays to the same bits. Rows already recorded are not recorded twice.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distrl.errors import EnvError, WorkerLost
from distrl.execution import Execution, Future, Worker
from distrl.execution.resources import Resources
from distrl.files import write_directory
from distrl.models.store import list_checkpoints, write_model
from distrl.settings import Config
from distrl.training.checkpoint import (
    _snapshot_arrays,
    _snapshot_from_arrays,
    read_checkpoint,
    read_replay,
    write_checkpoint,
)
from distrl.training.feed import Feed, OnPolicyFeed, make_feed
from distrl.training.progress import RECENT, Pending, Progress
from distrl.training.recovery import Interrupted, Observer, TimeUp
from distrl.training.schedule import make_schedule
from distrl.types import Array, Arrays, Evaluation, Policy, Report, Snapshot, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner
from distrl.workers.runner import Runner

ATTEMPTS = 5  # at a fragment whose runner dies each time
LARGE = 20_000  # weights from which on only changes are sent, where an update changes few
KEYFRAMES = 10  # iterations between versions that are then sent whole
AHEAD = 2  # fragments of a shard asked for at once, so that its runner goes on without waiting for the driver
ENV_ATTEMPTS = 2  # at a fragment whose env raises each time: it is a pure function, so the second time is proof


class Trainer:
    def __init__(
        self,
        config: Config,
        policy: Policy,
        initial_weights: Array,
        about: dict[str, Any],
        threshold: float | None,
        execution: Execution,
        resources: Resources,
        run_dir: Path,
        observer: Observer,
        interrupted: Callable[[], str | None],
        start: Path | None,
    ) -> None:
        """
        Args:
            policy: an acting policy without weights, of which every runner gets a copy
            initial_weights: of version 0, [P]
            about: of the env and the algorithm, for model directories
            threshold: the env's reward threshold
            interrupted: asked often; a reason ends the run at the next iteration, with a checkpoint
            start: the checkpoint to go on from; None: the beginning
        """
        self.config, self.policy, self.about, self.threshold = config, policy, about, threshold
        self.initial_weights = initial_weights
        self.execution, self.resources, self.run_dir = execution, resources, run_dir
        self.observer, self.interrupted = observer, interrupted
        self.shards, self.schedule = range(config.rollout.shards), make_schedule(config)
        self.restarts = 0
        self.first_step: float | None = None  # unix time of this process's first env step
        self.rated = (time.perf_counter(), 0)  # when, and env steps, of the row before
        self.blocked = 0.0  # seconds spent waiting for workers since the row before
        self.totals: dict[str, float] = {}  # seconds by phase, over this process's part of the run
        self.newest = start  # the newest checkpoint that was read or written
        self.best: Weights | None = None
        self.final: Evaluation | None = None
        self.progress = Progress()
        self.learner: Worker = None
        self.feed: Feed = OnPolicyFeed(execution, None)
        self.evaluator: Worker = None
        self.runners: list[Worker] = []
        self.started: set[Worker] = set()  # runners that have answered
        self._reset_flight()

    def _reset_flight(self) -> None:
        self.weights: dict[int, Future] = {}  # by version
        self.keyframe: Future | None = None  # the newest version that was sent whole, where only changes are sent
        self.bases: dict[int, Future] = {}  # by version: what its weights are changes of
        # A fragment is known by (shard, number): the shard's first is its number 0.
        self.next = dict.fromkeys(self.shards, 0)  # number of each shard's next fragment to ask for
        self.learnt = dict.fromkeys(self.shards, 0)  # and of its first that was not handed to the learner
        self.snapshots: dict[tuple[int, int], Snapshot | None] = {}  # before that fragment
        self.fragments: dict[tuple[int, int], tuple[Future, Report]] = {}  # rolled, in the order of their arrival
        self.asked: dict[Future, tuple[int, int, Future, Worker]] = {}  # report: shard, number, fragment, runner
        self.attempts: dict[tuple[int, int], int] = {}
        self.evaluating: dict[int, tuple[Future, tuple[Any, ...]]] = {}  # by number, with what was asked
        self.unsettled: list[tuple[Future, dict[str, float]]] = []  # metrics to come, and the row they complete

    # --- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until something ends the run: `progress.stopped` tells what."""
        self._load_newest()
        self.restarts = self.progress.restarts
        for _ in range(self.resources.runners):
            self.runners.append(self._spawn_runner())
        self.rated = time.perf_counter(), self.progress.env_steps
        self.earlier_s, self.began = self.progress.train_s, time.perf_counter()
        while True:
            try:
                self.progress.stopped = self._train()
                self._settle(0)
                self._checkpoint()
                self._evaluate_last()
                return
            except Interrupted as interruption:
                if self.progress.stopped is None:  # else it came during the last evaluation, when all else is written
                    self._settle(0)
                    self._checkpoint()
                self.progress.stopped = str(interruption)
                return
            except WorkerLost as lost:
                self._go_back(lost)

    def _train(self) -> str:
        """Iterate until something that was asked for ends the run; returns what."""
        while (reason := self._reason_to_stop()) is None:
            try:
                self._iterate()
            except TimeUp:
                return "seconds"
        return reason

    def _iterate(self) -> None:
        k = self.progress.iteration
        self._ask_ahead()
        evaluated = self._evaluate(k)
        fragments, reports = self._collect(k)
        row = self._account(k, reports) | evaluated
        weights, metrics = self.feed(k, int(row["env_steps"]) - self.config.rollout.env_steps, fragments)
        self._keep_weights(k + 1, weights)
        self.unsettled.append((metrics, row))
        self.progress.iteration = k + 1
        self._forget_old()
        if self.config.checkpoint.every and (k + 1) % self.config.checkpoint.every == 0:
            self._settle(0)
            self._checkpoint()

    def _keep_weights(self, version: int, weights: Future) -> None:
        """Take the newest weights, which may be changes since the newest keyframe; now and then ask for another."""
        self.weights[version] = weights
        if self.keyframe is not None:
            self.bases[version] = self.keyframe
        sparse = self.config.algorithm.sparse and self.initial_weights.size >= LARGE
        if sparse and version % KEYFRAMES == 0:
            self.keyframe = self.weights[version] = self.execution.submit(self.learner, "keyframe")

    def _whole(self, weights: Future, base: Future | None) -> Weights:
        """Weights here in the driver, with all that did not change."""
        found: Weights = self.execution.get(weights)
        return found.whole(None if base is None else self.execution.get(base))

    def _reason_to_stop(self) -> str | None:
        stop, progress = self.config.stop, self.progress
        wanted = self.threshold if stop.return_mean == "auto" else stop.return_mean
        mean = progress.return_mean
        if wanted is not None and mean is not None and len(progress.recent_returns) == RECENT and mean >= wanted:
            return "return_mean"
        if self.config.iterations is not None and progress.iteration >= self.config.iterations:
            return "env_steps"
        return None

    def _check_interrupted(self) -> None:
        seconds = self.config.stop.seconds
        if (reason := self.interrupted()) is not None:
            raise Interrupted(reason)
        if seconds is not None and self.progress.stopped is None and time.perf_counter() - self.began >= seconds:
            raise TimeUp

    # --- collecting -------------------------------------------------------------------------------------------

    def _version(self, number: int) -> int:
        """Of the weights that act in a fragment that is asked for now."""
        return self.schedule.version(number, finished=self.progress.iteration - len(self.unsettled))

    def _ask(self, shard: int, number: int) -> None:
        runner, version = self.runners[shard % len(self.runners)], self._version(number)
        report, fragment = self.execution.submit_pair(
            runner,
            "rollout",
            shard,
            number,
            self.weights[version],
            self.snapshots.get((shard, number), "live"),
            self.bases.get(version),
        )
        self.asked[report] = shard, number, fragment, runner
        self.next[shard] = number + 1

    def _ask_ahead(self) -> None:
        """Ask for the next fragments of every shard that the schedule lets go on."""
        in_flight = [*(entry[:2] for entry in self.asked.values()), *self.fragments]
        rolling = Counter(entry[0] for entry in self.asked.values())
        for depth in range(AHEAD):
            for shard in self.shards:
                key = shard, self.next[shard]
                if rolling[shard] <= depth and self.schedule.may_roll(key, self.progress.iteration, in_flight):
                    self._ask(*key)
                    rolling[shard] += 1
                    in_flight.append(key)

    def _collect(self, k: int) -> tuple[list[Future], list[Report]]:
        """The fragments of iteration k and their reports, when all have come and the learner is at most an update behind."""
        heard = time.perf_counter()
        beats: dict[Worker, int] = {}
        while (batch := self.schedule.batch(k, self.fragments)) is None or len(self.unsettled) > self.schedule.lag:
            self._check_interrupted()
            limit = self.config.cluster.step_timeout_s
            learning = [metrics for metrics, _ in self.unsettled[:1]]
            # Of each shard the oldest: what comes after it means something only then.
            oldest = {entry[0]: future for future, entry in reversed(self.asked.items())}
            done = self._wait([*oldest.values(), *learning], min(0.5, limit / 4))
            for future in done:
                if future in learning:
                    self._settle(len(self.unsettled) - 1)
                else:
                    self._take(future)
                    heard = time.perf_counter()
            if done:
                self._ask_ahead()
            if batch is None and time.perf_counter() - heard > limit:
                beats = self._replace_hung(beats)
                heard = time.perf_counter()
        for shard, number in batch:
            self.learnt[shard] = number + 1
        taken = [self.fragments.pop(key) for key in batch]
        return [fragment for fragment, _ in taken], [report for _, report in taken]

    def _wait(self, futures: list[Future], timeout: float) -> list[Future]:
        start = time.perf_counter()
        done = self.execution.wait(futures, timeout)
        self.blocked += time.perf_counter() - start
        return done

    def _take(self, future: Future) -> None:
        if future not in self.asked:  # asked again in the meantime
            return
        shard, number, fragment, runner = self.asked[future]
        try:
            report: Report = self.execution.get(future)
        except EnvError as error:
            del self.asked[future]
            for other in [f for f, entry in self.asked.items() if entry[0] == shard]:
                del self.asked[other]  # it was to go on from there
            if self._attempt(shard, number) >= ENV_ATTEMPTS:
                raise
            self._count_restart(f"{str(error).splitlines()[0]}; trying that fragment again")
            self._ask(shard, number)
            return
        except WorkerLost as lost:
            if lost.worker is not None and lost.worker not in self.runners:
                if lost.worker in self.feed.workers:
                    raise
                return  # of a runner that was replaced already
            self._replace_runner(runner, lost)
            return
        del self.asked[future]
        self.started.add(runner)
        report.seconds["ship"] = max(0.0, time.time() - report.started - sum(report.seconds.values()))
        if report.unfaithful:
            self.observer.warn(
                f"{self.config.env.id} does not rebuild from its episode seed and actions, so it is not deterministic: "
                "fresh episodes were started, and this run will not give the same weights again"
            )
        self.fragments[shard, number] = fragment, report
        self.snapshots[shard, number + 1] = report.snapshot

    def _attempt(self, shard: int, number: int) -> int:
        self.attempts[shard, number] = self.attempts.get((shard, number), 0) + 1
        return self.attempts[shard, number]

    def _spawn_runner(self) -> Worker:
        config = self.config
        return self.execution.spawn(
            Runner,
            config.env,
            config.rollout,
            config.seed,
            self.policy,
            name="runner",
            cpus=self.resources.cpus_per_runner,
        )

    def _replace_runner(self, runner: Worker, lost: WorkerLost) -> None:
        """A fresh process in the place of a runner, asked for all that the old one owed."""
        if runner not in self.runners:
            return
        owed = [(future, entry) for future, entry in self.asked.items() if entry[3] is runner]
        for future, _ in owed:
            del self.asked[future]
        first = min((entry[:2] for _, entry in owed), key=lambda e: e[1], default=None)
        if first is not None and self._attempt(*first) >= ATTEMPTS:
            raise RuntimeError(
                f"fragment {first[1]} of shard {first[0]} of {self.config.env.id} took its runner down {ATTEMPTS} times "
                f"(env copies {first[0] * self.config.rollout.envs_per_shard} and up, seed {self.config.seed}): {lost}"
            ) from lost
        self._count_restart(f"a runner was lost ({lost}); another takes its place")
        self.execution.kill(runner)
        self.runners[self.runners.index(runner)] = self._spawn_runner()
        for _, (shard, number, _, _) in owed:
            self._ask(shard, number)

    def _replace_hung(self, beats: dict[Worker, int]) -> dict[Worker, int]:
        """Replace runners whose heartbeat has not moved since the last look; returns the heartbeats of now."""
        now: dict[Worker, int] = {}
        for runner in {entry[3] for entry in self.asked.values()}:
            progress = self.execution.progress(runner, "progress")
            if progress is None and runner not in self.started:
                continue  # its process is still starting
            steps, where = (-1, "an unknown place, for it does not answer") if progress is None else progress
            self.started.add(runner)
            if not where:
                continue  # it waits for weights
            if beats.get(runner) == steps:
                limit = self.config.cluster.step_timeout_s
                message = f"{self.config.env.id} hung for more than {limit:g} s at {where}"
                self._replace_runner(runner, WorkerLost(runner, message))
            else:
                now[runner] = steps
        return now

    def _forget_old(self) -> None:
        for table in (self.snapshots, self.attempts):
            for key in [(shard, number) for shard, number in table if number < self.learnt[shard]]:
                del table[key]
        for version in [v for v in self.weights if v < self._version(self.progress.iteration)]:
            del self.weights[version]
            self.bases.pop(version, None)

    # --- counting ---------------------------------------------------------------------------------------------

    def _account(self, k: int, reports: list[Report]) -> dict[str, float]:
        """Count an iteration's episodes, in shard order; returns the row that its metrics will complete."""
        progress, now = self.progress, time.perf_counter()
        if self.first_step is None:
            self.first_step = min(report.started for report in reports)
        progress.env_steps += self.config.rollout.env_steps
        for report in reports:
            progress.episodes += len(report.episodes.returns)
            progress.recent_returns = [*progress.recent_returns, *report.episodes.returns.tolist()][-RECENT:]
            progress.recent_lengths = [*progress.recent_lengths, *report.episodes.lengths.tolist()][-RECENT:]
            for name, values in report.episodes.infos.items():
                progress.recent_infos[name] = [*progress.recent_infos.get(name, []), *values.tolist()][-RECENT:]
            self._count_streak(report.episodes.returns.tolist())
        progress.train_s = self.earlier_s + time.time() - self.first_step
        mean = progress.return_mean
        if (
            progress.steps_to_threshold is None
            and self.threshold is not None
            and mean is not None
            and len(progress.recent_returns) == RECENT
            and mean >= self.threshold
        ):
            progress.steps_to_threshold = progress.env_steps
            progress.time_to_threshold_s = progress.train_s
        row = {"iteration": float(k), "env_steps": float(progress.env_steps), "time": time.time()}
        row["train/episodes"] = float(progress.episodes)
        if mean is not None:
            row["train/return_mean"] = mean
            row["train/length_mean"] = float(np.mean(progress.recent_lengths))
            row |= {f"train/{name}_mean": float(np.mean(v)) for name, v in progress.recent_infos.items()}
        for phase in reports[0].seconds:
            row[f"time/{phase}_s"] = sum(report.seconds[phase] for report in reports)
        elapsed, steps = now - self.rated[0], progress.env_steps - self.rated[1]
        row["time/env_steps_per_s"] = steps / elapsed if elapsed > 0 else 0.0
        row["time/driver_s"] = elapsed - self.blocked
        self.rated, self.blocked = (now, progress.env_steps), 0.0
        return row

    def _count_streak(self, returns: list[float]) -> None:
        wanted, progress = self.config.track.streak, self.progress
        if wanted is None:
            return
        for value in returns:
            progress.streak = progress.streak + 1 if value > wanted.above else 0
            if progress.streak == wanted.episodes and progress.steps_to_streak is None:
                progress.steps_to_streak = progress.env_steps
                self.observer.note(
                    f"{wanted.episodes} training episodes in a row above {wanted.above:g}, after {progress.env_steps:,} env steps"
                )

    def _settle(self, keep: int) -> None:
        """Complete and record the rows of all but the `keep` newest updates, waiting for them."""
        while len(self.unsettled) > keep:
            future, row = self.unsettled[0]
            while not self._wait([future], 0.5):
                pass
            metrics: dict[str, float] = self.execution.get(future)
            del self.unsettled[0]
            row["time/learn_s"] = metrics.pop("learn_s")
            row |= {f"train/{name}": value for name, value in metrics.items()}
            row["restarts"] = float(self.restarts)
            for name, value in row.items():
                if name.startswith("time/") and name.endswith("_s") and name != "time/env_steps_per_s":
                    self.totals[name] = self.totals.get(name, 0.0) + value
            self.observer.record(row)

    # --- evaluating -------------------------------------------------------------------------------------------

    def _evaluate(self, k: int) -> dict[str, float]:
        """Apply what is due at iteration k, then ask for the evaluation of version k.

        It comes first in an iteration and does nothing twice, so that an interrupted run can begin with it again.
        """
        every = self.config.evaluation_every
        if not (every and k and k % every == 0):
            return {}
        metrics = self._apply_due(k)
        if all(pending.version != k for pending in self.progress.pending):
            self._ask_evaluation(self._new_evaluation(k + every), self.weights[k], self.bases.get(k))
        return metrics

    def _new_evaluation(self, due: int) -> Pending:
        progress = self.progress
        pending = Pending(due, progress.iteration, progress.env_steps, progress.evaluations)
        progress.evaluations += 1
        progress.pending.append(pending)
        return pending

    def _ask_evaluation(
        self, pending: Pending, weights: Future, base: Future | None = None, episodes: int | None = None
    ) -> None:
        if self.evaluator is None:
            config = self.config
            limit = config.evaluation.max_episode_steps or config.env.max_episode_steps
            env = config.env.model_copy(update={"max_episode_steps": limit})
            self.evaluator = self.execution.spawn(Evaluator, env, config.seed, self.policy, name="evaluator")
        arguments = (
            weights,
            pending.env_steps,
            self.config.evaluation.episodes if episodes is None else episodes,
            self.config.evaluation.greedy,
            pending.number,
            base,
        )
        future = self.execution.submit(self.evaluator, "evaluate", *arguments)
        self.evaluating[pending.number] = future, arguments

    def _apply_due(self, k: int) -> dict[str, float]:
        """Take the results of the evaluations that count from iteration k on, waiting for them; keep the best model."""
        row: dict[str, float] = {}
        for pending in [p for p in self.progress.pending if p.due <= k]:
            asked = self.evaluating[pending.number][1]
            weights = self._whole(asked[0], asked[-1])
            result = self._evaluation(pending)
            self.progress.pending.remove(pending)
            row["evaluation/return_mean"], row["evaluation/return_std"] = result.mean, result.std
            row |= {f"evaluation/{name}_mean": float(np.mean(v)) for name, v in result.infos.items()}
            row["evaluation/env_steps"], row["evaluation/version"] = float(result.env_steps), float(result.version)
            # Of equals the newest: where a score cannot get better, a policy still does (CartPole's 500).
            if self.best is None or self.progress.best is None or result.mean >= self.progress.best["mean"]:
                self.best = weights
                self.progress.best = {"mean": result.mean, "std": result.std, "env_steps": result.env_steps}
                self._write_best()
        return row

    def _evaluation(self, pending: Pending) -> Evaluation:
        """The result of an evaluation that was asked for. An evaluator that dies is replaced and asked again."""
        for attempt in range(1, ATTEMPTS + 1):
            future, arguments = self.evaluating[pending.number]
            try:
                while not self._wait([future], 0.5):
                    self._check_interrupted()
                result: Evaluation = self.execution.get(future)
                del self.evaluating[pending.number]
                return result
            except WorkerLost as lost:
                if attempt == ATTEMPTS or lost.worker not in (None, self.evaluator):
                    raise
                self._count_restart(f"the evaluator was lost ({lost}); another takes its place")
                self.execution.kill(self.evaluator)
                self.evaluator = None
                for other in self.progress.pending:
                    _, (weights, *_, base) = self.evaluating[other.number]
                    self._ask_evaluation(other, weights, base, arguments[2])
                if pending not in self.progress.pending:
                    self._ask_evaluation(pending, arguments[0], arguments[-1], arguments[2])
        raise AssertionError("unreachable")

    def _evaluate_last(self) -> None:
        """Evaluate the last weights as a candidate too, then the best of all in fresh episodes: that is `final`."""
        k, row = self.progress.iteration, {"iteration": float(self.progress.iteration), "time": time.time()}
        row["env_steps"] = float(self.progress.env_steps)
        if self.config.evaluation_every:
            if all(pending.version != k for pending in self.progress.pending):
                self._ask_evaluation(self._new_evaluation(k), self.weights[k], self.bases.get(k))
            for pending in self.progress.pending:
                pending.due = k
            self.observer.record(row | self._apply_due(k))
        if self.best is None:
            self.best = self._whole(self.weights[k], self.bases.get(k))
            self._write_best()
        if self.config.evaluation.final_episodes:
            env_steps = int(self.progress.best["env_steps"]) if self.progress.best else self.progress.env_steps
            pending = Pending(k, self.best.version, env_steps, self.progress.evaluations)
            self._ask_evaluation(pending, self.execution.put(self.best), episodes=self.config.evaluation.final_episodes)
            self.final = self._evaluation(pending)
            self._write_best()

    def _write_best(self) -> None:
        assert self.best is not None
        self.policy.load(self.best.vector)
        score = self.progress.best or {"env_steps": self.progress.env_steps}
        about = self.about | {"version": self.best.version, "env_steps": int(score["env_steps"]), "selected_by": score}
        if self.final is not None:
            about["evaluation"] = {"mean": self.final.mean, "std": self.final.std, "episodes": len(self.final.returns)}
        write_directory(self.run_dir / "best", lambda directory: write_model(directory, self.policy, about))

    # --- checkpoints and recovery -----------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Write the state between the updates so far and the next iteration."""
        k, progress = self.progress.iteration, self.progress
        if self.newest is not None and int(self.newest.name) == k:
            return
        learner: Arrays = self.execution.get(self.execution.submit(self.learner, "state"))
        vectors = {version: (self.weights[version], self.bases.get(version)) for version in (self._version(k), k)}
        for pending in progress.pending:
            asked = self.evaluating[pending.number][1]
            vectors[pending.version] = asked[0], asked[-1]
        weights = {version: self._whole(*futures) for version, futures in vectors.items()}
        driver = {f"weights.{version}": w.vector for version, w in weights.items() if version != k}
        driver["weights.newest"] = weights[k].vector
        if self.best is not None:
            driver |= {"best.vector": self.best.vector, "best.version": np.array(self.best.version)}
        for shard in self.shards:
            driver |= _snapshot_arrays(f"shard.{shard}", self.snapshots[shard, self.learnt[shard]])
        self.policy.load(weights[k].vector)
        progress.restarts = self.restarts
        path = self.run_dir / "checkpoints" / f"{k:08d}"
        about = self.about | {"version": k, "env_steps": progress.env_steps}
        replay = self.feed.state() if self.config.checkpoint.replay else {}
        write_checkpoint(path, self.policy, about, learner, driver, asdict(progress), self.config.to_yaml(), replay)
        self.newest = path
        older = [p for p in list_checkpoints(self.run_dir) if int(p.name) <= k]
        for old in older[: -self.config.checkpoint.keep]:
            shutil.rmtree(old)

    def _load_newest(self) -> None:
        """Make the learner and the counters those of the newest checkpoint, or of the beginning."""
        self._reset_flight()
        learner: Arrays | None = None
        driver: Arrays = {}
        replay: Arrays = {}
        if self.newest is not None:
            learner, driver, run, _ = read_checkpoint(self.newest)
            replay = read_replay(self.newest)
            self.progress = Progress.from_dict(run)
            if self.config.replay is not None and not replay:
                self.observer.warn(
                    f"{self.newest} holds no replay (checkpoint.replay was false): it fills anew, and the weights will "
                    "be others than without the interruption"
                )
        else:
            self.progress = Progress()
        self.progress.stopped = None
        self.learner = self.execution.spawn(
            Learner,
            self.config,
            self.policy,
            learner,
            name="learner",
            cpus=self.resources.learner_cpus,
            gpus=self.resources.learner_gpus,
        )
        k = self.progress.iteration
        self.feed = make_feed(self.config, self.execution, self.learner, replay)
        # Runners need not wait for the learner to start: it begins with the same weights.
        self.weights[k] = self.execution.put(Weights(k, driver["weights.newest"] if driver else self.initial_weights))
        for name, vector in driver.items():
            kind, _, version = name.partition(".")
            if kind == "weights" and version != "newest":
                self.weights[int(version)] = self.execution.put(Weights(int(version), vector))
        self.best = Weights(int(driver["best.version"]), driver["best.vector"]) if "best.vector" in driver else None
        for shard in self.shards:
            snapshot = _snapshot_from_arrays(f"shard.{shard}", driver)
            self.next[shard] = self.learnt[shard] = 0 if snapshot is None else snapshot.iteration
            self.snapshots[shard, self.next[shard]] = snapshot
        for pending in self.progress.pending:
            self._ask_evaluation(pending, self.weights[pending.version])

    def _go_back(self, lost: WorkerLost) -> None:
        """The learner, or a replay that it learns from, is gone: start again from the newest checkpoint."""
        where = "the beginning" if self.newest is None else f"iteration {int(self.newest.name)}"
        who = "a replay" if lost.worker in self.feed.workers and lost.worker is not self.learner else "the learner"
        self._count_restart(f"{who} was lost ({lost}); going back to {where}")
        for worker in self.feed.workers:
            self.execution.kill(worker)
        if lost.worker is None:  # not known what is gone: all of it is replaced
            for runner in self.runners:
                self.execution.kill(runner)
            if self.evaluator is not None:
                self.execution.kill(self.evaluator)
            self.evaluator = None
            self.runners = [self._spawn_runner() for _ in self.runners]
        self._load_newest()

    def _count_restart(self, message: str) -> None:
        self.restarts += 1
        if self.restarts > self.config.cluster.restarts:
            raise RuntimeError(
                f"cluster.restarts allows {self.config.cluster.restarts} restarts, and they are used up. The last cause: {message}"
            )
        self.observer.warn(message)
