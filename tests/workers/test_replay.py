"""The replay against an oracle that keeps every step in lists and walks them one by one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from conftest import config_of

from distrl.algorithms import dqn
from distrl.algorithms.dqn import Settings
from distrl.errors import UserError
from distrl.fragments import unstacked
from distrl.settings import Config, Replayed
from distrl.types import Array, Batch, Fragment, Priorities
from distrl.workers import replay as replay_module
from distrl.workers.replay import Replay

GAMMA = 0.9
STACK = 4


def config(*overrides: str, shards: int = 2, copies: int = 3, steps: int = 5) -> Config:
    base = {
        "env": {"id": "CartPole-v1"},
        "algorithm": {"name": "dqn", "gamma": GAMMA, "batch_size": 16},
        "rollout": {"shards": shards, "envs_per_shard": copies, "steps": steps},
        "replay": {"capacity": 6000, "start": 100, "samples_per_insert": 8},
    }
    return config_of(base, *overrides)


@dataclass
class Step:
    seen: list[int]  # the observation: its number, or those of its stacked frames
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_seen: list[int]
    q: float
    value: float


@dataclass
class World:
    """Makes fragments of random episodes whose every frame has a number of its own, and remembers every step."""

    shards: int
    copies: int
    steps: int
    stack: int = 0
    terminate: float = 0.1
    truncate: float = 0.1
    seed: int = 0
    iteration: int = 0
    history: dict[tuple[int, int], list[Step]] = field(default_factory=dict)  # by (shard, copy)

    def __post_init__(self) -> None:
        self.rng, self.numbers = np.random.default_rng(self.seed), itertools.count(1)
        self.now = {(s, n): self.first() for s in range(self.shards) for n in range(self.copies)}
        self.history = {key: [] for key in self.now}

    def first(self) -> list[int]:
        return [next(self.numbers)] * max(1, self.stack)

    def fragments(self, dtype: Any = np.float32) -> list[Fragment]:
        made = [self.fragment(shard, dtype) for shard in range(self.shards)]
        self.iteration += 1
        return made

    def fragment(self, shard: int, dtype: Any) -> Fragment:
        t_max, n_max, rng = self.steps, self.copies, self.rng
        obs = [[self.now[shard, n] for n in range(n_max)]]
        action, reward = rng.integers(0, 2, (t_max, n_max)), rng.normal(size=(t_max, n_max))
        terminated = rng.random((t_max, n_max)) < self.terminate
        truncated = (rng.random((t_max, n_max)) < self.truncate) & ~terminated
        q, value = rng.normal(size=(2, t_max, n_max)).astype(np.float32)
        final = []
        for t in range(t_max):
            for n in range(n_max):
                before = self.now[shard, n]
                after = [*before[1:], next(self.numbers)]
                self.history[shard, n].append(
                    Step(
                        before, int(action[t, n]), reward[t, n], terminated[t, n], truncated[t, n], after,
                        float(q[t, n]), float(value[t, n]),
                    )
                )  # fmt: skip
                if terminated[t, n] or truncated[t, n]:
                    final.append(after)
                    after = self.first()
                self.now[shard, n] = after
            obs.append([self.now[shard, n] for n in range(n_max)])
        if self.stack:
            stacks = np.array(obs)  # [T + 1, N, C]
            frames = np.concatenate([stacks[0].T, stacks[1:, :, -1]])[..., None]
            last = np.array([f[-1] for f in final]).reshape(-1, 1)
        else:
            frames, last = np.array(obs), np.array(final).reshape(-1, 1)
        return Fragment(
            shard, self.iteration, 0, frames.astype(dtype), action, reward, terminated, truncated, last.astype(dtype),
            {"q": q, "value": value}, self.stack,
        )  # fmt: skip

    def walk(self, key: tuple[int, int], t: int, n: int) -> tuple[float, float, list[int], float] | None:
        """Return, discount, bootstrap observation and acting value there; None: not complete yet."""
        total, discount = 0.0, 1.0
        steps = self.history[key]
        for j in range(n):
            if t + j >= len(steps):
                return None
            step = steps[t + j]
            total += discount * step.reward
            discount *= GAMMA
            if step.terminated:
                return total, 0.0, [], 0.0
            if step.truncated:
                return total, discount, step.next_seen, step.value
        after = t + n
        value = steps[after].value if after < len(steps) else steps[-1].value
        return total, discount, steps[after - 1].next_seen, value

    def transitions(self, n: int) -> dict[int, tuple[Step, float, float, list[int], float]]:
        """All whole ones, by the number of their newest frame."""
        return {
            step.seen[-1]: (step, *found)
            for key, steps in self.history.items()
            for t, step in enumerate(steps)
            if (found := self.walk(key, t, n)) is not None
        }


def flat(batch: Batch) -> list[tuple[Array, int, float, float, Array]]:
    width = int(np.prod(batch.obs.shape[2:]))
    rows = zip(
        batch.obs.reshape(-1, width), batch.action.ravel(), batch.reward.ravel(), batch.discount.ravel(),
        batch.next_obs.reshape(-1, width), strict=True,
    )  # fmt: skip
    return list(rows)


def everything(replay: Replay) -> set[int]:
    """The numbers of the newest frames of all that can be drawn."""
    return {int(obs.ravel()[-1]) for obs in replay.arrays["obs"][leaves(replay) > 0]}


@pytest.mark.parametrize("stack", [0, STACK])
@pytest.mark.parametrize("n_step", [1, 3, 7])
def test_every_transition_is_what_happened(n_step: int, stack: int) -> None:
    """n-step returns over ends of both kinds, over fragment borders (n beyond T), on a ring that is overwritten."""
    world = World(2, 3, 5, stack)
    replay = Replay(config(f"algorithm.n_step={n_step}", "replay.capacity=300"), 0, None)
    drawn = set()
    for k in range(40):
        replay.add(*world.fragments(np.int64))
        known = world.transitions(n_step)
        for seen, action, reward, discount, next_seen in flat(replay.sample(k, 0)):
            step, total, gamma, bootstrap, _ = known[int(seen[-1])]
            assert seen.tolist() == step.seen
            assert action == step.action
            assert reward == pytest.approx(total, rel=1e-5, abs=1e-6)
            assert discount == pytest.approx(gamma, rel=1e-6)
            if gamma:
                assert next_seen.tolist() == bootstrap
            drawn.add(int(seen[-1]))
    assert len(drawn) > 600
    assert {e for step in world.history[0, 0] for e in (step.terminated, step.truncated)} == {True, False}


@pytest.mark.parametrize("stack", [0, STACK])
@pytest.mark.parametrize("n_step", [1, 3])
def test_what_can_be_drawn_is_all_that_is_whole(n_step: int, stack: int) -> None:
    world = World(2, 3, 5, stack)
    replay = Replay(config(f"algorithm.n_step={n_step}"), 0, None)
    for _ in range(8):
        replay.add(*world.fragments(np.int64))
        assert everything(replay) == set(world.transitions(n_step))
        assert replay.count == len(world.transitions(n_step))


@pytest.mark.parametrize("stack", [0, STACK])
def test_a_full_ring_keeps_the_newest(stack: int) -> None:
    world = World(2, 3, 5, stack, truncate=0.0)  # so that every row is a step
    replay = Replay(config("replay.capacity=300"), 0, None)
    for _ in range(40):
        replay.add(*world.fragments(np.int64))
    kept = 300 // 6 - 1 - max(0, stack - 1)  # a row for the newest observation, and the frames before the oldest
    newest = {step.seen[-1] for steps in world.history.values() for step in steps[-kept:]}
    assert everything(replay) == newest
    assert replay.count == len(newest)


def test_frames_are_stored_once_as_they_came() -> None:
    world = World(2, 3, 5, STACK)
    replay = Replay(config(), 0, None)
    replay.add(*world.fragments(np.uint8))
    assert replay.arrays["obs"].dtype == np.uint8
    assert replay.arrays["obs"].shape == (6000, 1)


def test_a_fragment_that_comes_again_is_stored_once() -> None:
    world = World(2, 3, 5)
    once, twice = Replay(config(), 0, None), Replay(config(), 0, None)
    for _ in range(5):
        fragments = world.fragments()
        once.add(*fragments)
        twice.add(*fragments)
        twice.add(fragments[1], fragments[0])
    assert same_state(once, twice)
    assert once.inserted == 5 * 2 * 3 * 5


def same_state(left: Replay, right: Replay) -> bool:
    a, b = left.state(), right.state()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("stack", [0, STACK])
def test_a_chain_that_does_not_go_on_is_cut(stack: int) -> None:
    """An env that could not be rebuilt started afresh between two fragments: nothing may lead over that border."""
    world = World(1, 2, 5, stack, terminate=0.0, truncate=0.0)
    replay = Replay(config("algorithm.n_step=3", shards=1, copies=2), 0, None)
    replay.add(*world.fragments(np.int64))
    ends = {tuple(world.now[0, n]) for n in range(2)}
    world.now = {key: world.first() for key in world.now}
    for steps in world.history.values():
        steps[-1].truncated = True
    replay.add(*world.fragments(np.int64))
    known = world.transitions(3)
    assert everything(replay) == set(known)
    found = set()
    for number in range(40):
        replay.settled = 0
        for seen, _, reward, discount, next_seen in flat(replay_all(replay, number)):
            step, total, gamma, bootstrap, _ = known[int(seen[-1])]
            assert seen.tolist() == step.seen
            assert (reward, discount) == (pytest.approx(total, rel=1e-5), pytest.approx(gamma))
            assert next_seen.tolist() == bootstrap
            found.add(tuple(next_seen.tolist()))
    assert ends <= found


def replay_all(replay: Replay, number: int) -> Batch:
    """A batch, whatever `start` says."""
    replay.settings = replay.settings.model_copy(update={"start": 0})
    return replay.sample(number, 0)


@pytest.mark.parametrize("n_step", [1, 3, 7])
def test_first_priorities_are_the_acting_sides_own_errors(n_step: int) -> None:
    """Where a fragment ends at the state to bootstrap from, its value is not known yet: that of the step before is."""
    world = World(2, 3, 5)
    replay = Replay(config("replay.prioritized=true", f"algorithm.n_step={n_step}", "replay.alpha=0.5"), 0, None)
    for _ in range(6):
        replay.add(*world.fragments(np.int64))
    found = {int(replay.arrays["obs"][leaf][-1]): float(p) for leaf, p in enumerate(leaves(replay)) if p > 0}
    seen = 0
    for key, steps in world.history.items():
        for t, step in enumerate(steps):
            if (whole := world.walk(key, t, n_step)) is None:
                continue
            total, discount, _, value = whole
            on_the_border = (t + n_step) % 5 == 0
            if on_the_border and not any(s.terminated or s.truncated for s in steps[t : t + n_step]):
                value = steps[t + n_step - 1].value
            error = abs(total + discount * value - step.q)
            assert found.pop(step.seen[-1]) == pytest.approx(error**0.5, rel=1e-4, abs=2e-3)
            seen += 1
    assert not found
    assert seen > 100


def leaves(replay: Replay) -> Array:
    return replay.tree.get(np.arange(replay.columns * replay.rows))


class Renamed(Settings):
    """An algorithm whose policy calls its values otherwise."""

    @property
    def replayed(self) -> Replayed:
        return replace(super().replayed, values=("of_action", "of_state"))


class Silent(Settings):
    """An algorithm whose policy tells no values."""

    @property
    def replayed(self) -> Replayed:
        return replace(super().replayed, values=None)


def test_which_extras_first_priorities_are_made_of_is_the_algorithms_word() -> None:
    settings = config("replay.prioritized=true")
    renamed = settings.model_copy(update={"algorithm": Renamed(**settings.algorithm.model_dump())})
    one, other = Replay(settings, 0, None), Replay(renamed, 0, None)
    for fragment in (fragment for world in [World(2, 3, 5)] for _ in range(4) for fragment in world.fragments()):
        one.add(fragment)
        other.add(replace(fragment, extras={"of_action": fragment.extras["q"], "of_state": fragment.extras["value"]}))
    assert len(set(leaves(one).tolist())) > 20
    assert same_state(one, other)


def test_without_values_there_are_no_first_priorities_of_acting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dqn, "Settings", Silent)
    assert config().replay is not None
    with pytest.raises(
        UserError, match=r"tells no values of what it does\. Set replay\.first_priority=max\."
    ) as caught:
        config("replay.prioritized=true")
    offered = str(caught.value).rpartition("Set ")[2].rstrip(".")
    replay, world = Replay(config("replay.prioritized=true", offered), 0, None), World(2, 3, 5)
    replay.add(*(replace(fragment, extras={}) for fragment in world.fragments()))
    assert set(leaves(replay).tolist()) == {0.0, 1.0}


def test_new_steps_get_the_largest_priority_so_far() -> None:
    world = World(2, 3, 5)
    replay = Replay(config("replay.prioritized=true", "replay.first_priority=max", "replay.alpha=1"), 0, None)
    for _ in range(4):
        replay.add(*world.fragments())
    batch = replay.sample(3, 0)
    replay.update_priorities(Priorities(batch.key[0], np.full(16, 5.0, np.float32)))
    replay.update_priorities(Priorities(batch.key[0], np.full(16, 2.0, np.float32)))
    replay.add(*world.fragments())
    assert sorted({round(float(p), 3) for p in leaves(replay)}) == [0.0, 1.0, 2.0, 5.0]


def test_an_overwritten_step_gets_no_old_priority() -> None:
    world = World(2, 3, 5)
    replay = Replay(config("replay.prioritized=true", "replay.capacity=300"), 0, None)
    for _ in range(5):
        replay.add(*world.fragments())
    batch = replay.sample(4, 0)
    key = np.unique(batch.key)
    told = replay.update_priorities(Priorities(key, np.full(len(key), 7.0, np.float32)))
    assert told == len(key)
    for _ in range(5, 20):
        replay.add(*world.fragments())
    before = replay.tree.sums.copy()
    assert replay.update_priorities(Priorities(key, np.full(len(key), 1e3, np.float32))) == 0
    assert (replay.tree.sums == before).all()


def test_drawing_follows_the_priorities_and_the_weights_undo_it() -> None:
    world = World(2, 3, 5)
    options = ["replay.prioritized=true", "replay.alpha=1", "replay.beta=1", "replay.samples_per_insert=800"]
    replay = Replay(config(*options), 0, None)
    for _ in range(5):
        replay.add(*world.fragments())
    batch = replay.sample(4, 0)
    keys, counts = np.unique(batch.key, return_counts=True)
    rows, columns = np.divmod(keys, replay.columns)
    p = replay.tree.get(replay._slot(columns, rows)) / replay.tree.total
    draws = batch.key.size
    assert np.abs(counts / draws - p).max() < 0.003
    assert batch.weight == pytest.approx(1 / (replay.count * p[np.searchsorted(keys, batch.key)]), rel=1e-5)
    # In the mean over draws a weighted quantity is its plain mean over all steps.
    reward = dict(zip(batch.key.ravel().tolist(), batch.reward.ravel().tolist(), strict=True))
    likely = p > 2e-4
    assert (batch.weight * batch.reward).mean() == pytest.approx(
        sum(reward[k] for k in keys.tolist()) / replay.count, abs=0.06
    )
    assert likely.sum() > 100


def test_beta_rises_to_one_at_the_end_of_the_run() -> None:
    def weights(env_steps: int) -> Array:
        world, replay = World(2, 3, 5), Replay(config("replay.prioritized=true", "stop.env_steps=1000"), 0, None)
        for _ in range(5):
            replay.add(*world.fragments())
        return np.log(replay.sample(4, env_steps).weight)

    start, middle, end = weights(0), weights(500), weights(1000)
    assert start == pytest.approx(0.4 * end, rel=1e-3, abs=1e-5)
    assert middle == pytest.approx(0.7 * end, rel=1e-3, abs=1e-5)
    assert np.abs(end).max() > 1


@pytest.mark.parametrize("ratio", [0.4, 1.0, 8.0, 31.7])
@pytest.mark.parametrize("shards", [1, 2])
def test_samples_per_insert_holds_over_the_run(ratio: float, shards: int) -> None:
    world = World(2, 3, 5)
    settings = config(f"replay.samples_per_insert={ratio}", f"replay.shards={shards}")
    replays = [Replay(settings, number, None) for number in range(shards)]
    drawn, updates = 0, []
    for k in range(60):
        fragments = world.fragments()
        for number, one in enumerate(replays):
            one.add(*fragments[number::shards])
        batches = [one.sample(k, 0) for one in replays]
        assert len({len(batch.key) for batch in batches}) == 1
        drawn += sum(batch.key.size for batch in batches)
        updates.append(len(batches[0].key))
    assert updates[:3] == [0, 0, 0]  # start: 100 steps
    assert abs(drawn - ratio * (60 * 30 - 100)) < 16
    assert max(updates[4:]) - min(updates[4:]) <= 1


def test_draws_depend_on_seed_iteration_and_number_alone() -> None:
    def keys(seed: int, iteration: int, number: int = 0) -> bytes:
        world, replay = World(2, 3, 5), Replay(config(f"seed={seed}"), number, None)
        for _ in range(5):
            replay.add(*world.fragments())
        return replay.sample(iteration, 0).key.tobytes()

    assert keys(1, 4) == keys(1, 4)
    assert len({keys(1, 4), keys(2, 4), keys(1, 5), keys(1, 4, 1)}) == 4


@pytest.mark.parametrize("stack", [0, STACK])
@pytest.mark.parametrize("capacity", [6000, 300])
def test_the_state_is_all(capacity: int, stack: int) -> None:
    world = World(2, 3, 5, stack)
    settings = config("replay.prioritized=true", f"replay.capacity={capacity}", "algorithm.n_step=3")
    one = Replay(settings, 0, None)
    for k in range(25):
        one.add(*world.fragments())
        batch = one.sample(k, 0)
        one.update_priorities(Priorities(batch.key.ravel(), batch.reward.ravel()))
    other = Replay(settings, 0, one.state())
    for k in range(25, 50):
        fragments = world.fragments()
        batches = []
        for replay in (one, other):
            replay.add(*fragments)
            batch = replay.sample(k, 0)
            replay.update_priorities(Priorities(batch.key.ravel(), batch.reward.ravel()))
            batches.append(batch)
        assert all(np.array_equal(a, b) for a, b in zip(*(vars(b).values() for b in batches), strict=True))
    assert same_state(one, other)


def test_the_state_is_as_small_as_what_was_written() -> None:
    world, replay = World(2, 3, 5), Replay(config(), 0, None)
    replay.add(*world.fragments())
    assert sum(array.nbytes for array in replay.state().values()) < 6000
    assert sum(array.nbytes for array in replay.arrays.values()) > 60_000


def test_it_goes_on_without_the_content_of_an_earlier_run() -> None:
    """A checkpoint without the replay: the first fragment has a number, but nothing came before it."""
    world = World(2, 3, 5, STACK)
    for _ in range(7):
        world.fragments(np.int64)
    for steps in world.history.values():
        steps.clear()
    replay = Replay(config("algorithm.n_step=3"), 0, None)
    for _ in range(6):
        replay.add(*world.fragments(np.int64))
    known = world.transitions(3)
    assert everything(replay) == set(known)
    for seen, *_ in flat(replay_all(replay, 0)):
        assert seen.tolist() == known[int(seen[-1])][0].seen


def test_a_buffer_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module.psutil, "virtual_memory", lambda: type("M", (), {"available": 100_000})())
    replay = Replay(config(), 0, None)
    with pytest.raises(
        UserError, match=r"replay.capacity=6,000 steps take: .* GiB, .* Set replay.capacity to at most \d"
    ):
        replay.add(*World(2, 3, 5).fragments())


@pytest.mark.parametrize("young", [False, True])
def test_fragments_of_frames_are_stacked_as_the_policy_saw_them(young: bool) -> None:
    world = World(1, 3, 9, STACK, terminate=0.2, truncate=0.2)
    if not young:
        world.fragments(np.int64)
        for steps in world.history.values():
            steps.clear()
    fragment = world.fragments(np.int64)[0]
    whole = unstacked(fragment)
    assert whole.stack == 0
    assert whole.obs.shape == (10, 3, STACK, 1)
    ended = iter(whole.final_obs[..., 0].tolist())
    for t in range(9):
        for n in range(3):
            step = world.history[0, n][t]
            assert whole.obs[t, n, :, 0].tolist() == step.seen
            if step.terminated or step.truncated:
                assert next(ended) == step.next_seen
    assert next(ended, None) is None
    assert whole.obs[9, :, :, 0].tolist() == [world.now[0, n] for n in range(3)]
    assert unstacked(replace(whole)) == whole or unstacked(whole) is whole
