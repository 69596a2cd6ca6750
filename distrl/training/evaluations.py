"""Evaluations beside the training, and the best model that they find."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import EnvError, ExecutionLost, WorkerLost
from distrl.execution import Execution, Future, Worker
from distrl.files import write_directory
from distrl.models.store import write_model
from distrl.settings import Config
from distrl.training.checkpoint import RunState
from distrl.training.films import Films
from distrl.training.progress import PAUSED, Pending
from distrl.training.recovery import ENV_ATTEMPTS, Recovery
from distrl.training.updates import Updates
from distrl.types import Evaluation, Policy, Weights

ATTEMPTS = 5  # at an evaluation whose evaluator dies each time


@dataclass(frozen=True)
class Asked:
    """An evaluation under way."""

    pending: Pending
    messages: tuple[Future, ...]  # the weights, as `Versions.of` gives them
    episodes: int
    result: Future


class Evaluations:
    """Asks an evaluator of its own, never waits for it before a result is due, and keeps the best model in RUN/best."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        about: dict[str, Any],
        execution: Execution,
        recovery: Recovery,
        updates: Updates,
        run_dir: Path,
    ) -> None:
        """`about`: of the env and the algorithm, for the model directory."""
        self.config, self.policy, self.about, self.run_dir = config, policy, about, run_dir
        self.execution, self.recovery, self.updates = execution, recovery, updates
        self.films = Films(config, policy, about, run_dir, recovery)
        self.evaluator: Worker | None = None
        self.final: Evaluation | None = None

    def load(self, state: RunState) -> None:
        """Ask again for the evaluations that were under way."""
        self.progress, self.best = state.progress, state.best
        if self.best is not None and not (self.run_dir / "best").exists():  # a copy of a run may lack it
            self._write_best()
        self.asked: dict[int, Asked] = {}  # by number
        for pending in self.progress.pending:
            self._ask(pending, self.updates.versions.of(pending.version), self.config.evaluation.episodes)

    def at(self, k: int) -> dict[str, float]:
        """Apply what is due at iteration k, then ask for the evaluation of version k; returns metrics of what was due.

        It comes first in an iteration and does nothing twice, so that an interrupted run can begin with it again: what it
        found is kept until the iteration's row has it.
        """
        every = self.config.evaluation_every
        if not (every and k and k % every == 0):
            return {}
        if due := self._apply_due(k):  # one at a time
            self.progress.evaluated = {name: value for name, value in due[-1].items() if math.isfinite(value)}
        if all(pending.version != k for pending in self.progress.pending):
            self._ask_newest(k + every)
        return self.progress.evaluated

    def finish(self) -> list[dict[str, float]]:
        """Evaluate the last weights as a candidate too, then the best of all in fresh episodes: that is `final`.

        Returns metrics of each evaluation that was still to come: of those under way, and of the last weights.
        """
        k, metrics = self.progress.iteration, list[dict[str, float]]()
        if self.progress.stopped == PAUSED or self.recovery.callbacks.error is not None:  # it goes on later, or fails
            return metrics
        if self.config.evaluation_every:
            if all(pending.version != k for pending in self.progress.pending):
                self._ask_newest(k)
            for pending in self.progress.pending:
                pending.due = k
            metrics = self._apply_due(k)
        if self.best is None:
            self._keep_best(self.updates.versions.fetch(self.updates.versions.of(k)))
        if self.config.evaluation.final_episodes:
            self.final = self._play_best(self.config.evaluation.final_episodes)
            self._write_best()
        return metrics

    def weights(self, newest: int) -> dict[int, Weights]:
        """Of the evaluations under way, by version, up to the newest version that there is."""
        pending = {a.pending.version: a.messages for a in self.asked.values() if a.pending.version <= newest}
        return {version: self.updates.versions.fetch(messages) for version, messages in pending.items()}

    def replace(self) -> None:
        """End the evaluator; the next evaluation starts another."""
        if self.evaluator is not None:
            self.execution.kill(self.evaluator)
        self.evaluator = None

    def _ask_newest(self, due: int) -> None:
        progress = self.progress
        pending = Pending(due, progress.iteration, progress.env_steps, progress.evaluations)
        progress.evaluations += 1
        progress.pending.append(pending)
        self._ask(pending, self.updates.versions.of(pending.version), self.config.evaluation.episodes)

    def _ask(self, pending: Pending, messages: tuple[Future, ...], episodes: int) -> None:
        if self.evaluator is None:
            config = self.config
            limit = config.evaluation.max_episode_steps or config.env.max_episode_steps
            env = config.env.model_copy(update={"max_episode_steps": limit})
            self.evaluator = self.updates.crew.evaluator(env)
        message, *keyframe = messages
        how = pending.env_steps, episodes, self.config.evaluation.greedy, pending.number
        result = self.execution.submit(self.evaluator, "evaluate", message, *how, *keyframe)
        self.asked[pending.number] = Asked(pending, messages, episodes, result)

    def _apply_due(self, k: int) -> list[dict[str, float]]:
        """Take the results that count from iteration k on, waiting for them; keep the best model. Returns metrics of each."""
        metrics: list[dict[str, float]] = []
        for pending in [p for p in self.progress.pending if p.due <= k]:
            weights = self.updates.versions.fetch(self.asked[pending.number].messages)
            result = self._result(pending.number)
            self.progress.pending.remove(pending)
            metrics.append(result.metrics("evaluation"))
            self.films.take(pending.number, weights, pending.env_steps)
            # Of equals the newest: where a score cannot get better, a policy still does (CartPole's 500).
            best = self.progress.best
            if self.best is None or best is None or result.mean >= best.mean:
                self.progress.best = result
                self._keep_best(weights)
            self.recovery.callbacks.evaluation(result, k)
        return metrics

    def _result(self, number: int) -> Evaluation:
        """The result of an evaluation that was asked for.

        An evaluator that dies is replaced and asked again; an evaluation whose env raises is played again from its start, as a
        fragment is rolled again.

        Raises:
            EnvError: the env raised each time
        """
        raised = died = 0
        while True:
            try:
                while not self.recovery.wait([self.asked[number].result], 0.5):
                    self.recovery.check()
                result: Evaluation = self.execution.get(self.asked[number].result)
                del self.asked[number]
                return result
            except EnvError as error:
                raised += 1
                if raised == ENV_ATTEMPTS:
                    raise
                self.recovery.count_restart(f"{str(error).splitlines()[0]}; trying that evaluation again")
                asked = self.asked[number]
                self._ask(asked.pending, asked.messages, asked.episodes)
            except WorkerLost as lost:
                died += 1
                if isinstance(lost, ExecutionLost) or died == ATTEMPTS or lost.worker not in (None, self.evaluator):
                    raise
                self.recovery.count_restart(f"the evaluator was lost ({lost}); another takes its place")
                self.replace()
                for asked in list(self.asked.values()):
                    self._ask(asked.pending, asked.messages, asked.episodes)

    def _play_best(self, episodes: int) -> Evaluation:
        assert self.best is not None
        progress = self.progress
        pending = Pending(progress.iteration, self.best.version, progress.best_env_steps, progress.evaluations)
        self._ask(pending, (self.execution.put(self.best),), episodes)
        return self._result(pending.number)

    def _keep_best(self, weights: Weights) -> None:
        self.best = weights
        self._write_best()

    def _write_best(self) -> None:
        best, chosen = self.best, self.progress.best
        assert best is not None
        about = self.about | {"version": best.version, "env_steps": self.progress.best_env_steps}
        about["selected_by"] = None if chosen is None else chosen.to_json()
        about["evaluation"] = None if self.final is None else self.final.to_json()
        write_directory(
            self.run_dir / "best", lambda directory: write_model(directory, self.policy, best.vector, about)
        )
