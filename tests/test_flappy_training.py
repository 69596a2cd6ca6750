"""Flappy Bird through the whole of distrl: features and pixels, scores, limits, streaks, and the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import Recorder, config_of, run_trainer
from faulty import FaultyExecution
from toys import categorical, obs_layout, spec_of

from distrl.acting.network import single_threaded
from distrl.acting.policies import EpsilonGreedyPolicy
from distrl.algorithms.ppo import make_policy as make_ppo_policy
from distrl.envs import flappy
from distrl.envs.make import describe_env, find_spec
from distrl.envs.single import SingleShard
from distrl.errors import EnvError, UserError
from distrl.execution.local import LocalExecution
from distrl.fragments import unstacked
from distrl.models.store import list_checkpoints
from distrl.registry import algorithm_module
from distrl.settings import EnvSettings, StreakSettings
from distrl.training.checkpoint import read_checkpoint
from distrl.training.progress import Progress
from distrl.types import Array, Arrays, Spread, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay
from distrl.workers.runner import Runner

PIXELS: dict[str, Any] = {
    "env": {"id": "distrl/FlappyBirdPixels-v0", "max_episode_steps": 70, "report": ["score"]},
    "algorithm": {
        "name": "dqn", "n_step": 3, "batch_size": 16, "hidden": [16], "body": "small_cnn", "target_every": 5,
        "epsilon": {"start": 1, "end": 0.05, "over": 500}, "action_probs": [0.92, 0.08],
    },
    "replay": {"capacity": 400, "start": 64, "samples_per_insert": 1, "prioritized": True},
    "rollout": {"shards": 2, "envs_per_shard": 2, "steps": 8},
    "stop": {"env_steps": 32 * 14},
    "evaluation": {"every": 7, "episodes": 2, "final_episodes": 2},
    "checkpoint": {"every": 4},
    "cluster": {"restarts": 1000},
}  # fmt: skip
FEATURES: dict[str, Any] = {
    **PIXELS,
    "env": {"id": "FlappyBird-v0", "kwargs": {"use_lidar": False}, "max_episode_steps": 70, "report": ["score"]},
    "algorithm": {"name": "ppo", "minibatch_size": 16, "hidden": [16]},
    "replay": None,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    single_threaded()


class Watcher(EpsilonGreedyPolicy):
    """Remembers what it saw."""

    seen: list[Array]

    def act(self, obs: Array, noise: Array) -> tuple[Array, Arrays]:
        self.seen.append(obs.copy())
        return super().act(obs, noise)


def test_a_fragment_of_pixels_is_small_and_whole() -> None:
    """Single frames travel; put together again they are what the policy saw, over ends and from one fragment to the next."""
    config = config_of(PIXELS)
    spec = spec_of((4, 84, 84), 2, (), ((4, 8, 4),), "relu", 1 / 255)
    policy = Watcher(spec, obs_layout(spec), 0, (0.92, 0.08))
    policy.seen = []
    runner = Runner(config.env, config.rollout, 1, policy)
    watcher = runner.policy
    weights, ends = Weights(0, np.append(np.zeros(spec.parameters, np.float32), 1.0)), 0
    for k in range(14):
        watcher.seen.clear()  # type: ignore[attr-defined]
        report, fragment = runner.rollout(0, k, weights, "live" if k else None)
        assert fragment.obs.shape == (3 + 8 + 1, 2, 84, 84)
        assert fragment.obs.dtype == np.uint8
        whole = unstacked(fragment)
        assert (whole.obs[:-1] == np.stack(watcher.seen)).all()  # type: ignore[attr-defined]
        ends += len(whole.final_obs)
        assert whole.final_obs.shape == (int(fragment.ended.sum()), 4, 84, 84)
        last_t, last_n = np.nonzero(fragment.ended)
        assert (whole.final_obs[:, :-1] == whole.obs[last_t, last_n, 1:]).all()  # they moved on by one frame
        assert report.episodes.infos["score"].shape == report.episodes.returns.shape
    assert ends >= 2


@pytest.mark.parametrize(
    "base", [PIXELS, {**PIXELS, "algorithm": FEATURES["algorithm"] | {"body": "cnn"}, "replay": None}]
)
def test_pixels_give_the_same_bits_whatever_is_lost(base: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(base)
    reference = run_trainer(config, LocalExecution(), tmp_path / "local")
    execution = FaultyExecution(3, losses=5)
    disturbed = run_trainer(config, execution, tmp_path / "faulty", runners=2)
    assert len(execution.lost) > 0
    assert disturbed.facts == reference.facts
    assert reference.trainer.evaluations.final is not None
    assert set(reference.trainer.evaluations.final.scores) == {"score"}
    assert "train/scores/score_mean" in reference.observer.rows[config.iterations - 1]


def test_what_the_replay_draws_of_pixels_is_what_the_policy_saw() -> None:
    config = config_of(PIXELS)
    policy = algorithm_module("dqn").make_policy(config.algorithm, describe_env(config.env))
    learner = Learner(config, policy, None)
    runner, replay = Runner(config.env, config.rollout, 1, policy), Replay(config, 0, None)
    seen: set[bytes] = set()
    for k in range(12):
        for shard in range(2):
            _, fragment = runner.rollout(shard, k, learner.weights(), "live" if k else None)
            replay.add(fragment)
            whole = unstacked(fragment)
            seen |= {obs.tobytes() for obs in whole.obs.reshape(-1, 4, 84, 84)}
            seen |= {obs.tobytes() for obs in whole.final_obs}
        batch = replay.sample(k, 0)
        drawn = np.concatenate([batch.obs.reshape(-1, 4, 84, 84), batch.next_obs.reshape(-1, 4, 84, 84)])
        assert drawn.dtype == np.uint8
        known = [obs.tobytes() in seen for obs in drawn]
        terminated = np.concatenate([np.zeros(batch.key.size, bool), batch.discount.ravel() == 0])
        assert all(k or t for k, t in zip(known, terminated.tolist(), strict=True))
    assert len(drawn) > 0


def test_ppo_learns_from_the_same_pixels(tmp_path: Path) -> None:
    base = {**PIXELS, "algorithm": FEATURES["algorithm"] | {"body": "cnn"}, "replay": None}
    outcome = run_trainer(config_of(base, "stop.env_steps=64", "evaluation.every=0"), LocalExecution(), tmp_path)
    assert outcome.trainer.progress.iteration == 2


def test_the_score_is_a_metric_of_its_own() -> None:
    """A bird that never flaps dies before the first pipe; so does one that the limit stops."""
    settings = EnvSettings(id="FlappyBird-v0", kwargs={"use_lidar": False}, max_episode_steps=130, report=("score",))
    policy = categorical(spec_of((12,), 2, hidden=()))
    idle = np.zeros(26, np.float32)
    idle[24] = 1.0
    result = Evaluator(settings, 1, policy).evaluate(Weights(0, idle), 0, 3, True, 0)
    assert result.scores == {"score": Spread(0, 0, 0, 0)}
    # Flapping whenever the bird is below the gap's middle passes pipes; feature numbers are the package's.
    careful = np.zeros(26, np.float32)
    careful[12 + 9], careful[12 + 5], careful[12 + 4] = 1.0, -0.5, -0.5
    careful[24] = 0.05
    result = Evaluator(settings, 1, policy).evaluate(Weights(0, careful), 0, 8, True, 0)
    assert result.scores["score"].max >= 1
    shard = SingleShard(settings, 1, 0, 2)
    while not (step := shard.step(np.zeros(2, np.int64))).infos:
        pass
    assert step.infos[0] == {"score": 0.0}


def test_an_unknown_report_is_told() -> None:
    config = config_of(FEATURES, "env.report=[scoer]")
    shard = SingleShard(config.env, 1, 0, 1)

    def fall() -> None:
        for _ in range(200):
            shard.step(np.zeros(1, np.int64))

    with pytest.raises(EnvError, match=r"env.report names 'scoer'.*'score'"):
        fall()


def test_a_streak_is_counted_over_episodes_and_iterations(tmp_path: Path) -> None:
    """CartPole under a random policy passes 10 nearly always and 1000 never."""
    base = {**FEATURES, "env": {"id": "CartPole-v1"}}
    reached = run_trainer(config_of(base, "track.streak={episodes: 3, above: 5}"), LocalExecution(), tmp_path / "a")
    assert reached.trainer.progress.steps_to_streak is not None
    assert any("3 training episodes in a row above 5, after" in m for m in reached.observer.messages)
    never = run_trainer(config_of(base, "track.streak={episodes: 3, above: 1000}"), LocalExecution(), tmp_path / "b")
    assert never.trainer.progress.steps_to_streak is None


@pytest.mark.parametrize(
    ("returns", "expected"), [([21, 21, 21, 21], None), ([21, 21, 21, 21, 20, 21], None), ([1, 21, 21, 21, 21, 21], 64)]
)
def test_five_in_a_row(returns: list[float], expected: int | None) -> None:
    progress, wanted = Progress(env_steps=64), StreakSettings(episodes=5, above=20)
    told = [progress.count_streak(part, wanted) for part in (returns[:3], returns[3:])]
    assert progress.steps_to_streak == expected and sum(told) == (expected is not None)


def test_a_checkpoint_without_the_replay_is_smaller_and_says_so(tmp_path: Path) -> None:
    config = config_of(PIXELS, "checkpoint.replay=false", "checkpoint.every=0", "evaluation.every=0")
    asked = iter(range(8))
    first = run_trainer(
        config, LocalExecution(), tmp_path, interrupted=lambda: None if next(asked, None) is not None else "interrupted"
    )
    start = list_checkpoints(tmp_path)[-1]
    assert read_checkpoint(start, config.rollout.shards).replay == {}
    observer = Recorder()
    done = run_trainer(config, LocalExecution(), tmp_path, start=start, observer=observer)
    assert first.trainer.progress.iteration < done.trainer.progress.iteration == 14
    assert any("holds no replay (checkpoint.replay was false)" in message for message in observer.messages)


def test_the_pixel_env_is_found_by_its_id() -> None:
    assert find_spec("distrl/FlappyBirdPixels-v0").entry_point == "distrl.envs.flappy:FlappyBirdPixels"
    info = describe_env(EnvSettings(id="distrl/FlappyBirdPixels-v0"))
    assert (info.frame_stack, info.max_episode_steps) == (4, 10_000)
    assert describe_env(EnvSettings(id="FlappyBird-v0", kwargs={"use_lidar": False})).frame_stack == 0
    assert make_ppo_policy(config_of(FEATURES).algorithm, info).network.spec.encoders[0].conv


@pytest.mark.parametrize("env_id", ["FlappyBird-v0", "distrl/FlappyBirdPixels-v0"])
def test_the_other_package_of_the_same_id_is_refused(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flappy.check_package()
    spec = gym.registry["FlappyBird-v0"]
    monkeypatch.setattr(spec, "entry_point", "flappy_bird_env.flappy_bird_env:FlappyBirdEnv")
    with pytest.raises(UserError, match="flappy-bird-env"):
        find_spec(env_id)


def test_ppo_begins_with_the_actions_it_was_told() -> None:
    """Even chances of flapping keep the bird at the ceiling, where it learns nothing."""
    config = config_of(FEATURES, "algorithm.action_probs=[0.92, 0.08]")
    policy = make_ppo_policy(config.algorithm, describe_env(config.env))
    policy.load(Learner(config, policy, None).weights().vector)
    obs = np.random.default_rng(0).random((4000, 12))
    action, _ = policy.act(obs, policy.draw(np.random.default_rng(1), 1, 4000)[0])
    assert action.mean() == pytest.approx(0.08, abs=0.015)
    with pytest.raises(UserError, match="action_probs has 3 numbers; FlappyBird-v0 has 2 actions"):
        make_ppo_policy(
            config_of(FEATURES, "algorithm.action_probs=[0.5, 0.2, 0.3]").algorithm, describe_env(config.env)
        )
