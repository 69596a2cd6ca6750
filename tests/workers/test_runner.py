"""A fragment is a pure function: who rolls it, when, and how often makes no difference in any bit."""

from __future__ import annotations

import pickle
import re
import time
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import toys
from toys import SCRIPT, same, settings

from distrl.acting.distributions import Categorical
from distrl.acting.encoders import Encoder
from distrl.acting.network import NetworkSpec
from distrl.acting.policies import StochasticPolicy
from distrl.envs.journal import Journal
from distrl.envs.make import describe_env
from distrl.errors import EnvError, UserError
from distrl.heartbeat import pulse
from distrl.settings import EnvSettings, RolloutSettings
from distrl.types import Fragment, Report, Snapshot, Weights
from distrl.workers.evaluator import Evaluator
from distrl.workers.runner import Runner

Rolled = tuple[Report, Fragment]

ENVS = {
    "native": settings("CartPole-v1"),
    "single": settings("LunarLander-v3", 70),
    "doubles": settings("FlappyBird-v0", 60, use_lidar=False),
}
SHAPE = RolloutSettings(shards=3, envs_per_shard=4, steps=25)


def make_policy(env: EnvSettings) -> StochasticPolicy:
    info = describe_env(env)
    actions, encoders = info.action_layout.parts[0], tuple(Encoder(part) for part in info.obs_layout.parts)
    spec = NetworkSpec(encoders, actions.n[0], (16,))
    return StochasticPolicy(spec, Categorical(actions.n[0], actions.start[0]), info.obs_layout, info.action_layout)


def make_runner(env: EnvSettings, shape: RolloutSettings = SHAPE, seed: int = 1) -> Runner:
    return Runner(env, shape, seed, make_policy(env))


def weights(env: EnvSettings, version: int) -> Weights:
    size = make_policy(env).network.spec.parameters
    return Weights(version, np.random.default_rng(version).normal(0, 0.4, size).astype(np.float32))


def steady(env: EnvSettings) -> Weights:
    """Weights that always take the first action."""
    policy = make_policy(env)
    vector = np.zeros(policy.network.spec.parameters, np.float32)
    vector[-policy.network.spec.outputs] = 1e3
    return Weights(0, vector)


def travelled(value: Any) -> Any:
    """What another process gets: pickled, and its arrays read-only."""
    again = pickle.loads(pickle.dumps(value, protocol=5))  # noqa: S301
    if isinstance(again, Snapshot):
        for array in (again.returns, again.lengths, *again.env.values()):
            array.flags.writeable = False
    return again


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two things made of dataclasses and arrays differ, clocks aside."""
    if isinstance(left, np.ndarray):
        return [] if same(left, right) else [where]
    if is_dataclass(left):
        names = [f.name for f in fields(left) if f.name not in ("started", "seconds")]
        return [d for name in names for d in differences(getattr(left, name), getattr(right, name), f"{where}.{name}")]
    if isinstance(left, tuple):
        return [d for i in range(len(left)) for d in differences(left[i], right[i], f"{where}[{i}]")]
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return [d for key in left for d in differences(left[key], right[key], f"{where}.{key}")]
    return [] if left == right else [where]


def roll_all(env: EnvSettings, iterations: int, seed: int = 1) -> tuple[dict[tuple[int, int], Rolled], list[Journal]]:
    """Every fragment of a short run, by (shard, iteration), rolled in order by one runner; and the shards' journals."""
    runner, journals = make_runner(env, seed=seed), [Journal(None) for _ in range(SHAPE.shards)]
    rolled: dict[tuple[int, int], Rolled] = {}
    for k in range(iterations):
        for shard, journal in enumerate(journals):
            rolled[shard, k] = runner.rollout(shard, k, weights(env, k), "live" if k else None)
            journal.add(rolled[shard, k][0].after, rolled[shard, k][0].actions)
    return rolled, journals


def snapshot_after(report: Report) -> Snapshot:
    """After a shard's first fragment."""
    journal = Journal(None)
    journal.add(report.after, report.actions)
    snapshot = journal.before(1)
    assert snapshot is not None
    return snapshot


