"""Learning from what replays drew: from that of all at once, and of groups of agents each from its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import cast

import numpy as np

from distrl.learning.team import Team
from distrl.types import Algorithm, Batch, Drawn, OffPolicy, Priorities, Told


def join(batches: Sequence[Batch]) -> Batch:
    """One batch [U, B] of those [U, B / shards] of each replay."""
    if len(batches) == 1:
        return batches[0]
    names = [field.name for field in fields(Batch) if field.name != "fresh"]
    parts = {name: [getattr(batch, name) for batch in batches] for name in names}
    return Batch(**{name: np.concatenate(arrays, axis=1) for name, arrays in parts.items()})  # type: ignore[arg-type]


def learn_from(
    algorithm: Algorithm,
    drawn: Sequence[Drawn],
    env_steps: int,
    progress: float,
    joined: Callable[[Sequence[Batch]], Batch] = join,
) -> tuple[dict[str, float], list[Told]]:
    """Update an off-policy algorithm. Returns metrics, and what each replay is told of what it drew.

    Args:
        drawn: by each replay
        env_steps, progress: as of `OffPolicy.learn`
        joined: what makes one batch of those of each replay
    """
    if isinstance(algorithm, Team):
        metrics: dict[str, float] = {}
        of_groups = []
        for group, (member, own) in enumerate(zip(algorithm.policy.members, algorithm.algorithms, strict=True)):
            batches = [cast(list[Batch], of_replay)[group] for of_replay in drawn]
            found, told = learn_from(own, batches, env_steps, progress)
            metrics |= {f"{member.name}/{name}": value for name, value in found.items()}
            of_groups.append(cast(list[Priorities], told))
        return metrics, [list(of_replay) for of_replay in zip(*of_groups, strict=True)]
    batches = [cast(Batch, batch) for batch in drawn]
    metrics, errors = cast(OffPolicy, algorithm).learn(joined(batches), env_steps, progress)
    parts = np.split(errors, len(batches), axis=1)
    return metrics, [Priorities(b.key.ravel(), e.ravel()) for b, e in zip(batches, parts, strict=True)]
