"""How fragments reach the learner: in which order calls are made, what they are given, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import CARTPOLE, DQN, config_of

from distrl.acting.make import make_policy
from distrl.envs.make import describe_env
from distrl.execution import SEAT
from distrl.execution.local import Done, LocalExecution, LocalWorker
from distrl.execution.resources import Resources, Seat
from distrl.settings import Config
from distrl.training.crew import Crew
from distrl.training.feed import Feed, OnPolicyFeed, ReplayFeed, make_feed
from distrl.training.job import Job
from distrl.types import Arrays, Batch, Fragment, Priorities
from distrl.workers.replay import Replay

CONFIG = config_of(
    DQN, "replay.shards=2", "rollout={shards: 4, envs_per_shard: 2, steps: 8}", "replay.start=64", "replay.alpha=1"
)


class Recording(LocalExecution):
    """Remembers every call, by worker, and of what calls its arguments are the results."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.made_of: dict[Done, tuple[str, str]] = {}
        self.arguments: list[tuple[Any, ...]] = []
        self.spawned = 0

    def spawn(self, cls: type, *args: Any, name: str, seat: Seat = SEAT) -> LocalWorker:
        self.spawned += 1
        return super().spawn(cls, *args, name=f"{name} {self.spawned - 1}")

    def submit(self, worker: LocalWorker, method: str, *args: Any) -> Done:
        self.calls.append((worker.name, method))
        self.arguments.append(args)
        done = super().submit(worker, method, *args)
        self.made_of[done] = worker.name, method
        return done


class Pupil:
    """A learner that keeps what it is given and finds errors that can be told apart: 1000 x update + column."""

    def __init__(self) -> None:
        self.batches: list[tuple[Batch, ...]] = []

    def learn(self, iteration: int, env_steps: int, *batches: Batch) -> tuple[str, dict[str, float]]:
        self.iteration, self.env_steps = iteration, env_steps
        self.batches.append(batches)
        return "weights", {"loss": 0.0}

    def holds(self, size: int) -> bool:
        return False

    def priorities(self, number: int) -> Priorities:
        key = self.batches[-1][number].key.ravel()
        return Priorities(key, np.full(key.size, 10.0 * (1 + len(self.batches)) + number, np.float32))

    def update(self, iteration: int, env_steps: int, *fragments: str) -> tuple[str, dict[str, float]]:
        return f"weights from {' '.join(fragments)} at {env_steps}", {"iteration": iteration}


def fragment(shard: int, iteration: int) -> Fragment:
    rng = np.random.default_rng([shard, iteration])
    steps, copies = CONFIG.rollout.steps, CONFIG.rollout.envs_per_shard
    obs = rng.normal(size=(steps + 1, copies, 4)).astype(np.float32)
    q, value, reward = rng.normal(size=(3, steps, copies)).astype(np.float32)
    ended = np.zeros((steps, copies), bool)
    return Fragment(
        shard, iteration, 0, obs, np.zeros((steps, copies), np.int64), reward, ended, ended,
        np.zeros((0, 4), np.float32), {"q": q, "value": value},
    )  # fmt: skip


def start(state: dict[str, Arrays] | None = None, config: Config = CONFIG) -> tuple[Feed, Recording, Pupil]:
    execution = Recording()
    learner = execution.spawn(Pupil, name="learner")
    policy = make_policy(config, describe_env(config.env))
    job = Job(config, policy, np.zeros(0, np.float32), {}, None, Path(), None)
    crew = Crew(job, cast(Any, execution), Resources((Seat(),)), cast(Any, None))
    return make_feed(config, crew, learner, state or {}), execution, learner.instance


def learn(feed: Feed, k: int, env_steps: int, fragments: list[Done]) -> tuple[Done, Done]:
    return feed.learn(k, env_steps, feed.give(k, env_steps + CONFIG.rollout.env_steps, fragments))


def run(feed: Feed, *iterations: int) -> None:
    size = CONFIG.rollout.env_steps
    for k in iterations:
        learn(feed, k, size * k, [Done(fragment(shard, k)) for shard in range(4)])


def test_without_a_replay_fragments_go_straight_to_the_learner() -> None:
    feed, execution, _ = start(config=config_of(CARTPOLE))
    assert isinstance(feed, OnPolicyFeed)
    weights, metrics = learn(feed, 3, 768, [Done("a"), Done("b")])
    assert (execution.get(weights), execution.get(metrics)) == ("weights from a b at 768", {"iteration": 3})
    assert [worker.name for worker in feed.workers] == ["learner 0"]
    assert feed.state() == {}


