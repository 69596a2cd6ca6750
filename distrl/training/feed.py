"""How the fragments of an iteration reach the learner: straight, or through replays.

A feed holds futures and workers, never arrays, and submits its calls in an order that is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from distrl.errors import Left
from distrl.execution import Execution, Future, Worker
from distrl.settings import Config
from distrl.training.crew import Crew
from distrl.types import Arrays, Priorities, Told

NAMES = "key", "td_error"  # of what a replay is told


class Feed(Protocol):
    workers: list[Worker]  # of which none can be lost without going back to a checkpoint

    def give(self, k: int, env_steps: int, fragments: Sequence[Future]) -> Sequence[Future]:
        """Bring fragments to where they are learnt from; what the learner is to learn from in iteration k.

        Args:
            env_steps: of training, with this iteration
            fragments: in the order of the schedule, in turns for each replay
        """

    def learn(self, k: int, env_steps: int, inputs: Sequence[Future]) -> tuple[Future, Future]:
        """Have the learner learn; the new weights and the metrics. `env_steps`: of training before this iteration."""

    def whole(self, inputs: Sequence[Future]) -> list[Any]:
        """What the learner learns from in an iteration, as it can be kept; waits for it."""

    def state(self) -> dict[str, Arrays]:
        """Of the replays, by number; waits for it."""


class OnPolicyFeed:
    """Fragments go straight to the learner."""

    def __init__(self, execution: Execution, learner: Worker) -> None:
        self.execution, self.learner = execution, learner
        self.workers = [learner]

    def give(self, k: int, env_steps: int, fragments: Sequence[Future]) -> Sequence[Future]:
        return fragments

    def learn(self, k: int, env_steps: int, inputs: Sequence[Future]) -> tuple[Future, Future]:
        return self.execution.submit_pair(self.learner, "update", k, env_steps, *inputs)

    def whole(self, inputs: Sequence[Future]) -> list[Any]:
        return [self.execution.get(given) for given in inputs]

    def state(self) -> dict[str, Arrays]:
        return {}


class ReplayFeed:
    """Fragments go to the replays; the learner learns from what they draw, and tells them new priorities.

        add(k), sample(k), update_priorities(of k - 1)    in this order at each replay
        learn(k)                                          at the learner

    The priorities of k - 1 come after the sample for k, so that drawing never waits for the learner, and the learner
    finds its next batch ready.
    """

    def __init__(self, config: Config, crew: Crew, learner: Worker, state: dict[str, Arrays]) -> None:
        """`state`: of the checkpoint to go on from; empty: the beginning."""
        assert config.replay is not None
        self.config, self.execution, self.learner = config, crew.execution, learner
        self.replays: list[Worker] = []
        self.updated: list[Future | None] = []  # of each replay: that newer priorities than the newest sample's are in
        self.priorities: list[Future | None] = []  # those of the newest batch, not yet told
        for number in range(config.replay.shards):
            arrays = dict(state.get(str(number), {}))
            waiting = _taken(arrays)
            self.priorities.append(None if waiting is None else self.execution.put(waiting))
            self.updated.append(None)
            self.replays.append(crew.replay(number, arrays))
        self.workers = [learner, *self.replays]
        self.by_row = self.execution.submit(learner, "holds", crew.resources.replay_bytes)

    def give(self, k: int, env_steps: int, fragments: Sequence[Future]) -> Sequence[Future]:
        submit, shards = self.execution.submit, len(self.replays)
        batches = []
        for number, replay in enumerate(self.replays):
            # What a call returns is handed to the next one, so that its failure is not overlooked.
            after = submit(replay, "add", *fragments[number::shards]), self.updated[number]
            batches.append(submit(replay, "sample", k, env_steps, self.by_row, *filter(None, after)))
        return batches

    def learn(self, k: int, env_steps: int, inputs: Sequence[Future]) -> tuple[Future, Future]:
        submit = self.execution.submit
        for number, replay in enumerate(self.replays):
            if self.priorities[number] is not None:
                self.updated[number] = submit(replay, "update_priorities", self.priorities[number])
        learnt = self.execution.submit_pair(self.learner, "learn", k, env_steps, *inputs)
        self.priorities = [submit(self.learner, "priorities", number) for number in range(len(self.replays))]
        return learnt

    def whole(self, inputs: Sequence[Future]) -> list[Any]:
        if not self.execution.get(self.by_row):
            return [self.execution.get(given) for given in inputs]
        found: list[Any] = self.execution.get(self.execution.submit(self.learner, "whole", *inputs))
        return found

    def state(self) -> dict[str, Arrays]:
        states = [self.execution.get(self.execution.submit(replay, "state")) for replay in self.replays]
        waiting = [_waiting(self.execution, future) for future in self.priorities]
        return {str(number): state | waiting[number] for number, state in enumerate(states)}


def _waiting(execution: Execution, priorities: Future | None) -> Arrays:
    """Priorities that a replay has not been told yet; none where the update that makes them is owed."""
    with suppress(Left):
        if priorities is not None:
            waiting: Told = execution.get(priorities)
            of_groups = (
                {"": waiting} if isinstance(waiting, Priorities) else {f"{i}.": p for i, p in enumerate(waiting)}
            )
            return {f"waiting.{at}{name}": getattr(p, name) for at, p in of_groups.items() for name in NAMES}
    return {}


def _taken(arrays: Arrays) -> Told | None:
    """Out of a replay's state: what `_waiting` put into it."""
    found = {name: arrays.pop(name) for name in [*arrays] if name.startswith("waiting.")}
    if not found:
        return None
    if f"waiting.{NAMES[0]}" in found:
        return Priorities(*(found[f"waiting.{name}"] for name in NAMES))
    groups = range(len(found) // len(NAMES))
    return [Priorities(*(found[f"waiting.{group}.{name}"] for name in NAMES)) for group in groups]


def make_feed(config: Config, crew: Crew, learner: Worker, state: dict[str, Arrays]) -> Feed:
    if config.replay is None:
        return OnPolicyFeed(crew.execution, learner)
    return ReplayFeed(config, crew, learner, state)
