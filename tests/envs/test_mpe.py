"""`distrl.envs.spread` and `distrl.envs.reference` against mpe2's own, in every bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpe2 import simple_reference_v3, simple_spread_v3
from toys import same

from distrl.envs.journal import Underway
from distrl.envs.make import describe_env
from distrl.envs.mpe import ParticleShard
from distrl.envs.multi import grouped
from distrl.envs.reference import ReferenceWorld
from distrl.envs.shard import make_shard
from distrl.envs.spread import SpreadWorld
from distrl.envs.team import TeamShard
from distrl.settings import EnvSettings
from distrl.tools.random_actions import RandomActions
from distrl.types import Array, Snapshot

COPIES = 4
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one agent": {"N": 1, "max_cycles": 10},
    "two": {"N": 2, "local_ratio": 0.3},
    "many, continuous": {"N": 6, "local_ratio": 0.7, "max_cycles": 40, "continuous_actions": True},
    "ends on success": {"terminate_on_success": True, "local_ratio": 0.0},
}


def assert_same_bits(ours: Array, theirs: Any) -> None:
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == theirs.tobytes(), f"{ours} against {theirs}"


def assert_same_world(world: SpreadWorld | ReferenceWorld, copy: int, env: Any) -> None:
    inner, names = env.unwrapped.world, env.possible_agents
    assert_same_bits(world.position[:, :, copy].T, [e.state.p_pos for e in inner.entities])
    assert_same_bits(world.velocity[:, :, copy].T, [agent.state.p_vel for agent in inner.agents])
    assert_same_bits(world.obs[copy], [env.aec_env.observe(name) for name in names])
    assert_same_bits(world.state()[copy], env.state())
    for i, name in enumerate(names):
        assert env.observation_space(name).shape == world.obs[copy, i].shape


def begin(world: SpreadWorld | ReferenceWorld, envs: list[Any], fresh: Array, rng: np.random.Generator) -> None:
    """Begin episodes in some copies, there and here; none: do nothing."""
    if not len(fresh):
        return
    seeds = rng.integers(0, 2**31, len(fresh)).tolist()
    world.reset(fresh, seeds)
    for copy, seed in zip(fresh, seeds, strict=True):
        envs[copy].reset(seed=seed)
        assert_same_world(world, copy, envs[copy])


def stepped(world: SpreadWorld | ReferenceWorld, envs: list[Any], action: Array) -> Array:
    """Step all copies, there and here: all is the same. Returns in which the episode ended."""
    reward, terminated, truncated = world.step(action)
    for copy, env in enumerate(envs):
        names = env.possible_agents
        _, earned, term, trunc, _ = env.step({name: action[copy, i] for i, name in enumerate(names)})
        assert_same_bits(reward[copy], [earned[name] for name in names])
        assert {bool(terminated[copy])} == set(term.values())
        assert {bool(truncated[copy])} == set(trunc.values())
        assert_same_world(world, copy, env)
    return np.flatnonzero(terminated | truncated)


@pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS.keys())
def test_thousands_of_random_steps_are_those_of_mpe2(kwargs: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    world = SpreadWorld(COPIES, **kwargs)
    envs = [simple_spread_v3.parallel_env(**kwargs) for _ in range(COPIES)]
    names = envs[0].possible_agents
    fresh, overlapped, ended = np.arange(COPIES), 0, 0
    for step in range(500):
        begin(world, envs, fresh, rng)
        shape = (COPIES, len(names))
        if kwargs.get("continuous_actions"):
            action = rng.random((*shape, 5), np.float32)
            if step < 5:
                action = 3 * action - 1  # beyond their bounds
        else:
            action = rng.integers(0, 5, shape)
        fresh = stepped(world, envs, action)
        for inner in (env.unwrapped for env in envs):
            overlapped += sum(inner.scenario.reward(agent, inner.world) < 0 for agent in inner.world.agents)
        ended += len(fresh)
    assert ended >= 4 * COPIES
    assert overlapped > 50 or len(names) == 1  # agents that met, so that forces between them were large


@pytest.mark.parametrize("kwargs", [{}, {"local_ratio": 0.3, "max_cycles": 10}])
def test_thousands_of_random_steps_of_two_who_speak_are_those_of_mpe2(kwargs: dict[str, Any]) -> None:
    rng = np.random.default_rng(7)
    world = ReferenceWorld(COPIES, **kwargs)
    envs = [simple_reference_v3.parallel_env(**kwargs) for _ in range(COPIES)]
    fresh, goals = np.arange(COPIES), set[tuple[int, ...]]()
    for _ in range(500):
        begin(world, envs, fresh, rng)
        goals |= {tuple(goal) for goal in world.goal.T.tolist()}
        fresh = stepped(world, envs, rng.integers(0, 50, (COPIES, 2)))
    assert len(goals) == 9  # all there are


def test_an_episode_ends_when_every_landmark_is_covered_and_not_before() -> None:
    kwargs = {"terminate_on_success": True, "max_cycles": 3}
    world, env = SpreadWorld(1, **kwargs), simple_spread_v3.parallel_env(**kwargs)
    for covered, cycle, ends in [(2, 1, (False, False)), (3, 1, (True, False)), (3, 3, (False, True))]:
        world.reset(np.array([0]), [5])
        env.reset(seed=5)
        inner = env.unwrapped.world
        for agent, landmark in list(zip(inner.agents, inner.landmarks, strict=True))[:covered]:
            landmark.state.p_pos = agent.state.p_pos + 0.05
        env.unwrapped.steps = cycle - 1
        position = np.array([e.state.p_pos for e in inner.entities]).T[..., None]
        world.restore(world.arrays() | {"position": position, "elapsed": np.array([cycle - 1])})
        reward, terminated, truncated = world.step(np.zeros((1, 3), int))
        _, earned, term, trunc, _ = env.step(dict.fromkeys(env.agents, 0))
        assert (term["agent_0"], trunc["agent_0"]) == ends
        assert (terminated[0], truncated[0]) == ends
        assert_same_bits(reward[0], list(earned.values()))


def test_a_world_goes_on_from_its_arrays_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    action = rng.integers(0, 5, (12, 8, 4))
    world, other = SpreadWorld(8, N=4), SpreadWorld(8, N=4)
    world.reset(np.arange(8), list(range(8)))
    for row in action[:6]:
        world.step(row)
    kept = world.arrays()
    other.restore(kept)
    assert_same_bits(other.obs, world.obs)
    for row in action[6:]:
        for ours, theirs in zip(other.step(row), world.step(row), strict=True):
            assert_same_bits(ours, theirs)
    assert_same_bits(other.obs, world.obs)
    assert kept["elapsed"].tolist() == [6] * 8  # it is a copy


def test_what_one_copy_does_depends_on_no_other() -> None:
    """Also in the last bit: 1 copy, and 33 whose arrays fill other registers."""
    rng = np.random.default_rng(4)
    many, one = SpreadWorld(33), SpreadWorld(1)
    many.reset(np.arange(33), list(range(33)))
    one.reset(np.array([0]), [32])
    for _ in range(25):
        action = rng.integers(0, 5, (33, 3))
        for ours, theirs in zip(many.step(action), one.step(action[32:]), strict=True):
            assert_same_bits(ours[32:], theirs)
        assert_same_bits(many.obs[32:], one.obs)


# --- as a shard -------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> EnvSettings:
    return EnvSettings(**{"id": "mpe2/simple_spread_v3", **changes})


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kwargs": {"N": 2, "continuous_actions": True, "dynamic_rescaling": False}, "max_episode_steps": 9},
        {"kwargs": {"N": 4, "terminate_on_success": True, "max_cycles": 12}},
        {"id": "mpe2/simple_reference_v3"},
    ],
)
@pytest.mark.parametrize("policies", ["shared", {"a": ["agent_0"], "b": ["agent_[1-9]"]}], ids=["shared", "groups"])
def test_a_shard_is_that_of_mpe2_stepped_by_itself(changes: dict[str, Any], central: bool, policies: Any) -> None:
    env = settings(**changes)
    info = grouped(replace(describe_env(env), central=central), policies)
    ours = make_shard(env, 3, 1, 3, info.obs_layout)
    theirs = make_shard(env.model_copy(update={"vectorize": "single"}), 3, 1, 3, info.obs_layout)
    assert isinstance(ours, ParticleShard) and isinstance(theirs, TeamShard)
    random, ended = RandomActions(info, 0, 3), 0
    assert same(ours.obs, theirs.obs)
    for _ in range(80):
        action = random.batch(ours.obs)
        one, other = ours.step(action), theirs.step(action)
        for name in ("obs", "reward", "terminated", "truncated"):
            assert same(getattr(one, name), getattr(other, name)), name
        assert same(np.asarray(one.final_obs), np.array(other.final_obs, ours.obs.dtype).reshape(-1, ours.obs.shape[1]))
        ended += len(one.final_obs)
    assert ended >= 3 * 3 * len(info.agents)
    assert ours.active is None and theirs.active.all()


@pytest.mark.parametrize(("changes", "agents", "ways"), [({}, 3, 5), ({"id": "mpe2/simple_reference_v3"}, 2, 50)])
def test_a_shard_goes_on_from_its_snapshot(changes: dict[str, Any], agents: int, ways: int) -> None:
    first = make_shard(settings(**changes), 3, 0, 4)
    other = make_shard(settings(**changes), 3, 0, 4)
    assert not first.replays
    underway, rng = Underway(4, agents), np.random.default_rng(0)
    actions = rng.integers(0, ways, (80, 4 * agents))
    for action in actions[:30]:
        underway.count(first.step(action))
    snapshot = Snapshot(1, underway.returns, underway.lengths, first.arrays())
    for action in actions[30:40]:
        first.step(action)
    assert other.restore(snapshot).all()
    for action in actions[30:40]:
        step = other.step(action)
    assert same(other.obs, first.obs)
    for action in actions[40:]:  # new episodes have the seeds that they would have had
        step, wanted = other.step(action), first.step(action)
        assert same(step.reward, wanted.reward) and same(step.obs, wanted.obs)


@pytest.mark.parametrize(
    "changes",
    [
        {"vectorize": "single"},
        {"kwargs": {"num_agent_neighbors": 1}},
        {"id": "mpe2/simple_v3"},
        {"id": "mpe2/simple_reference_v3", "kwargs": {"continuous_actions": True}},
    ],
)
def test_what_arrays_do_not_know_is_left_to_mpe2(changes: dict[str, Any]) -> None:
    assert isinstance(make_shard(settings(**changes), 0, 0, 1), TeamShard)
