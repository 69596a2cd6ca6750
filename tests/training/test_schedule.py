"""Who may go on when, and what makes an iteration; and that asynchronous runs keep what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import DQN, Recorder, config_of, run_trainer
from faulty import FaultyExecution

from distrl.errors import UserError
from distrl.execution.cluster import RayExecution
from distrl.models.store import list_checkpoints
from distrl.runs.plan import plan_run
from distrl.settings import Config
from distrl.tools.verify import verify
from distrl.training.checkpoint import RunState, read_checkpoint
from distrl.training.schedule import Async, Lockstep

ASYNC = "schedule.kind=async"


def test_lockstep_waits_for_every_shard() -> None:
    schedule = Lockstep(3, last=9, lag=1)
    assert schedule.batch(0, [(2, 0), (0, 0)]) is None
    assert schedule.batch(0, [(2, 0), (0, 0), (1, 1), (1, 0)]) == [(0, 0), (1, 0), (2, 0)]
    assert [schedule.may_roll((0, n), 4, []) for n in (4, 5, 6)] == [True, True, False]
    assert not schedule.may_roll((0, 9), 8, [])
    assert [schedule.version(n, finished=9) for n in (0, 1, 5)] == [0, 0, 4]
    assert not Lockstep(3, None, lag=0).may_roll((0, 5), 4, [])


def test_async_takes_what_comes_first() -> None:
    schedule = Async(shards=4, last=20, replays=1, ahead=2)
    assert schedule.batch(7, [(3, 0), (3, 1), (3, 2)]) is None
    assert schedule.batch(7, [(3, 0), (3, 1), (0, 5), (3, 2), (1, 0)]) == [(3, 0), (3, 1), (0, 5), (3, 2)]
    assert schedule.may_roll((0, 50), 0, [(3, n) for n in range(7)])
    assert not schedule.may_roll((0, 0), 0, [(3, n) for n in range(8)])
    assert not schedule.may_roll((0, 50), 19, [(3, n) for n in range(4)])
    assert schedule.version(100, finished=3) == 3


def test_async_gives_every_replay_as_much() -> None:
    schedule = Async(shards=4, last=None, replays=2, ahead=2)
    assert schedule.batch(0, [(0, 0), (2, 0), (0, 1), (1, 0)]) is None
    assert schedule.batch(0, [(0, 0), (2, 0), (0, 1), (1, 0), (1, 1)]) == [(0, 0), (1, 0), (2, 0), (1, 1)]
    ahead = [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert not schedule.may_roll((2, 0), 0, ahead) and schedule.may_roll((1, 0), 0, ahead)


def counts(config: Config, run_dir: Path) -> tuple[int, int]:
    """Steps inserted into all replays, and updates made of them."""
    state = newest_state(config, run_dir)
    return sum(int(replay["counters"][0]) for replay in state.replay.values()), int(state.learner["algorithm.updates"])


def newest_state(config: Config, run_dir: Path) -> RunState:
    return read_checkpoint(list_checkpoints(run_dir)[-1], config.rollout.shards)


@pytest.mark.parametrize("seed", range(3))
def test_async_keeps_the_ratio_whatever_is_lost(seed: int, tmp_path: Path) -> None:
    config = config_of(DQN, ASYNC)
    assert config.replay is not None and config.iterations is not None
    execution = FaultyExecution(seed, losses=12)
    outcome = run_trainer(config, execution, tmp_path, runners=3)
    assert outcome.trainer.recovery.restarts >= 1
    assert outcome.trainer.progress.iteration == config.iterations
    inserted, updates = counts(config, tmp_path)
    assert inserted == config.iterations * config.rollout.env_steps
    drawn = config.replay.samples_per_insert * (inserted - config.replay.start)
    assert updates == pytest.approx(drawn / 32, abs=1)


def test_async_resumes(tmp_path: Path) -> None:
    config = config_of(DQN, ASYNC)
    calls = iter(range(10**6))
    first = run_trainer(
        config, FaultyExecution(1, 0), tmp_path, 4, interrupted=lambda: "enough" if next(calls) > 30 else None
    )
    k = first.trainer.progress.iteration
    assert first.trainer.progress.stopped == "enough" and 0 < k < (config.iterations or 0)
    numbers = {s and s.iteration for s in newest_state(config, tmp_path).snapshots.values()}
    assert len(numbers) > 1, "no shard was ahead of another: this tests nothing"
    observer = Recorder()
    run_trainer(config, FaultyExecution(2, 0), tmp_path, 2, observer, start=list_checkpoints(tmp_path)[-1])
    assert [row["iteration"] for row in observer.rows if "train/loss" in row] == list(range(k, config.iterations or 0))
    assert counts(config, tmp_path)[0] == (config.iterations or 0) * config.rollout.env_steps


def test_async_does_not_wait_for_a_slow_runner(ray_execution: RayExecution, tmp_path: Path) -> None:
    """One of two runners takes 10 ms a step: lockstep waits for it in every iteration, async learns from the other."""
    seconds, learnt = {}, {}
    for kind in ("lockstep", "async"):
        env = {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "limp", "flag": str(tmp_path / f"{kind}.flag")}}
        rollout = {"shards": 2, "envs_per_shard": 1, "steps": 16}
        config = config_of(
            {**DQN, "env": env, "rollout": rollout},
            f"schedule.kind={kind}",
            "replay.shards=1",
            "stop.env_steps=1280",
            "evaluation.every=0",
            "evaluation.final_episodes=0",
            "checkpoint.every=0",
        )
        observer = Recorder()
        outcome = run_trainer(config, ray_execution, tmp_path / kind, 2, observer)
        updated = [row["time"] for row in observer.rows if "train/loss" in row]
        seconds[kind], learnt[kind] = updated[-1] - updated[0], outcome.trainer.collector.learnt
    assert learnt["lockstep"] == {0: 40, 1: 40}
    assert sum(learnt["async"].values()) == 80
    assert max(learnt["async"].values()) > 50
    assert seconds["async"] < 0.7 * seconds["lockstep"]


def test_it_says_so(tmp_path: Path) -> None:
    config = config_of(DQN, ASYNC, "track.mlflow=false")
    assert any("cannot be repeated" in warning for warning in plan_run(config).warnings)
    with pytest.raises(UserError, match=r"schedule\.kind=lockstep"):
        next(verify(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((ASYNC, "schedule.lag=0"), "schedule.lag has no meaning"),
        (("schedule.ahead=2",), "schedule.ahead has no meaning"),
        ((ASYNC, "algorithm={name: ppo}", "replay=null"), "learn from what old weights did"),
        (("schedule.kind=asynk",), "schedule.kind"),
    ],
)
def test_contradictions(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of(DQN, *overrides)
