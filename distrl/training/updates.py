"""The learner's side of the loop: fragments in, versions of the weights out, and what the learner says of them later."""

from __future__ import annotations

from collections.abc import Sequence

from distrl.execution import Execution, Future, Worker
from distrl.settings import Config
from distrl.training.checkpoint import Owed, RunState
from distrl.training.crew import Crew
from distrl.training.feed import Feed, make_feed
from distrl.training.progress import Ledger
from distrl.training.recovery import Recovery
from distrl.types import Arrays, Weights
from distrl.workers.versions import Versions, are_sparse


class Updates:
    """Hands iterations to a learner, which may be behind; keeps the rows that it has still to complete."""

    def __init__(self, config: Config, execution: Execution, crew: Crew, recovery: Recovery, ledger: Ledger) -> None:
        self.config, self.execution, self.crew, self.recovery, self.ledger = config, execution, crew, recovery, ledger
        self.learner: Worker = None
        self.feed: Feed | None = None
        # Metrics to come, the row that they complete, and what they are learnt from.
        self.unsettled: list[tuple[Future, dict[str, float], Sequence[Future]]] = []

    def load(self, state: RunState) -> None:
        """A fresh learner (and replays) that goes on from here."""
        self.unsettled.clear()
        size = len(next(iter(state.weights.values())))
        self.versions = Versions(are_sparse(self.config, size), self.execution.get)
        self.learner = self.crew.learner(state.learner)
        self.feed = make_feed(self.config, self.crew, self.learner, state.replay)
        # Runners need not wait for the learner to start: it begins with the same weights.
        for version, vector in state.weights.items():
            self.versions.keep_whole(version, self.execution.put(Weights(version, vector)))
        for owed in state.owed:
            self._learn(self.feed, owed.row, [self.execution.put(given) for given in owed.inputs])

    @property
    def workers(self) -> list[Worker]:
        """Of which none can be lost without going back to a checkpoint."""
        return [] if self.feed is None else self.feed.workers

    @property
    def oldest(self) -> list[Future]:
        """What the learner says of the oldest update that it has not answered for."""
        return [metrics for metrics, *_ in self.unsettled[:1]]

    def submit(self, k: int, row: dict[str, float], fragments: Sequence[Future]) -> None:
        """Have the learner make version k + 1 of iteration k."""
        assert self.feed is not None
        self._learn(self.feed, row, self.feed.give(k, int(row["env_steps"]), fragments))

    def _learn(self, feed: Feed, row: dict[str, float], inputs: Sequence[Future]) -> None:
        k, env_steps = int(row["iteration"]), int(row["env_steps"]) - self.config.rollout.env_steps
        weights, metrics = feed.learn(k, env_steps, inputs)
        self.versions.keep(k + 1, weights)
        self.unsettled.append((metrics, row, inputs))

    def owed(self) -> list[Owed]:
        """The updates that the learner has not answered for."""
        return [Owed(row, self.feed.whole(inputs)) for _, row, inputs in self.unsettled if self.feed is not None]

    def settle(self, keep: int) -> None:
        """Record the rows of all but the `keep` newest updates, waiting for them."""
        while len(self.unsettled) > keep:
            future, row, _ = self.unsettled[0]
            metrics: dict[str, float] = self.recovery.get(future)
            del self.unsettled[0]
            self.ledger.close(row, metrics)

    def state(self) -> Arrays:
        """Of the learner, after its newest update; waits for it."""
        state: Arrays = self.execution.get(self.execution.submit(self.learner, "state"))
        return state

    def replay_state(self) -> dict[str, Arrays]:
        """Of the replays, by number."""
        assert self.feed is not None
        return self.feed.state()

    def kill(self) -> None:
        for worker in self.workers:
            self.execution.kill(worker)
