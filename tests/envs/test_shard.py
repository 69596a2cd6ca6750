"""Shards: the truth about episodes, and rebuilding bit for bit."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toys
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import FrameStackObservation, NormalizeReward
from toys import SCRIPT, Played, same, settings

from distrl.envs.make import describe_env, make_env
from distrl.envs.native import NativeShard
from distrl.envs.shard import make_shard
from distrl.envs.single import SingleShard
from distrl.errors import EnvError, UserError
from distrl.settings import EnvSettings
from distrl.types import Array

SINGLE = {
    "lunar": settings("LunarLander-v3", 75),
    "cartpole": settings("CartPole-v1", 30, "single"),
    "mountain": settings("MountainCar-v0", 55),
    "flappy": settings("FlappyBird-v0", 60, use_lidar=False),
}
NATIVE = settings("CartPole-v1")


def actions_of(env: EnvSettings, steps: int, copies: int, seed: int = 0) -> Array:
    space = make_env(env).action_space
    assert isinstance(space, gym.spaces.Discrete)
    rng = np.random.default_rng(seed)
    if env.id.startswith("FlappyBird"):
        flaps: Array = (rng.random((steps, copies)) < 0.09).astype(np.int64)
        return flaps
    actions: Array = rng.integers(space.n, size=(steps, copies)) + space.start
    return actions


def episode_seed(shard: SingleShard, copy: int) -> int:
    """The seed with which the episode under way was started, as gymnasium remembers it."""
    seed = shard.envs[copy].unwrapped.np_random_seed
    assert isinstance(seed, int)
    return seed


def assert_same_play(left: list[list[Array]], right: list[list[Array]]) -> None:
    assert len(left) == len(right)
    for t, (a, b) in enumerate(zip(left, right, strict=True)):
        assert all(same(x, y) for x, y in zip(a, b, strict=True)), f"step {t}"


# --- the truth about episodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE)
def test_each_step_is_that_of_a_plain_gymnasium_loop(name: str) -> None:
    env, copies, steps = SINGLE[name], 3, 200
    shard = SingleShard(env, seed=5, shard=2, copies=copies)
    plain = [make_env(env) for _ in range(copies)]
    for i in range(copies):
        assert same(plain[i].reset(seed=episode_seed(shard, i))[0], shard.obs[i])
    ends = {"terminated": 0, "truncated": 0}
    for action in actions_of(env, steps, copies):
        step = shard.step(action)
        assert step.obs is shard.obs
        final_obs = iter(step.final_obs)
        for i in range(copies):
            obs, reward, terminated, truncated, _ = plain[i].step(int(action[i]))
            assert step.reward[i] == reward
            assert (step.terminated[i], step.truncated[i]) == (terminated, truncated and not terminated)
            if terminated or truncated:
                ends["terminated" if terminated else "truncated"] += 1
                assert same(next(final_obs), obs)
                obs = plain[i].reset(seed=episode_seed(shard, i))[0]
            assert same(step.obs[i], obs)
        assert list(final_obs) == []
    wanted = {"lunar": (1, 1), "cartpole": (9, 1), "mountain": (0, 9), "flappy": (3, 1)}[name]
    assert ends["terminated"] >= wanted[0]
    assert ends["truncated"] >= wanted[1]


def test_an_end_of_both_kinds_is_a_terminated_one() -> None:
    shard = make_shard(settings(SCRIPT, terminate_at=4, truncate_at=4), 0, 0, 2)
    steps = [shard.step(np.zeros(2, np.int64)) for _ in range(4)]
    assert [s.terminated.tolist() for s in steps] == [[False] * 2] * 3 + [[True] * 2]
    assert not any(s.truncated.any() for s in steps)


def test_rewards_come_as_the_env_gave_them() -> None:
    shard = make_shard(settings(SCRIPT, truncate_at=2), 0, 0, 2)
    rewards = [shard.step(np.array([0, 1])).reward for _ in range(3)]
    assert [r.tolist() for r in rewards] == [[1.0, 1.1], [2.0, 2.1], [1.0, 1.1]]
    assert rewards[0].dtype == np.float64


def test_final_observations_are_kept_apart_from_what_comes_after() -> None:
    shard = make_shard(settings(SCRIPT, truncate_at=3), 0, 0, 2)
    for _ in range(2):
        shard.step(np.zeros(2, np.int64))
    before = shard.obs.copy()
    step = shard.step(np.zeros(2, np.int64))
    final = np.array(step.final_obs)
    assert final.tolist() == [[3, before[0, 1]], [3, before[1, 1]]]
    shard.step(np.zeros(2, np.int64))
    assert same(np.array(step.final_obs), final)


def test_every_episode_of_every_copy_has_a_seed_of_its_own() -> None:
    def seeds(seed: int, number: int) -> list[int]:
        shard = SingleShard(settings(SCRIPT, truncate_at=1), seed, number, 3)
        found = []
        for _ in range(20):
            found += [episode_seed(shard, i) for i in range(3)]
            shard.step(np.zeros(3, np.int64))
        return found

    assert seeds(1, 0) == seeds(1, 0)
    assert len({*seeds(1, 0), *seeds(1, 1), *seeds(2, 0)}) == 180


def test_copies_are_numbered_for_the_whole_run() -> None:
    """However the copies are grouped, number 3 plays the same episodes."""
    env = settings(SCRIPT, truncate_at=2)
    pairs, quads = SingleShard(env, 1, 1, 2), SingleShard(env, 1, 0, 4)
    for _ in range(5):
        assert episode_seed(pairs, 1) == episode_seed(quads, 3)
        pairs.step(np.zeros(2, np.int64))
        quads.step(np.zeros(4, np.int64))


# --- rebuilding -------------------------------------------------------------------------------------------------

REBUILT = {name: (env, 3) for name, env in SINGLE.items()} | {"native": (NATIVE, 5)}


@pytest.mark.parametrize("name", REBUILT)
def test_a_shard_is_rebuilt_bit_for_bit_at_any_point(name: str) -> None:
    env, copies = REBUILT[name]
    rng = np.random.default_rng(1)
    actions = actions_of(env, 160, copies, seed=3)
    used = Played(make_shard(env, 5, 2, copies))
    used.play(actions[::-1][:37])  # somewhere else entirely
    for stop in [1, *sorted(rng.choice(np.arange(2, 120), 3, replace=False).tolist())]:
        live, fresh = Played(make_shard(env, 5, 2, copies)), Played(make_shard(env, 5, 2, copies))
        for part in np.array_split(actions[:stop], min(stop, 3)):
            live.play(part)
        ahead = actions[stop : stop + 40]
        snapshot, obs = live.snapshot(), live.shard.obs.copy()
        for other in (fresh, used):
            assert other.shard.restore(snapshot).all()
            assert same(other.shard.obs, obs)
        wanted = live.play(ahead)
        for other in (fresh, used):
            assert_same_play(other.play(ahead), wanted)
        left, right = live.shard.arrays(), fresh.shard.arrays()
        assert left.keys() == right.keys()
        assert [key for key in left if not same(left[key], right[key])] == []
        assert live.shard.restore(snapshot).all()
        assert same(live.shard.obs, obs)


@pytest.mark.parametrize("name", ["flappy", "native"])
def test_a_snapshot_stays_what_it_was(name: str) -> None:
    env, copies = REBUILT[name]
    live = Played(make_shard(env, 5, 2, copies))
    live.play(actions_of(env, 20, copies))
    snapshot = live.journal.before(1)
    assert snapshot is not None
    before = {key: array.copy() for key, array in snapshot.env.items()}
    live.play(actions_of(env, 60, copies))
    live.snapshot()
    assert all(same(snapshot.env[key], before[key]) for key in before)
    assert not any(array.dtype.hasobject for array in snapshot.env.values())


@pytest.mark.parametrize("first_action", [0, -1, 4])
def test_actions_that_do_not_start_at_0_are_replayed(first_action: int) -> None:
    env = settings(SCRIPT, truncate_at=9, first_action=first_action)
    live, again = Played(make_shard(env, 0, 0, 2)), make_shard(env, 0, 0, 2)
    live.play(np.full((14, 2), first_action + 1))
    assert again.restore(live.snapshot()).all()
    assert same(again.obs, live.shard.obs)


def test_an_env_that_is_not_deterministic_is_noticed_and_starts_afresh() -> None:
    env = settings(SCRIPT, truncate_at=50, unsteady=0.5)
    shard = SingleShard(env, 0, 0, 12)
    live = Played(shard)
    live.play(np.zeros((7, 12), np.int64))
    snapshot = live.snapshot()
    steady = np.array([copy.unwrapped.number >= 128 for copy in shard.envs])  # type: ignore[attr-defined]
    assert 0 < steady.sum() < 12

    again = SingleShard(env, 0, 0, 12)
    exact = again.restore(snapshot)

    assert exact.tolist() == steady.tolist()
    assert same(again.obs[steady], shard.obs[steady])
    assert again.obs[~steady, 0].tolist() == [0] * int((~steady).sum())
    for i in np.flatnonzero(~steady).tolist():
        assert episode_seed(again, i) != episode_seed(shard, i)
    Played(again).play(np.zeros((3, 12), np.int64))
    assert again.obs[:, 0].tolist() == [10 if s else 3 for s in steady]


class Fickle(CartPoleEnv):
    """Shows what its seed and its actions make of it, but pays or ends by what it has been through before."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.trouble, self.past, self.seen = trouble, 0, 0

    def reset(self, **kwargs: Any) -> Any:
        self.past += self.seen
        self.seen = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.seen += 1
        if self.trouble == "pays":
            reward += 1e-9 * self.past
        elif self.trouble == "ends":
            truncated = self.past == 0 and self.seen == 4
        return obs, reward, terminated, truncated, info


