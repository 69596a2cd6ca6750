"""How the fragments of an iteration reach the learner: straight, or through replays.

A feed holds futures and workers, never arrays, and submits its calls in an order that is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from distrl.errors import Left
from distrl.execution import Execution, Future, Worker
from distrl.settings import Config
from distrl.training.crew import Crew
from distrl.types import Arrays, Priorities


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

    def state(self) -> dict[str, Arrays]:
        return {}


class ReplayFeed:
    """Fragments go to the replays; the learner learns from what they draw, and tells them new priorities.

        add(k), sample(k), update_priorities(of k - 1)    in this order at each replay
        learn(k)                                          at the learner

    The priorities of k - 1 come after the sample for k, so that drawing never waits for the learner, and the learner
    finds its next batch ready. Where agents are in groups a replay draws for each of them (`distrl.workers.replays`): batches
    and priorities are then those of the first replay for each group, of the second, and so on.
    """

    def __init__(self, config: Config, crew: Crew, learner: Worker, state: dict[str, Arrays]) -> None:
        """`state`: of the checkpoint to go on from; empty: the beginning."""
        assert config.replay is not None
        self.config, self.execution, self.learner = config, crew.execution, learner
        self.replays: list[Worker] = []
        self.places: list[tuple[int, tuple[int, ...]]] = []  # of each batch: its replay, and what that calls its group
        self.updated: list[Future | None] = []  # of each: that newer priorities than the newest sample's are in
        self.priorities: list[Future | None] = []  # those of the newest batch, not yet told
        for number in range(config.replay.shards):
            arrays = dict(state.get(str(number), {}))
            for group in [()] if crew.groups is None else [(group,) for group in range(crew.groups)]:
                names = [_waiting_name(name, group) for name in ("key", "td_error")]
                waiting = [arrays.pop(name) for name in names if name in arrays]
                self.places.append((number, group))
                self.priorities.append(self.execution.put(Priorities(*waiting)) if waiting else None)
                self.updated.append(None)
            self.replays.append(crew.replay(number, arrays))
        self.workers = [learner, *self.replays]

    def give(self, k: int, env_steps: int, fragments: Sequence[Future]) -> Sequence[Future]:
        submit, shards = self.execution.submit, len(self.replays)
        batches = []
        for number, replay in enumerate(self.replays):
            # What a call returns is handed to the next one, so that its failure is not overlooked.
            added = submit(replay, "add", *fragments[number::shards])
            for (of, group), updated in zip(self.places, self.updated, strict=True):
                if of == number:
                    after = filter(None, (added, updated))
                    batches.append(submit(replay, "sample", *group, k, env_steps, *after))
        return batches

    def learn(self, k: int, env_steps: int, inputs: Sequence[Future]) -> tuple[Future, Future]:
        submit = self.execution.submit
        for i, (number, group) in enumerate(self.places):
            if self.priorities[i] is not None:
                self.updated[i] = submit(self.replays[number], "update_priorities", *group, self.priorities[i])
        learnt = self.execution.submit_pair(self.learner, "learn", k, env_steps, *inputs)
        self.priorities = [submit(self.learner, "priorities", i) for i in range(len(self.places))]
        return learnt

    def state(self) -> dict[str, Arrays]:
        states = [self.execution.get(self.execution.submit(replay, "state")) for replay in self.replays]
        for (number, group), future in zip(self.places, self.priorities, strict=True):
            states[number] = states[number] | _waiting(self.execution, future, group)
        return {str(number): state for number, state in enumerate(states)}


def _waiting_name(name: str, group: tuple[int, ...]) -> str:
    return ".".join(("waiting", *map(str, group), name))


def _waiting(execution: Execution, priorities: Future | None, group: tuple[int, ...]) -> Arrays:
    """Priorities that a replay has not been told yet; none where the update that makes them is owed."""
    with suppress(Left):
        if priorities is not None:
            waiting: Priorities = execution.get(priorities)
            return {_waiting_name(name, group): getattr(waiting, name) for name in ("key", "td_error")}
    return {}


def make_feed(config: Config, crew: Crew, learner: Worker, state: dict[str, Arrays]) -> Feed:
    if config.replay is None:
        return OnPolicyFeed(crew.execution, learner)
    return ReplayFeed(config, crew, learner, state)
