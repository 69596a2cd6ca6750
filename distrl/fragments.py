"""What is done to fragments before something is learnt from them.

Observations that are stacks of the newest frames are taken apart where they are made, and put together here
(`unstacked`). An env says with `metadata["frame_stack"] = C` that its observations [C, ...] are the newest C frames,
newest last, and that an episode begins with its first frame C times; it is refused where it does not. Its fragments
then hold single frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from distrl.errors import UserError
from distrl.types import Array, Fragment


def check_first_stacks(env_id: str, obs: Array, stack: int) -> None:
    """Raise `UserError` where first observations of episodes [N, ...] are not stacks as said above."""
    if obs.shape[1:2] != (stack,):
        found = f"observations have the shape {list(obs.shape[1:])}, and [{stack}, ...] is due"
    elif (obs != obs[:, -1:]).any():
        found = "an episode begins with frames that differ; the first frame so many times is due"
    else:
        return
    raise UserError(
        f"{env_id} says metadata['frame_stack'] = {stack}, but {found}: learners put stacks together from single frames. "
        "Fill the stack at reset as gymnasium.wrappers.FrameStackObservation(env, stack_size, padding_type='reset') does, "
        "or take 'frame_stack' out of the metadata: whole stacks then travel."
    )


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


def true_successors(following: Array, final: Array, fragments: Sequence[Fragment]) -> Array:
    """What every step led to [T, S * N, ...]: of where an episode ended its last observation, not the next episode's first.

    Args:
        following: [T, S * N, ...] something of the observations `obs[1:]` of the fragments, side by side
        final: [E, ...] the same of their `final_obs`, one fragment's after the other's
    """
    successor = following.copy()
    column = row = 0
    for fragment in fragments:
        copies, ends = fragment.ended.shape[1], len(fragment.final_obs)
        successor[:, column : column + copies][fragment.ended] = final[row : row + ends]
        column, row = column + copies, row + ends
    return successor


def after_waiting(active: Array, reward: Array, following: Array, ended: Array) -> tuple[Array, Array, Array, Array]:
    """What came of every step until its agent acts again, where agents wait for their turn or leave.

    Rewards that come while it waits are those of its last step, and so is an end.

    Args:
        active: [T + 1, C] bool, as of a `Fragment`
        reward, following, ended: [T, C]; `following` is something of what each step led to, as `true_successors` gives it
    Returns:
        reward, following and ended [T, C] of steps that last so long, and [T, C] bool: whether somebody took that step, and all
        that came of it is known. Of the last step before the fragment's end it is not where the agent waits on.
    """
    reward, following, ended, known = reward.copy(), following.copy(), ended.copy(), np.zeros_like(ended)
    waits = ~ended & ~active[1:]
    known[-1] = ~waits[-1]
    for t in reversed(range(len(reward) - 1)):
        reward[t] += np.where(waits[t], reward[t + 1], 0.0)
        following[t] = np.where(waits[t], following[t + 1], following[t])
        ended[t] |= waits[t] & ended[t + 1]
        known[t] = ~waits[t] | known[t + 1]
    return reward, following, ended, known & active[:-1]


def as_one(fragment: Fragment) -> Fragment:
    """What all agents of an env copy did as one step [T, N / A]: observations and actions beside each other [T, N / A, A, ...], and the
    sums of rewards and of what the policy said of each.

    Raises:
        UserError: not all agents act at every step, and end together
    """
    agents = fragment.agents

    def beside(array: Array) -> Array:
        return array.reshape(len(array), -1, agents, *array.shape[2:])

    terminated, truncated = beside(fragment.terminated), beside(fragment.truncated)
    if not fragment.acted.all() or any((end != end[:, :, :1]).any() for end in (terminated, truncated)):
        raise UserError(
            "algorithm.mixer adds up what all agents do in a step, but here some wait or leave before others. Set algorithm.mixer=null."
        )
    return replace(
        fragment,
        obs=beside(fragment.obs),
        action=beside(fragment.action),
        reward=beside(fragment.reward).sum(axis=2),
        terminated=terminated[:, :, 0],
        truncated=truncated[:, :, 0],
        final_obs=fragment.final_obs.reshape(-1, agents, *fragment.final_obs.shape[1:]),
        extras={name: beside(array).sum(axis=2) for name, array in fragment.extras.items()},
        agents=1,
        active=None,
    )