@pytest.fixture
def fickle() -> Iterator[None]:
    gym.register("Fickle-v0", Fickle)
    gym.register("Normalized-v0", lambda: NormalizeReward(CartPoleEnv()))
    yield
    del gym.registry["Fickle-v0"], gym.registry["Normalized-v0"]


@pytest.mark.usefixtures("fickle")
@pytest.mark.parametrize(
    "env", [settings("Fickle-v0", trouble="pays"), settings("Fickle-v0", trouble="ends"), settings("Normalized-v0")]
)
def test_rewards_and_ends_that_do_not_come_again_are_noticed(env: EnvSettings) -> None:
    shard = SingleShard(env, 0, 0, 3)
    live = Played(shard)
    while (shard.episode == 0).any():
        live.play(actions_of(NATIVE, 1, 3, seed=live.fragments))
    live.play(np.ones((4, 3), np.int64))  # nobody falls so soon
    assert not SingleShard(env, 0, 0, 3).restore(live.snapshot()).any()


# --- errors -----------------------------------------------------------------------------------------------------


def test_an_error_says_where_it_was() -> None:
    shard = SingleShard(settings(SCRIPT, truncate_at=6), seed=1, shard=7, copies=3)
    for _ in range(9):  # three steps into the second episode
        shard.step(np.zeros(3, np.int64))
    with pytest.raises(EnvError) as caught:
        shard.step(np.array([0, toys.BREAK, 0]))
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (error.env_id, error.shard, error.env_copy) == (SCRIPT, 7, 7 * 3 + 1)
    assert error.seed == episode_seed(shard, 1)
    assert error.step == 4
    assert shard.heart.copy == 1
    assert "RuntimeError: the toy broke in step" in str(error)
    assert "toys.py" in str(error)


