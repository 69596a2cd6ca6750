"""What a step led to, where episodes end and others begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distrl.errors import UserError
from distrl.fragments import after_waiting, as_one, true_successors
from distrl.learning.losses import gae, vtrace
from distrl.types import Array, Fragment


def numbered(rng: np.random.Generator, chance: float, first: int, copies: int, steps: int = 6) -> Fragment:
    """Every observation has a number of its own, [1]; those of ends are negative."""
    obs = first + np.arange((steps + 1) * copies, dtype=np.float64).reshape(steps + 1, copies, 1)
    ended = rng.random((steps, copies)) < chance
    terminated = ended & (rng.random((steps, copies)) < 0.5)
    final = -first - 1.0 - np.arange(ended.sum(), dtype=np.float64)[:, None]
    nothing = np.zeros((steps, copies))
    return Fragment(0, 0, 0, obs, nothing, nothing, terminated, ended & ~terminated, final, {})


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_step_leads_to_the_last_observation_of_its_own_episode(shards: int, chance: float) -> None:
    rng = np.random.default_rng(shards)
    fragments = [numbered(rng, chance, 1000 * (i + 1), copies=2 + i) for i in range(shards)]
    following = np.concatenate([f.obs[1:] for f in fragments], axis=1)
    kept = following.copy()
    found = true_successors(following, np.concatenate([f.final_obs for f in fragments]), fragments)
    columns: list[Array] = []
    for fragment in fragments:
        ends = iter(fragment.final_obs[:, 0].tolist())
        wanted = fragment.obs[1:, :, 0].copy()
        for t, n in np.ndindex(fragment.ended.shape):  # in the order in which the episodes ended
            if fragment.ended[t, n]:
                wanted[t, n] = next(ends)
        assert next(ends, None) is None
        columns.append(wanted)
    assert (found[..., 0] == np.concatenate(columns, axis=1)).all()
    assert (following == kept).all()


def random_turns(rng: np.random.Generator, steps: int = 40, columns: int = 6) -> tuple[Array, ...]:
    """active [T + 1, C], reward, following and ended [T, C] of agents that wait now and then."""
    active = rng.random((steps + 1, columns)) < rng.choice([0.2, 0.5, 0.9])
    ended = rng.random((steps, columns)) < 0.15
    return active, rng.standard_normal(ended.shape), rng.standard_normal(ended.shape), ended


def own_steps(active: Array, reward: Array, following: Array, ended: Array) -> list[tuple[int, float, float, bool]]:
    """Of one column, by walking on from each step until its agent acts again: when it was taken, and what came of it."""
    found = []
    for start in np.flatnonzero(active[:-1]).tolist():
        total = 0.0
        for t in range(start, len(reward)):
            total += float(reward[t])
            if ended[t] or active[t + 1]:
                found.append((start, total, float(following[t]), bool(ended[t])))
                break
    return found


def test_what_comes_while_an_agent_waits_is_of_its_last_step() -> None:
    rng, waited, left_out = np.random.default_rng(0), 0, 0
    for _ in range(20):
        active, *rest = random_turns(rng)
        reward, following, ended, learnt = after_waiting(active, *rest)
        for c in range(active.shape[1]):
            wanted = own_steps(active[:, c], *(x[:, c] for x in rest))
            assert np.flatnonzero(learnt[:, c]).tolist() == [t for t, *_ in wanted]
            for t, total, behind, over in wanted:
                assert reward[t, c] == pytest.approx(total, abs=1e-12)
                assert (following[t, c], ended[t, c]) == (behind, over)
                waited += total != rest[0][t, c]
            left_out += int(active[:-1, c].sum()) - len(wanted)
    assert waited > 100 and left_out > 10


def test_advantages_of_turns_are_those_of_the_turns_alone() -> None:
    rng = np.random.default_rng(1)
    active, *rest = random_turns(rng)
    value = rng.standard_normal(rest[0].shape)
    reward, following, ended, learnt = after_waiting(active, *rest)
    found = vtrace(np.zeros_like(value), reward, value, following, ended, 0.9, 0.8, learnt)
    for c in range(active.shape[1]):
        turns = own_steps(active[:, c], *(x[:, c] for x in rest))
        rows = [t for t, *_ in turns]
        alone = gae(
            np.array([total for _, total, _, _ in turns]),
            value[rows, c],
            np.array([behind for _, _, behind, _ in turns]),
            np.array([over for *_, over in turns]),
            0.9,
            0.8,
        )
        np.testing.assert_allclose(found[rows, c], alone, rtol=1e-5, atol=1e-6)


def test_what_a_team_does_is_one_step_with_all_of_it() -> None:
    steps, copies, agents, rng = 5, 2, 3, np.random.default_rng(0)
    ended = np.repeat(np.array([[0, 0], [1, 0], [0, 0], [1, 1], [0, 0]], bool), agents, axis=1)
    terminated = ended & (np.arange(steps)[:, None] == 3)
    obs, final = rng.normal(size=(steps + 1, copies * agents, 4)), rng.normal(size=(ended.sum(), 4))
    action, reward, q = rng.integers(0, 5, (steps, copies * agents)), *rng.normal(size=(2, steps, copies * agents))
    active = np.ones((steps + 1, copies * agents), bool)
    whole = Fragment(3, 7, 6, obs, action, reward, terminated, ended & ~terminated, final, {"q": q}, 0, agents, active)
    one = as_one(whole)
    assert (one.shard, one.iteration, one.version, one.agents, one.active) == (3, 7, 6, 1, None)
    for t, n in np.ndindex(steps, copies):
        own = [n * agents + a for a in range(agents)]
        assert one.obs[t, n].tolist() == [obs[t, c].tolist() for c in own]
        assert one.action[t, n].tolist() == [action[t, c] for c in own]
        assert one.reward[t, n] == pytest.approx(sum(reward[t, c] for c in own))
        assert one.extras["q"][t, n] == pytest.approx(sum(q[t, c] for c in own))
        assert one.terminated[t, n] == terminated[t, own[0]] and one.truncated[t, n] == (ended & ~terminated)[t, own[0]]
    assert one.final_obs.tolist() == [final[e * agents : (e + 1) * agents].tolist() for e in range(3)]
    for wrong in ("terminated", "active"):  # one of the agents alone
        array = getattr(whole, wrong).copy()
        array[2, 1] ^= True
        with pytest.raises(UserError, match=r"algorithm\.mixer=null"):
            as_one(replace(whole, **{wrong: array}))