# --- purity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVS)
def test_a_fragment_is_a_pure_function(name: str) -> None:
    env = ENVS[name]
    wanted, journals = roll_all(env, iterations=4)
    assert sum(len(report.episodes.returns) for report, _ in wanted.values()) > 5

    rng = np.random.default_rng(0)
    hot = make_runner(env)  # rolls them all, in any order, some of them twice
    keys = list(wanted)
    for i in [*rng.permutation(len(keys)), *rng.integers(len(keys), size=4)]:
        shard, k = keys[i]
        before = travelled(journals[shard].before(k))
        runner = hot if rng.random() < 0.6 else make_runner(env)
        found = runner.rollout(shard, k, travelled(weights(env, k)), before)
        assert differences(found, wanted[shard, k]) == []


def test_seed_shard_iteration_and_weights_each_make_another_fragment() -> None:
    env = ENVS["native"]
    start = snapshot_after(make_runner(env).rollout(0, 0, weights(env, 0), None)[0])
    other = snapshot_after(make_runner(env).rollout(1, 0, weights(env, 0), None)[0])

    def actions(shard: int = 0, k: int = 1, version: int = 0, seed: int = 1, before: Snapshot = start) -> bytes:
        return make_runner(env, seed=seed).rollout(shard, k, weights(env, version), before)[1].action.tobytes()

    found = [actions(), actions(shard=1), actions(k=2), actions(version=1), actions(seed=2), actions(before=other)]
    assert actions() == found[0]
    assert len(set(found)) == len(found)


def test_what_is_done_with_the_policy_elsewhere_makes_no_difference() -> None:
    """An evaluator or a driver in the same process may hold the same policy object."""
    env = ENVS["native"]
    wanted = make_runner(env).rollout(1, 0, weights(env, 0), None)
    policy = make_policy(env)
    runner, evaluator = Runner(env, SHAPE, 1, policy), Evaluator(env, 1, policy)
    runner.rollout(0, 0, weights(env, 0), None)
    evaluator.evaluate(weights(env, 5), 0, 2, True, 0)
    policy.load(weights(env, 6).vector)
    assert differences(runner.rollout(1, 0, weights(env, 0), None)[1], wanted[1]) == []


def test_what_was_handed_out_stays_what_it_was() -> None:
    env = ENVS["single"]
    runner = make_runner(env)
    first = runner.rollout(0, 0, weights(env, 0), None)
    kept = travelled(first)
    runner.rollout(0, 1, weights(env, 1), "live")
    assert differences(first, kept) == []


def test_fragment_report_and_snapshot_survive_a_process_border() -> None:
    report, fragment = make_runner(ENVS["doubles"]).rollout(2, 0, weights(ENVS["doubles"], 0), None)
    for thing in (report, fragment, snapshot_after(report)):
        assert differences(travelled(thing), thing) == []
    assert travelled(report).seconds == report.seconds
    assert len(pickle.dumps(report)) < 8000


def test_a_report_is_as_small_after_a_long_episode_as_after_a_short_one() -> None:
    runner, sizes = make_runner(settings(SCRIPT), RolloutSettings(envs_per_shard=8, steps=25)), []
    for k in range(60):
        report, _ = runner.rollout(0, k, steady(settings(SCRIPT)), "live" if k else None)
        sizes.append(len(pickle.dumps(report, protocol=5)))
    assert report.after.lengths.tolist() == [1500] * 8
    assert max(sizes) < sizes[0] + 50


# --- what is in a fragment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVS)
def test_fragments_of_a_shard_join_up(name: str) -> None:
    env = ENVS[name]
    rolled, _ = roll_all(env, iterations=3)
    t, n = SHAPE.steps, SHAPE.envs_per_shard
    for (shard, k), (report, fragment) in rolled.items():
        assert (report.shard, report.iteration, report.after.iteration) == (shard, k, k + 1)
        assert (fragment.shard, fragment.iteration, fragment.version) == (shard, k, k)
        assert fragment.obs.shape[:2] == (t + 1, n)
        assert fragment.obs.dtype == np.float32
        for array in (
            fragment.action,
            fragment.reward,
            fragment.terminated,
            fragment.truncated,
            fragment.extras["log_prob"],
        ):
            assert array.shape == (t, n)
        assert fragment.reward.dtype == np.float64
        assert fragment.ended.dtype == bool
        assert not (fragment.terminated & fragment.truncated).any()
        assert fragment.final_obs.shape == (fragment.ended.sum(), *fragment.obs.shape[2:])
        assert fragment.final_obs.dtype == fragment.obs.dtype
        if k:
            assert same(fragment.obs[0], rolled[shard, k - 1][1].obs[-1])