def test_an_error_in_reset_says_where_it_was() -> None:
    with pytest.raises(EnvError, match="the toy broke in reset") as caught:
        SingleShard(settings(SCRIPT, broken_reset=True), seed=1, shard=2, copies=3)
    assert (caught.value.shard, caught.value.env_copy, caught.value.step) == (2, 6, 0)


def test_an_error_in_the_reset_after_an_end_says_where_it_was() -> None:
    shard = SingleShard(settings(SCRIPT, truncate_at=2), seed=1, shard=2, copies=3)
    shard.envs[2].unwrapped.broken_reset = True  # type: ignore[attr-defined]
    shard.step(np.zeros(3, np.int64))
    with pytest.raises(EnvError, match="the toy broke in reset") as caught:
        shard.step(np.zeros(3, np.int64))
    assert (caught.value.env_copy, caught.value.step) == (8, 0)
    assert caught.value.seed == episode_seed(shard, 2)


@pytest.mark.parametrize(
    ("where", "mask", "complaint"),
    [
        ("info", [0, 0, 0], "the action mask [0, 0, 0] allows nothing"),
        ("dict", [0, 0, 0], "the action mask [0, 0, 0] allows nothing"),
        ("info", [1, 1], "the action mask has shape [2], and there are 3 choices"),
        ("dict", [[1, 1]], "the action mask has shape [1, 2], and there are 3 choices"),
    ],
)
def test_a_mask_that_says_nothing_is_one_message_with_env_copy_and_step(where: str, mask: Any, complaint: str) -> None:
    env = settings(toys.WALK, mask=where, bad_mask=mask)
    layout = describe_env(env).obs_layout
    shard = SingleShard(env, seed=1, shard=2, copies=3, layout=layout)
    allowed = layout.mask_of(shard.obs)
    assert allowed is not None
    action = shard.step(allowed.argmax(axis=1)).obs
    allowed = layout.mask_of(action)
    assert allowed is not None
    with pytest.raises(UserError) as caught:
        shard.step(allowed.argmax(axis=1))
    seed = episode_seed(shard, 0)
    assert f"{toys.WALK}, env copy 6, step 2 of the episode of seed {seed}: {complaint}" in str(caught.value)


