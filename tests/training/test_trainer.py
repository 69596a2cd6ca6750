"""The loop over its parts: what ends a run, what is written when, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, Recorder, config_of, run_trainer

from distrl.errors import WorkerLost
from distrl.execution.local import Done, LocalExecution, LocalWorker
from distrl.models.store import list_checkpoints
from distrl.training.checkpoint import read_checkpoint
from distrl.training.recovery import Interrupted, Recovery, TimeUp
from distrl.types import Evaluation
from distrl.workers.learner import Learner

DIE: dict[str, Any] = {  # an episode pays 1 a step, and lasts 1 or 21
    **CARTPOLE,
    "env": {"id": "toys:toys/Die-v0"},
    "rollout": {"shards": 2, "envs_per_shard": 2, "steps": 16},
    "stop": {"env_steps": 64 * 8},
}


def iterations(observer: Recorder) -> list[int]:
    return [int(row["iteration"]) for row in observer.rows if "time/learn_s" in row]


def test_env_steps_end_a_run_and_every_iteration_leaves_a_row(tmp_path: Path) -> None:
    outcome = run_trainer(config_of(DIE), LocalExecution(), tmp_path)
    assert outcome.trainer.progress.stopped == "env_steps"
    assert iterations(outcome.observer) == list(range(8))
    assert [row["env_steps"] for row in outcome.observer.rows[:8]] == [64 * (k + 1) for k in range(8)]


def test_a_mark_ends_a_run_when_a_hundred_episodes_have_reached_it(tmp_path: Path) -> None:
    outcome = run_trainer(config_of(DIE, "stop.return_mean=1", "stop.env_steps=100000"), LocalExecution(), tmp_path)
    assert outcome.trainer.progress.stopped == "return_mean"
    episodes = [row["train/episodes"] for row in outcome.observer.rows if "train/episodes" in row]
    assert episodes[-1] >= 100 > episodes[-2]
    assert len(outcome.trainer.progress.recent_returns) == 100


def test_time_ends_a_run_with_a_checkpoint_and_the_last_evaluation_is_still_made(tmp_path: Path) -> None:
    outcome = run_trainer(config_of(DIE, "stop.seconds=0.3", "stop.env_steps=100000000"), LocalExecution(), tmp_path)
    progress = outcome.trainer.progress
    assert progress.stopped == "seconds" and progress.iteration > 0
    assert int(list_checkpoints(tmp_path)[-1].name) == progress.iteration
    assert outcome.trainer.evaluations.final is not None


def test_checkpoints_come_as_often_as_asked_and_so_many_are_kept(tmp_path: Path) -> None:
    config = config_of(DIE, "checkpoint.every=2", "checkpoint.keep=3")
    run_trainer(config, LocalExecution(), tmp_path)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [4, 6, 8]


def test_an_evaluation_counts_one_interval_after_it_was_asked_for(tmp_path: Path) -> None:
    config = config_of(DIE, "evaluation.every=3", "evaluation.final_episodes=5")
    outcome = run_trainer(config, LocalExecution(), tmp_path)
    found = {
        int(r["iteration"]): int(r["evaluation/version"]) for r in outcome.observer.rows if "evaluation/version" in r
    }
    assert found == {6: 3, 8: 6, 9: 8}  # at the end all that is under way counts, the newest last
    final = outcome.trainer.evaluations.final
    assert final is not None and final.episodes == 5
    about = json.loads((tmp_path / "best" / "policy.json").read_text())
    assert Evaluation.from_json(about["evaluation"]) == final


def test_an_interruption_leaves_a_checkpoint_of_where_it_was(tmp_path: Path) -> None:
    asked = iter(range(1000))
    outcome = run_trainer(
        config_of(DIE, "checkpoint.every=0"),
        LocalExecution(),
        tmp_path,
        interrupted=lambda: "enough" if next(asked) > 4 else None,
    )
    progress = outcome.trainer.progress
    assert progress.stopped == "enough" and 0 < progress.iteration < 8
    [path] = list_checkpoints(tmp_path)
    state = read_checkpoint(path, 2)
    assert state.progress.iteration == progress.iteration
    assert {s.iteration for s in state.snapshots.values() if s is not None} == {progress.iteration}


class LosesLearner(LocalExecution):
    """Loses the learner at its n-th update."""

    def __init__(self, at: int) -> None:
        self.left = at

    def submit(self, worker: LocalWorker, method: str, *args: Any) -> Done:
        if isinstance(worker.instance, Learner) and method == "update":
            self.left -= 1
            if self.left == 0:
                return Done(error=WorkerLost(worker, "lost by the test"))
        return super().submit(worker, method, *args)


def test_a_lost_learner_goes_back_to_the_newest_checkpoint_and_no_row_is_missing(tmp_path: Path) -> None:
    config = config_of(DIE, "checkpoint.every=3")
    whole = run_trainer(config, LocalExecution(), tmp_path / "whole")
    outcome = run_trainer(config, LosesLearner(at=6), tmp_path / "lost")
    assert outcome.trainer.recovery.restarts == 1
    assert any("going back to iteration 3" in message for message in outcome.observer.messages)
    assert outcome.sha256 == whole.sha256
    seen = iterations(outcome.observer)
    assert list(dict.fromkeys(seen)) == list(range(8)) and seen.count(3) == 2


def test_too_many_restarts_end_the_run_with_the_last_cause(tmp_path: Path) -> None:
    recovery = Recovery(config_of(DIE, "cluster.restarts=1"), LocalExecution(), Recorder(), lambda: None)
    recovery.count_restart("first")
    with pytest.raises(RuntimeError, match=r"allows 1 restarts.*The last cause: second"):
        recovery.count_restart("second")


def test_time_does_not_matter_once_the_end_is_decided_but_an_interruption_does() -> None:
    reasons = iter([None, None, "enough"])
    recovery = Recovery(config_of(DIE, "stop.seconds=0.001"), LocalExecution(), Recorder(), lambda: next(reasons))
    recovery.began -= 1
    with pytest.raises(TimeUp):
        recovery.check()
    recovery.decided = True
    recovery.check()
    with pytest.raises(Interrupted, match="enough"):
        recovery.check()


SLOW: dict[str, Any] = {  # an update takes at least 0.8 s
    **CARTPOLE,
    "algorithm": {**CARTPOLE["algorithm"], "name": "slow", "minibatch_s": 0.2},
    "evaluation": {"every": 0, "final_episodes": 0},
}


def test_the_time_of_training_holds_the_updates_that_are_learnt_at_its_end(tmp_path: Path) -> None:
    outcome = run_trainer(config_of(SLOW, "stop.env_steps=512"), LocalExecution(), tmp_path)
    learn_s = sum(row["time/learn_s"] for row in outcome.observer.rows)
    assert learn_s > 1.6
    assert outcome.trainer.progress.train_s >= learn_s
    assert read_checkpoint(list_checkpoints(tmp_path)[-1], 4).progress.train_s >= learn_s


def test_no_update_is_begun_that_would_end_after_the_time(tmp_path: Path) -> None:
    config = config_of(SLOW, "stop.seconds=3", "stop.env_steps=1000000", "schedule.lag=0")
    outcome = run_trainer(config, LocalExecution(), tmp_path)
    assert outcome.trainer.progress.stopped == "seconds"
    rows = [row for row in outcome.observer.rows if "time/learn_s" in row]
    before_the_last = sum(row["time/learn_s"] for row in rows[:-1])
    assert before_the_last + rows[-2]["time/learn_s"] < 3
