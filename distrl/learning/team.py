"""Several algorithms as one: each learns for a group of agents from what these did, as if they were the only ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from distrl.acting.team import TeamPolicy
from distrl.types import Algorithm, Array, Arrays, Fragment, OnPolicy


class Team:
    """`distrl.types.OnPolicy`, or what `distrl.learning.drawn` learns by; metrics are named after the group, such as `adversaries/policy_loss`."""

    def __init__(self, policy: TeamPolicy, algorithms: Sequence[Algorithm]) -> None:
        """`algorithms`: of each member of the policy"""
        self.policy, self.algorithms = policy, algorithms

    def update(self, fragments: list[Fragment], iteration: int, progress: float) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for number, (member, algorithm) in enumerate(zip(self.policy.members, self.algorithms, strict=True)):
            own = [self.policy.fragment_of(number, fragment) for fragment in fragments]
            if not any(fragment.acted.any() for fragment in own):  # others sat in all its seats
                continue
            told = cast(OnPolicy, algorithm).update(own, iteration, progress)
            metrics |= {f"{member.name}/{name}": value for name, value in told.items()}
        return metrics

    def weights(self) -> Array:
        return np.concatenate([algorithm.weights() for algorithm in self.algorithms])

    def state(self) -> Arrays:
        return {
            f"{number}.{name}": array
            for number, algorithm in enumerate(self.algorithms)
            for name, array in algorithm.state().items()
        }

    def load_state(self, state: Arrays) -> None:
        for number, algorithm in enumerate(self.algorithms):
            mark = f"{number}."
            algorithm.load_state({k.removeprefix(mark): array for k, array in state.items() if k.startswith(mark)})