@pytest.mark.parametrize("name", ENVS)
def test_returns_and_lengths_are_those_of_a_slow_loop(name: str) -> None:
    rolled, _ = roll_all(ENVS[name], iterations=5)
    for shard in range(SHAPE.shards):
        total, length = [0.0] * SHAPE.envs_per_shard, [0] * SHAPE.envs_per_shard
        for k in range(5):
            report, fragment = rolled[shard, k]
            returns, lengths = [], []
            for t in range(SHAPE.steps):
                for i in range(SHAPE.envs_per_shard):
                    total[i] += float(fragment.reward[t, i])
                    length[i] += 1
                    if fragment.terminated[t, i] or fragment.truncated[t, i]:
                        returns.append(total[i])
                        lengths.append(length[i])
                        total[i], length[i] = 0.0, 0
            assert report.episodes.returns.tolist() == returns
            assert report.episodes.lengths.tolist() == lengths
            assert report.after.returns.tolist() == total
            assert report.after.lengths.tolist() == length


def test_observations_are_those_before_and_after_each_action() -> None:
    env = settings(SCRIPT, truncate_at=4)
    _, f = make_runner(env, RolloutSettings(envs_per_shard=3, steps=10)).rollout(0, 0, steady(env), None)
    assert f.obs[:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]  # no 4 is ever acted on
    assert f.reward[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert np.argwhere(f.truncated).tolist() == [[t, i] for t in (3, 7) for i in range(3)]
    # the true last observations, in (step, copy) order: the episode's own number is still in them
    numbers = [f.obs[t, i, 1] for t in (3, 7) for i in range(3)]
    assert len(set(numbers)) == 6
    assert f.final_obs.tolist() == [[4, number] for number in numbers]


def test_a_fragment_without_an_end_has_no_final_observations() -> None:
    env = settings(SCRIPT)
    report, fragment = make_runner(env).rollout(0, 0, steady(env), None)
    assert fragment.final_obs.shape == (0, 2)
    assert report.episodes.returns.shape == (0,)
    assert report.episodes.lengths.dtype == np.int64


def test_bytes_stay_bytes() -> None:
    env = settings(SCRIPT, truncate_at=4, dtype="uint8")
    fragment = make_runner(env).rollout(0, 0, steady(env), None)[1]
    assert fragment.obs.dtype == np.uint8
    assert fragment.final_obs.dtype == np.uint8


def test_log_probs_are_those_of_the_actions_under_the_named_weights() -> None:
    env = ENVS["single"]
    runner = make_runner(env)
    runner.rollout(0, 0, weights(env, 3), None)
    fragment = runner.rollout(0, 1, weights(env, 8), "live")[1]
    assert fragment.version == 8
    policy = make_policy(env)
    policy.load(weights(env, 8).vector)
    logits = np.stack([policy.network(obs) for obs in fragment.obs[:-1]]).astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    taken = np.take_along_axis(log_probs, fragment.action[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(fragment.extras["log_prob"], taken, atol=1e-5)
    assert len(np.unique(fragment.action)) > 2


# --- trouble ----------------------------------------------------------------------------------------------------


def test_an_env_that_raised_can_be_rolled_again_from_the_snapshot() -> None:
    env = settings(SCRIPT, truncate_at=6)
    shape = RolloutSettings(envs_per_shard=2, steps=7)
    runner = make_runner(env, shape)
    before = snapshot_after(runner.rollout(3, 0, steady(env), None)[0])
    wanted = make_runner(env, shape).rollout(3, 1, steady(env), before)

    careless = Weights(1, np.zeros_like(steady(env).vector))  # any action, also the one that breaks it
    with pytest.raises(EnvError, match="the toy broke") as caught:
        runner.rollout(3, 1, careless, before)
    assert caught.value.shard == 3
    assert caught.value.env_copy in (6, 7)
    note = "\n".join(caught.value.__notes__)
    assert f"fragment 1 of shard 3 of {SCRIPT}" in note

    assert differences(runner.rollout(3, 1, steady(env), before), wanted) == []


def test_an_env_that_is_not_deterministic_is_reported() -> None:
    env = settings(SCRIPT, unsteady=0.5)
    shape = RolloutSettings(envs_per_shard=12, steps=5)
    report, fragment = make_runner(env, shape).rollout(0, 0, steady(env), None)
    assert not report.unfaithful
    again, after = make_runner(env, shape).rollout(0, 1, steady(env), snapshot_after(report))
    assert again.unfaithful
    # copies that were rebuilt go on, and their returns with them; the others start from nothing
    rebuilt = after.obs[0, :, 0] == 5
    assert 0 < rebuilt.sum() < 12
    assert same(after.obs[0][rebuilt], fragment.obs[-1][rebuilt])
    assert again.after.lengths.tolist() == [10 if r else 5 for r in rebuilt]
    assert again.after.returns.tolist() == [55.0 if r else 15.0 for r in rebuilt]


def test_the_heartbeat_beats_and_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    env = settings(SCRIPT)
    shape = RolloutSettings(envs_per_shard=3, steps=5)
    runner = make_runner(env, shape)
    assert pulse(runner)[1] == ""
    heard: list[tuple[int, str]] = []
    monkeypatch.setattr(toys, "on_step", lambda: heard.append(pulse(runner)))
    runner.rollout(4, 0, steady(env), None)
    runner.rollout(4, 1, steady(env), "live")
    assert len({beats for beats, _ in heard}) == len(heard) == 10 * 3
    assert heard[3 * 7 + 1][1] == f"step 2 of fragment 1 of shard 4 of {SCRIPT}, env copy 1 of the shard"
    assert pulse(runner)[1] == ""


def test_the_heartbeat_beats_while_a_shard_is_made_and_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many env copies and steps that takes, none of them hangs."""
    env = settings(SCRIPT)
    shape = RolloutSettings(envs_per_shard=3, steps=5)
    before = snapshot_after(make_runner(env, shape).rollout(4, 0, steady(env), None)[0])
    runner = make_runner(env, shape)
    heard: list[tuple[int, str]] = []
    for hook in ("on_make", "on_step"):
        monkeypatch.setattr(toys, hook, lambda: heard.append(pulse(runner)))
    runner.rollout(4, 1, steady(env), before)
    made = [where for _, where in heard if where.endswith("(being made)")]
    there = f"step 0 of fragment 1 of shard 4 of {SCRIPT}"
    assert made == [f"{there}, env copy {i} of the shard (being made)" for i in range(3)]
    replayed = [beats for beats, where in heard if where.endswith("(replaying its 5 steps)")]
    assert len(replayed) == 3 * 5
    beats = [beats for beats, where in heard if "env copy" in where]  # without an env made to look at it
    assert len(beats) == len(set(beats)) == 3 + 15 + 15
    assert beats == sorted(beats)


def test_a_rebuild_that_takes_too_long_ends_the_run_with_the_limit_to_resume_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = settings(SCRIPT)
    shape = RolloutSettings(envs_per_shard=2, steps=40)
    live = make_runner(env, shape)
    before = snapshot_after(live.rollout(3, 0, steady(env), None)[0])
    monkeypatch.setattr(toys, "on_step", lambda: time.sleep(0.002))
    with pytest.raises(UserError) as caught:
        Runner(env, shape, 1, make_policy(env), rebuild_timeout_s=0.02).rollout(3, 1, steady(env), before)
    found = re.search(
        rf"shard 3 of {SCRIPT} takes longer than cluster.rebuild_timeout_s=0.02: (\d+) of the 80 steps .* Some (\d+) s "
        r".*--resume RUN cluster.rebuild_timeout_s=(\d+)'",
        str(caught.value),
    )
    assert found is not None
    done, _, limit = map(int, found.groups())
    assert 1 <= done <= 11
    other = Runner(env, shape, 1, make_policy(env), rebuild_timeout_s=limit)
    assert differences(other.rollout(3, 1, steady(env), before), live.rollout(3, 1, steady(env), "live")) == []


def test_time_is_accounted_for() -> None:
    report, _ = make_runner(ENVS["native"]).rollout(0, 0, weights(ENVS["native"], 0), None)
    assert report.seconds.keys() == {"act", "step", "snapshot"}
    assert all(seconds > 0 for seconds in report.seconds.values())
    assert report.started > 1.7e9


def test_the_action_numbers_of_the_env_are_used() -> None:
    """The toy refuses any action that is not in its space."""
    env = settings(SCRIPT, truncate_at=5, first_action=7)
    fragment = make_runner(env).rollout(0, 0, steady(env), None)[1]
    assert set(fragment.action.ravel().tolist()) == {7}