def test_an_error_while_rebuilding_says_where_it_was() -> None:
    env = settings(SCRIPT)
    live = Played(SingleShard(env, 1, 0, 2))
    live.play(np.zeros((5, 2), np.int64))
    snapshot = live.journal.before(1)
    assert snapshot is not None
    snapshot.env["action"][-2] = toys.BREAK  # of the second copy, its fourth
    with pytest.raises(EnvError, match="the toy broke in step") as caught:
        SingleShard(env, 1, 0, 2).restore(snapshot)
    assert (caught.value.env_copy, caught.value.step) == (1, 4)


def test_an_error_of_a_native_env_names_shard_and_cause() -> None:
    shard = NativeShard(NATIVE, seed=1, shard=3, copies=4)
    with pytest.raises(EnvError, match="AssertionError") as caught:
        shard.step(np.full(4, 2))
    assert (caught.value.env_id, caught.value.shard) == ("CartPole-v1", 3)


# --- stacks of frames -------------------------------------------------------------------------------------------


def stacked(padding: str, last: bool = False) -> gym.Env[Any, Any]:
    """CartPole seen as its newest three observations, on the first axis or the last, with what it says of that."""
    env: gym.Env[Any, Any] = FrameStackObservation(CartPoleEnv(), 3, padding_type=padding)
    if last:
        space = gym.spaces.Box(-np.inf, np.inf, (4, 3), np.float32)
        env = gym.wrappers.TransformObservation(env, np.transpose, space)
    env.metadata = {**env.metadata, "frame_stack": 3}
    return env


@pytest.fixture
def stacks() -> Iterator[EnvSettings]:
    gym.register("Stacks-v0", stacked)
    yield EnvSettings(id="Stacks-v0")
    del gym.registry["Stacks-v0"]


def test_stacks_that_begin_with_their_first_frame_are_taken(stacks: EnvSettings) -> None:
    shard = make_shard(stacks.model_copy(update={"kwargs": {"padding": "reset"}}), 0, 0, 2)
    assert shard.frame_stack == 3
    assert same(shard.obs[:, 0], shard.obs[:, 2])


@pytest.mark.parametrize(
    ("kwargs", "found"),
    [({"padding": "zero"}, "frames that differ"), ({"padding": "reset", "last": True}, r"\[4, 3\], and \[3, ...\]")],
)
def test_stacks_of_another_kind_are_refused(stacks: EnvSettings, kwargs: dict[str, Any], found: str) -> None:
    """The learner would see others than the policy saw."""
    with pytest.raises(UserError, match=rf"Stacks-v0 .*frame_stack.* = 3.*{found}.*padding_type='reset'"):
        make_shard(stacks.model_copy(update={"kwargs": kwargs}), 0, 0, 2)


# --- native vector envs -----------------------------------------------------------------------------------------


def balance(obs: Array) -> Array:
    """Keeps the pole up for ever."""
    action: Array = (obs @ np.array([0.1, 0.3, 3.0, 1.0]) > 0).astype(np.int64)
    return action


def state_of(shard: NativeShard) -> Array:
    state: Array = vars(shard.env.unwrapped)["state"]
    return state


@pytest.mark.parametrize(
    ("env", "kind"), [(NATIVE, NativeShard), (settings("CartPole-v1", vectorize="single"), SingleShard)]
)
def test_the_form_of_a_shard_is_chosen_by_the_settings(env: EnvSettings, kind: type) -> None:
    assert type(make_shard(env, 0, 0, 2)) is kind
    assert type(make_shard(settings("MountainCar-v0"), 0, 0, 2)) is SingleShard


def test_a_native_form_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"env\.vectorize is 'native'.*LunarLander-v3.*'auto'"):
        make_shard(settings("LunarLander-v3", vectorize="native"), 0, 0, 2)