def test_calls_come_in_an_order_in_which_drawing_never_waits_for_the_learner() -> None:
    feed, execution, _ = start()
    assert [worker.name for worker in feed.workers] == ["learner 0", "replay 1", "replay 2"]
    run(feed, 0)
    first = [
        ("replay 1", "add"),
        ("replay 1", "sample"),
        ("replay 2", "add"),
        ("replay 2", "sample"),
        ("learner 0", "learn"),
        ("learner 0", "priorities"),
        ("learner 0", "priorities"),
    ]
    assert execution.calls == [("learner 0", "holds"), *first]
    execution.calls.clear()
    run(feed, 1)
    assert execution.calls == [
        *first[:4],
        ("replay 1", "update_priorities"),
        ("replay 2", "update_priorities"),
        *first[4:],
    ]


def test_each_call_takes_the_results_that_it_relies_on() -> None:
    """So that a worker that is lost in between is noticed by those who go on from there."""
    feed, execution, _ = start()
    run(feed, 0, 1, 2)
    origins: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for call, arguments in zip(execution.calls, execution.arguments, strict=True):  # the last of each kind stays
        origins[call] = [execution.made_of[a] for a in arguments if isinstance(a, Done) and a in execution.made_of]
    for replay in ("replay 1", "replay 2"):
        assert origins[replay, "sample"] == [("learner 0", "holds"), (replay, "add"), (replay, "update_priorities")]
        assert origins[replay, "update_priorities"] == [("learner 0", "priorities")]
    assert origins["learner 0", "learn"] == [("replay 1", "sample"), ("replay 2", "sample")]


def test_every_replay_gets_its_shards_and_counts_their_steps() -> None:
    feed, execution, pupil = start()
    run(feed, 0, 1)
    given = [
        arguments for call, arguments in zip(execution.calls, execution.arguments, strict=True) if call[1] == "add"
    ]
    assert [[f.value.shard for f in fragments] for fragments in given] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert (pupil.iteration, pupil.env_steps) == (1, CONFIG.rollout.env_steps)
    samples = [a for call, a in zip(execution.calls, execution.arguments, strict=True) if call[1] == "sample"]
    assert [a[:2] for a in samples] == [(0, 64), (0, 64), (1, 128), (1, 128)]  # steps with this iteration's
    assert [len(batch.key) for batch in pupil.batches[1]] == [4, 4]  # 64 steps x 2 / 32


def test_new_priorities_reach_the_steps_of_the_batch_that_they_are_of() -> None:
    """Those of iteration 1 are told while iteration 2 is drawn."""
    feed, _, pupil = start()
    run(feed, 0, 1, 2)
    for number, worker in enumerate(feed.workers[1:]):
        replay: Replay = worker.instance
        rows, columns = np.divmod(pupil.batches[1][number].key.ravel(), replay.columns)
        found = replay.tree.get(columns * replay.rows + rows % replay.rows)
        assert found == pytest.approx(30.0 + number, rel=1e-5)


def test_a_state_goes_on_with_the_same_batches() -> None:
    """It holds the priorities that were not told yet, and leaves the feed as it was."""
    whole, _, expected = start()
    run(whole, 0, 1, 2)
    state = whole.state()
    assert state.keys() == {"0", "1"}
    assert {"waiting.key", "waiting.td_error"} <= state["0"].keys()
    resumed, _, pupil = start({number: {k: a.copy() for k, a in arrays.items()} for number, arrays in state.items()})
    pupil.batches = list(expected.batches)
    run(whole, 3, 4)
    run(resumed, 3, 4)
    for mine, theirs in zip(pupil.batches[3:], expected.batches[3:], strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.key.size > 0
            assert (one.key == other.key).all() and (one.weight == other.weight).all()


def test_a_failure_on_the_way_reaches_who_waits_for_the_weights() -> None:
    feed, execution, _ = start()
    run(feed, 0)
    assert isinstance(feed, ReplayFeed)
    feed.replays[1].instance.add = lambda *fragments: 1 / 0
    weights, metrics = learn(feed, 1, 64, [Done(fragment(shard, 1)) for shard in range(4)])
    for future in (weights, metrics):
        with pytest.raises(ZeroDivisionError):
            execution.get(future)
