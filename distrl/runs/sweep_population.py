"""Population based training (Jaderberg et al. 2017, arXiv:1711.09846), and PB2 (Parker-Holder et al. 2020, arXiv:2002.02518).

All members run side by side, cut into generations. Behind each of them the worst quarter takes over the whole state of
members of the best quarter, and goes on with changed values: of those by a factor or drawn anew (pbt), or where a Gaussian
process over what all generations gained expects most (pb2). Everybody waits for everybody, and whom a member takes over and
with what is drawn from named streams, so that a population is the same on any machine.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distrl.runs.sweep import Sweep
from distrl.runs.sweep_decisions import Outcome, Piece
from distrl.runs.sweep_metrics import TRAINED, Metric
from distrl.runs.sweep_spaces import Overrides, Space
from distrl.seeding import stream
from distrl.types import Array

CANDIDATES = 500  # among which pb2 chooses
OPTIMISM = 1.0  # standard deviations that pb2 adds to what it expects


@dataclass(frozen=True)
class Move:
    """How a member begins a generation: with these values, from the state of this member."""

    overrides: Overrides
    donor: int


@dataclass
class Population:
    """Decides as `distrl.runs.sweep_decisions.Decisions` does; a rung is the end of a generation."""

    sweep: Sweep
    metric: Metric
    members: int
    outcomes: dict[Piece, Outcome] = field(default_factory=dict)
    begun: dict[Piece, Overrides] = field(default_factory=dict)  # with which values
    known_moves: dict[int, dict[int, Move]] = field(default_factory=dict)  # by generation
    donors: dict[Piece, int] = field(default_factory=dict)  # whom a member took over at the beginning of a piece

    @property
    def seed(self) -> int:
        """All members have one: a state that is taken over is that of episodes of this seed."""
        return self.sweep.seeds.tune[0]

    @property
    def last(self) -> int:
        return self.sweep.population.generations - 1

    def tell(self, piece: Piece, outcome: Outcome) -> None:
        self.outcomes[piece] = outcome

    def piece(self, member: int, generation: int) -> Piece:
        return Piece(member, self.seed, generation)

    def next(self, busy: Collection[Piece]) -> Piece | None:
        for generation in range(self.last + 1):
            pieces = [self.piece(member, generation) for member in self.alive(generation)]
            for piece in pieces:
                if piece not in self.outcomes and piece not in busy:
                    return piece
            if any(piece not in self.outcomes for piece in pieces):
                return None
        return None

    def alive(self, generation: int) -> list[int]:
        """Members whose run has not ended before a generation."""
        before = [self.piece(member, generation - 1) for member in range(self.members)]
        return [p.trial for p in before if generation == 0 or self._status(p) == "paused"]

    def _status(self, piece: Piece) -> str | None:
        return self.outcomes[piece].status if piece in self.outcomes else None

    def moves(self, generation: int) -> dict[int, Move]:
        """Of those that take over something at the beginning of a generation, all others go on as they are."""
        if generation == 0:
            return {}
        if generation not in self.known_moves:
            self.known_moves[generation] = self._moves(generation)
        return self.known_moves[generation]

    def _moves(self, generation: int) -> dict[int, Move]:
        ranking = self._ranking(generation - 1)
        quarter = len(ranking) // 4
        moves: dict[int, Move] = {}
        for member in ranking[len(ranking) - quarter :]:
            drawn = stream(self.sweep.seed, "pbt", generation, member)
            donor = ranking[int(drawn.integers(quarter))]
            values = self.begun[self.piece(donor, generation - 1)]
            if self.sweep.scheduler == "pb2":
                changed = self._expected_best(generation, drawn, [move.overrides for move in moves.values()])
            else:
                changed = {key: self._changed(self.sweep.search[key], value, drawn) for key, value in values.items()}
            moves[member] = Move(changed, donor)
        return moves

    def _ranking(self, generation: int) -> list[int]:
        """Who goes on, the best first, by the training return: of an evaluation there is none in each generation."""
        scores = {m: self.outcomes[self.piece(m, generation)].rung_score for m in self.alive(generation + 1)}
        return sorted(scores, key=lambda m: (Metric(TRAINED).key(scores[m]), m))

    def _changed(self, space: Space, value: Any, drawn: np.random.Generator) -> Any:
        unit, turn, up = drawn.random(3).tolist()
        how = self.sweep.population
        if turn < how.resample:
            return space.at(unit)
        if space.values is not None:  # to a neighbour
            place = space.values.index(value) + (1 if up < 0.5 else -1)
            return space.values[min(max(place, 0), len(space.values) - 1)]
        # Not held in the range: that is where members begin, and what is best later may lie elsewhere.
        return value * how.perturb if up < 0.5 else value / how.perturb

    def _expected_best(self, generation: int, drawn: np.random.Generator, chosen: Sequence[Overrides]) -> Overrides:
        """Where a Gaussian process over time and values expects the most gain, with optimism, beside what others try."""
        times, points, gains = [], [], []
        earlier = sorted((p for p in self.outcomes if p.rung < generation), key=lambda p: (p.rung, p.trial))
        for piece in earlier:
            outcome = self.outcomes[piece]
            if outcome.rung_score is None or (before := self._before(piece)) is None:
                continue
            times.append(piece.rung / (self.last + 1))
            points.append(self._units(self.begun[piece]))
            gains.append(outcome.rung_score - before)
        candidates = drawn.random((CANDIDATES, len(self.sweep.search)))
        if len(gains) < 2:
            return self._values(candidates[0])
        now = np.full((CANDIDATES, 1), generation / (self.last + 1))
        known = np.column_stack([times, np.array(points)])
        under_way = np.array([[now[0, 0], *self._units(overrides)] for overrides in chosen])
        return self._values(
            candidates[_most_promising(known, np.array(gains), np.hstack([now, candidates]), under_way)]
        )

    def _before(self, piece: Piece) -> float | None:
        """The score from which a member, or whom it took over, began a generation."""
        if piece.rung == 0:
            return 0.0
        outcome = self.outcomes.get(self.piece(self.donors.get(piece, piece.trial), piece.rung - 1))
        return None if outcome is None else outcome.rung_score

    def _units(self, overrides: Mapping[str, Any]) -> list[float]:
        """Values as numbers from 0 to 1."""
        units = []
        for key, space in self.sweep.search.items():
            low, high = space.uniform or space.loguniform or (0.0, 1.0)
            log = space.loguniform is not None
            value = overrides[key]
            units.append(math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low))
        return units

    def _values(self, units: Array) -> Overrides:
        return {key: space.at(float(unit)) for (key, space), unit in zip(self.sweep.search.items(), units, strict=True)}

    def scores(self, trial: int, seeds: int | None = None) -> list[float | None]:
        """Of the end of a member's run."""
        ended = [o for p, o in self.outcomes.items() if p.trial == trial and o.status == "finished"]
        return [outcome.score for outcome in ended]

    def mean(self, trial: int, seeds: int | None = None) -> float | None:
        return next(iter(self.scores(trial)), None)

    def leader(self, busy: Collection[Piece] = ()) -> int | None:
        """The best member of those that have come to the end."""
        ended = [member for member in range(self.members) if self.scores(member)]
        return min(ended, key=lambda m: (self.metric.key(self.mean(m)), m)) if ended else None

    def begin(self, piece: Piece, overrides: Overrides, donor: int | None) -> None:
        self.begun[piece] = overrides
        if donor is not None:
            self.donors[piece] = donor

    def lineage(self, member: int) -> list[tuple[int, Overrides]]:
        """The generations that led to a member's end, with the values of each."""
        path = []
        for generation in reversed(range(self.last + 1)):
            piece = self.piece(member, generation)
            if piece in self.begun:  # else its run had ended before
                path.append((generation, self.begun[piece]))
                member = self.donors.get(piece, member)
        return path[::-1]


def _most_promising(known: Array, gains: Array, candidates: Array, under_way: Array) -> int:
    """The candidate with the highest upper confidence bound; what is under way makes its surroundings certain, not better."""
    process: Any = importlib.import_module("sklearn.gaussian_process")  # of an extra
    kernels = process.kernels
    deviation = float(gains.std()) or 1.0
    scaled = (gains - gains.mean()) / deviation
    kernel = kernels.RBF([1.0] * known.shape[1], (0.05, 10)) + kernels.WhiteKernel(0.1, (1e-3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a length scale is at its bound
        model = process.GaussianProcessRegressor(kernel, random_state=0).fit(known, scaled)
    mean = model.predict(candidates)
    if len(under_way):
        seen = np.vstack([known, under_way])
        sure = process.GaussianProcessRegressor(model.kernel_, optimizer=None)
        _, spread = sure.fit(seen, np.concatenate([scaled, model.predict(under_way)])).predict(
            candidates, return_std=True
        )
    else:
        _, spread = model.predict(candidates, return_std=True)
    return int(np.argmax(mean + OPTIMISM * spread))