def test_no_step_of_a_native_shard_is_a_reset() -> None:
    """Each step equals that of a single CartPole in the same state, also right after an end."""
    copies, ends = 6, 0
    shard = NativeShard(NATIVE, 5, 1, copies)
    single = CartPoleEnv()
    ages = np.zeros(copies, int)
    for t, action in enumerate(actions_of(NATIVE, 150, copies)):
        before = state_of(shard).copy()
        np.testing.assert_array_equal(shard.obs, before.T.astype(np.float32))
        step = shard.step(action)
        ages += 1
        final_obs = iter(step.final_obs)
        for i in range(copies):
            single.reset()
            single.state = before[:, i]
            obs, reward, terminated, _, _ = single.step(int(action[i]))  # type: ignore[no-untyped-call]
            assert (step.reward[i], step.terminated[i]) == (reward, terminated), t
            assert not step.truncated[i]
            if terminated:
                ends += 1
                np.testing.assert_allclose(next(final_obs), obs, rtol=1e-6)
                assert ages[i] > 5
                ages[i] = 0
                assert np.abs(step.obs[i]).max() <= 0.05  # a fresh start
                assert vars(shard.env.unwrapped)["steps"][i] == 0
            else:
                np.testing.assert_allclose(step.obs[i], obs, rtol=1e-6)
        assert list(final_obs) == []
    assert ends > 20


@pytest.mark.parametrize(("limit", "length"), [(None, 500), (12, 12)])
def test_a_native_time_limit_truncates(limit: int | None, length: int) -> None:
    shard = NativeShard(settings("CartPole-v1", limit), 0, 0, 3)
    for start in (0, length):  # twice, as the second episode counts from its own start
        for t in range(start, start + length):
            obs = shard.obs.copy()
            step = shard.step(balance(obs))
            assert not step.terminated.any()
            assert step.truncated.tolist() == [t + 1 == start + length] * 3
        assert len(step.final_obs) == 3
        assert np.abs(step.obs).max() <= 0.05
        assert (np.abs(np.array(step.final_obs) - obs) < 0.5).all()


def test_a_native_end_of_both_kinds_is_a_terminated_one() -> None:
    """Pushed one way only, poles fall after 8 to 10 steps; the limit is 9."""
    shard = NativeShard(settings("CartPole-v1", 9), 0, 0, 64)
    kinds = set()
    for t in range(9):
        step = shard.step(np.ones(64, np.int64))
        kinds |= {(t + 1, bool(a), bool(b)) for a, b in zip(step.terminated, step.truncated, strict=True)}
    assert kinds >= {(9, True, False), (9, False, True)}
    assert not any(terminated and truncated for _, terminated, truncated in kinds)


def test_the_forms_of_an_env_agree_on_a_limit_in_its_arguments() -> None:
    ends = []
    for vectorize in ("native", "single"):
        shard = make_shard(settings("CartPole-v1", vectorize=vectorize, max_episode_steps=7), 0, 0, 2)
        ends.append([shard.step(balance(shard.obs)).truncated.tolist() for _ in range(9)])
    assert ends[0] == ends[1]


def test_native_arguments_reach_the_env() -> None:
    shard = make_shard(settings("CartPole-v1", sutton_barto_reward=True), 0, 0, 2)
    assert isinstance(shard, NativeShard)
    assert {float(r) for _ in range(40) for r in shard.step(np.ones(2, np.int64)).reward} == {0.0, -1.0}


def test_native_copies_episodes_and_shards_all_start_elsewhere() -> None:
    starts: list[bytes] = []
    for number in (0, 1):
        shard = NativeShard(NATIVE, 3, number, 4)
        starts += [obs.tobytes() for obs in shard.obs]
        for action in actions_of(NATIVE, 100, 4):
            step = shard.step(action)
            starts += [obs.tobytes() for obs in step.obs[step.terminated]]
    assert len(starts) > 30
    assert len(set(starts)) == len(starts)


def test_an_end_of_one_native_copy_leaves_the_others_alone() -> None:
    """A copy that balances goes on the same, whether its neighbour falls or not."""
    pictures = []
    for falls in (False, True):
        shard = NativeShard(NATIVE, 0, 0, 2)
        seen = []
        for _ in range(60):
            action = balance(shard.obs)
            if falls:
                action[1] = 1
            shard.step(action)
            seen.append(shard.obs[0].copy())
        pictures.append(np.array(seen))
    assert same(*pictures)
    assert math.isfinite(pictures[0].sum())
