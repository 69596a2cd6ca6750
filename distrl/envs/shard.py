"""A shard: a fixed group of env copies that are stepped together, and can be rebuilt anywhere.

Episodes start again by themselves, in the same step: `obs` then already shows the new episode, and the true last
observation of the old one is in `final_obs`. No step is ever a reset.

`SingleShard` steps ordinary environments one by one. Every episode starts with `reset(seed=...)`, the seed being a
function of run seed, env copy and episode number; so that seed and the actions since (the journal, see
`distrl.envs.journal`) are the whole state of a deterministic environment, and rebuilding is replaying.

`TeamShard` does so with environments of several agents, each of which has a column of its own.

`NativeShard` steps an environment's own vector form, whose state lies in arrays; they are the snapshot.
`distrl.envs.table.TableShard` does the same for environments whose transition table is known,
`distrl.envs.mpe.ParticleShard` for two worlds of mpe2, `distrl.envs.boards` for tic-tac-toe and connect four.
"""

from __future__ import annotations

import math
from typing import Protocol

from distrl.envs import table
from distrl.envs.connect_four import ConnectFourShard
from distrl.envs.mpe import ParticleShard
from distrl.envs.multi import is_team
from distrl.envs.native import NativeShard
from distrl.envs.single import SingleShard
from distrl.envs.team import TeamShard
from distrl.envs.tictactoe import TicTacToeShard
from distrl.errors import UserError
from distrl.layouts import Layout
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot
from distrl.types import Step as Step

IN_ARRAYS = (
    ParticleShard,
    ConnectFourShard,
    TicTacToeShard,
)  # envs of several agents that are written anew, all copies at once


class Shard(Protocol):
    """N env copies; `obs` is what the policy acts on next. Of several agents each has a column: then N are all of these."""

    obs: Array
    frame_stack: int  # > 0: observations are stacks of so many frames; see distrl.fragments
    replays: (
        bool  # rebuilding it replays the actions of its episodes under way; otherwise `arrays` is all that it takes
    )

    @property
    def active(self) -> Array | None:
        """[N] bool: in which columns somebody acts next; None: in all. Not all do where agents leave, or wait."""

    def step(self, action: Array) -> Step: ...

    def arrays(self) -> Arrays:
        """What a `Snapshot` holds of it, apart from the actions; as small after long episodes as after short ones."""

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        """Take up a whole snapshot. Returns [N] bool: rebuilt exactly; elsewhere a fresh episode was started.

        Raises:
            UserError: replaying takes longer than `timeout_s`; the message names `cluster.rebuild_timeout_s`
        """

    def close(self) -> None: ...


def make_shard(
    settings: EnvSettings,
    seed: int,
    shard: int,
    copies: int,
    layout: Layout | None = None,
) -> Shard:
    """Shard number `shard`: as a table MDP or in its native vector form where there is one and `env.vectorize` allows it.

    Args:
        layout: how the policy wants its observations; None: as the env's spaces say
    """
    for in_arrays in IN_ARRAYS:
        if in_arrays.fits(settings, layout):
            return in_arrays(settings, seed, shard, copies, layout)
    if is_team(settings.id):
        return TeamShard(settings, seed, shard, copies, layout)
    if layout is not None and layout.in_info:  # which only envs stepped one by one have
        return SingleShard(settings, seed, shard, copies, layout)
    if settings.vectorize == "table" or (settings.vectorize == "auto" and not settings.report and table.fits(settings)):
        return table.TableShard(settings, seed, shard, copies)
    native = NativeShard.fits(settings, copies)
    if settings.vectorize == "native" and not native:
        raise UserError(
            f"env.vectorize is 'native', but {settings.id} has no vector form that can be used. Set it to 'auto'."
        )
    if native and settings.vectorize != "single":
        return NativeShard(settings, seed, shard, copies)
    return SingleShard(settings, seed, shard, copies, layout)
