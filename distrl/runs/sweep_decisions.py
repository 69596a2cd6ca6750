"""What a sweep tries next, whom it stops, and who leads: a pure function of the outcomes so far.

A *run* is a trial (a config) with one seed. It is cut into *pieces* at *rungs*, shares of its length at which runs are
compared. Seeds come one after another: all trials run with the first one, and the better ones go on to the next (racing),
so that weak configs are not given all seeds.

`none` and `halving` wait for all runs of a rung before they decide, so that it cannot matter which was faster. `asha`
(Li et al. 2020, arXiv:1810.05934) never waits: whenever a process is free, it promotes a run that is in the best 1/eta of
what its rung has seen so far, or begins another trial.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from distrl.runs.sweep_metrics import Metric
from distrl.runs.sweep_spaces import Overrides

Kind = Literal["none", "asha", "halving"]
Run = tuple[int, int]  # trial, seed


@dataclass(frozen=True)
class Piece:
    """A run up to a rung; that of the number of all rungs is its end."""

    trial: int
    seed: int
    rung: int

    @property
    def run(self) -> Run:
        return self.trial, self.seed


@dataclass(frozen=True)
class Outcome:
    """What came of a piece."""

    status: Literal["paused", "finished", "failed"]
    score: float | None  # of the sweep's metric
    rung_score: float | None  # of what runs are compared by at rungs


class Decisions:
    """Told of outcomes, it knows the next piece and the leader."""

    def __init__(self, kind: Kind, metric: Metric, trials: int, seeds: Sequence[int], rungs: int, eta: int) -> None:
        self.kind, self.metric, self.trials, self.seeds = kind, metric, trials, list(seeds)
        self.rungs, self.eta = rungs, eta
        self.outcomes: dict[Run, dict[int, Outcome]] = {}

    def tell(self, piece: Piece, outcome: Outcome) -> None:
        self.outcomes.setdefault(piece.run, {})[piece.rung] = outcome

    def begin(self, piece: Piece, overrides: Overrides, donor: int | None) -> None:
        """Nothing here depends on what was begun."""

    def next(self, busy: Collection[Piece]) -> Piece | None:
        """The next piece, beside those that are being worked at; None: there is none, or none yet."""
        contenders: list[int] = list(range(self.trials))
        for number, seed in enumerate(self.seeds):
            piece = self._in_round(contenders, seed, busy, first=number == 0)
            if piece is not None or any(p.seed == seed for p in busy):
                return piece
            contenders = self._go_on(contenders, number)
        return None

    def _go_on(self, contenders: list[int], number: int) -> list[int]:
        """Who gets the seed after seed `number`: the better ones of those that came to the end with this one."""
        finished = [t for t in contenders if self._status((t, self.seeds[number])) == "finished"]
        return self._best(finished, number + 1)[: max(1, math.ceil(len(contenders) / self.eta))]

    def _in_round(self, contenders: list[int], seed: int, busy: Collection[Piece], first: bool) -> Piece | None:
        if not first or self.kind == "none" or not self.rungs:  # the few that are left go straight to the end
            return self._any(((t, seed) for t in contenders), self.rungs, busy)
        runs = [(t, seed) for t in contenders]
        return self._halving(runs, busy) if self.kind == "halving" else self._asha(runs, busy)

    def _any(self, runs: Iterable[Run], rung: int, busy: Collection[Piece]) -> Piece | None:
        working = {piece.run for piece in busy}
        waiting = (run for run in runs if run not in working and self._at(run, rung) is None)
        return next((Piece(*run, rung) for run in waiting), None)

    def _halving(self, runs: list[Run], busy: Collection[Piece]) -> Piece | None:
        for rung in range(self.rungs + 1):
            if piece := self._any(runs, rung, busy):
                return piece
            if any(self._at(run, rung) is None for run in runs):
                return None  # all of them are awaited
            least = min(2, len(self.seeds))  # so that the next seed has something to choose from
            runs = sorted(self._leading(runs, rung)[: max(least, len(runs) // self.eta)])
        return None

    def _asha(self, runs: list[Run], busy: Collection[Piece]) -> Piece | None:
        working = {piece.run for piece in busy}
        for rung in reversed(range(self.rungs)):
            seen = [run for run in runs if self._at(run, rung) is not None]
            for run in self._leading(seen, rung)[: len(seen) // self.eta]:
                if run not in working and self._at(run, rung + 1) is None:
                    return Piece(*run, rung + 1)
        return self._any(runs, 0, busy)

    def _at(self, run: Run, rung: int) -> Outcome | None:
        """The outcome at a rung; that of a run which ended before counts at all later ones."""
        known = self.outcomes.get(run, {})
        ended = (o for r, o in known.items() if r < rung and o.status != "paused")
        return known.get(rung) or next(ended, None)

    def _leading(self, runs: Iterable[Run], rung: int) -> list[Run]:
        """Those that did not fail, the best at a rung first; of equals the first one."""
        scores = {run: outcome for run in runs if (outcome := self._at(run, rung)) and outcome.status != "failed"}
        return sorted(scores, key=lambda run: (self.metric.at_a_rung.key(scores[run].rung_score), run))

    def _status(self, run: Run) -> str | None:
        known = self.outcomes.get(run, {})
        return known[max(known)].status if known else None

    def _best(self, trials: Iterable[int], seeds: int) -> list[int]:
        """The best first, by the mean over the first so many seeds."""
        return sorted(trials, key=lambda t: (self.metric.key(self.mean(t, seeds)), t))

    def scores(self, trial: int, seeds: int | None = None) -> list[float | None]:
        """Of its finished runs, of the first so many seeds or of all."""
        runs = [(trial, seed) for seed in self.seeds[:seeds]]
        ended = [run for run in runs if self._status(run) == "finished"]
        return [self.outcomes[run][max(self.outcomes[run])].score for run in ended]

    def mean(self, trial: int, seeds: int | None = None) -> float | None:
        """Of a trial's scores; None where it has none, or one of them is missing."""
        scores = self.scores(trial, seeds)
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(scores) else None

    def leader(self, busy: Collection[Piece] = ()) -> int | None:
        """The best trial of those that have a score of every seed whose round is over; None before there is one."""
        over = 0
        contenders: list[int] = list(range(self.trials))
        for number, seed in enumerate(self.seeds):
            if any(p.seed == seed for p in busy) or self._in_round(contenders, seed, busy, number == 0):
                break
            over, contenders = number + 1, self._go_on(contenders, number)
        level = max(1, over)
        while level and not (able := [t for t in range(self.trials) if len(self.scores(t, level)) == level]):
            level -= 1
        return self._best(able, level)[0] if level else None
