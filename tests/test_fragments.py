"""What a step led to, where episodes end and others begin."""

from __future__ import annotations

import numpy as np
import pytest

from distrl.fragments import true_successors
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
