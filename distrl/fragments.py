"""Observations that are stacks of the newest frames: taken apart where they are made, put together where they are used.

An env says with `metadata["frame_stack"] = C` that its observations [C, ...] are the newest C frames, newest last, and
that an episode begins with its first frame C times. Its fragments then hold single frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distrl.types import Array, Fragment


def ages(first: Array, ended: Array, stack: int) -> Array:
    """[T + 1, N] uint8: how many frames before that of step t are of the same stack and episode, at most C - 1.

    Args:
        first: [N], of step 0
        ended: [T, N] bool
    """
    age = np.empty((len(ended) + 1, *ended.shape[1:]), np.uint8)
    age[0] = first
    for t in range(len(ended)):
        age[t + 1] = np.where(ended[t], 0, np.minimum(age[t] + 1, stack - 1))
    return age


def unstacked(fragment: Fragment) -> Fragment:
    """The fragment with observations as the policy saw them: obs [T + 1, N, C, ...], final_obs [E, C, ...]."""
    if not fragment.stack:
        return fragment
    stack, ended = fragment.stack, fragment.ended
    before_all = np.full(ended.shape[1], stack - 1)  # the frames before the first one are shipped with it
    age: Array = ages(before_all, ended, stack).astype(np.int64)
    back = np.arange(stack - 1, -1, -1)  # the oldest first
    t, n = np.ix_(np.arange(age.shape[0]), np.arange(age.shape[1]))
    obs = fragment.obs[(t + stack - 1)[..., None] - np.minimum(age[..., None], back), n[..., None]]
    last_t, last_n = np.nonzero(ended)
    before = fragment.obs[
        (last_t + stack - 1)[:, None] - np.minimum(age[last_t, last_n][:, None], back[1:]), last_n[:, None]
    ]
    final_obs = np.concatenate([before, fragment.final_obs[:, None]], axis=1)
    return replace(fragment, obs=obs, final_obs=final_obs, stack=0)
