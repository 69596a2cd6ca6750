"""The counters of a run, and the row of metrics that every iteration leaves."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from distrl.settings import Config, StreakSettings
from distrl.training.recovery import Observer, Recovery
from distrl.types import Evaluation, Report

PAUSED = "paused"  # why a run ended that goes on later, as if it had not ended
RECENT = 100  # training episodes in return_mean
PHASES = {  # what the seconds of a run are of, by their names in result.json; they pass side by side
    "act": "runners choosing actions",
    "step": "runners stepping envs",
    "snapshot": "runners recording shard states",
    "ship": "reports on their way (and waiting) to the driver",
    "learn": "the learner learning",
}
UNFAITHFUL = (
    "{} does not rebuild from its episode seed and actions: its observations or rewards depend on something else (a random "
    "generator of its own, a clock, statistics that a wrapper keeps over episodes). Fresh episodes were started, and this run "
    "will not give the same weights again"
)


@dataclass
class Pending:
    """An evaluation that was asked for, and the iteration at which its result counts."""

    due: int
    version: int
    env_steps: int
    number: int


@dataclass
class Progress:
    """The counters of a run between two iterations; all of it is in a checkpoint."""

    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    recent_returns: list[float] = field(default_factory=list)
    recent_lengths: list[int] = field(default_factory=list)
    recent_infos: dict[str, list[float]] = field(default_factory=dict)  # by the names of `env.report`
    recent_agents: dict[str, list[float]] = field(default_factory=dict)  # returns of each of several agents, by name
    streak: int = 0  # training episodes in a row above `track.streak`
    steps_to_streak: int | None = None
    evaluations: int = 0
    pending: list[Pending] = field(default_factory=list)
    evaluated: dict[str, float] = field(default_factory=dict)  # metrics that the row of this iteration is to tell
    best: Evaluation | None = None  # that chose the best model
    steps_to_threshold: int | None = None
    time_to_threshold_s: float | None = None
    train_s: float = 0.0
    restarts: int = 0
    stopped: str | None = None  # why, once it is decided

    @property
    def return_mean(self) -> float | None:
        """Mean return of the last 100 training episodes, or of all where there are fewer."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else None

    def reached(self, mark: float | None) -> bool:
        """Whether the mean of 100 training episodes is at a mark."""
        mean = self.return_mean
        return mark is not None and mean is not None and len(self.recent_returns) == RECENT and mean >= mark

    def count(self, report: Report) -> None:
        """The episodes that ended in a fragment."""
        episodes = report.episodes
        self.episodes += len(episodes.returns)
        self.recent_returns = [*self.recent_returns, *episodes.returns.tolist()][-RECENT:]
        self.recent_lengths = [*self.recent_lengths, *episodes.lengths.tolist()][-RECENT:]
        for recent, new in ((self.recent_infos, episodes.infos), (self.recent_agents, episodes.agents)):
            for name, values in new.items():
                recent[name] = [*recent.get(name, []), *values.tolist()][-RECENT:]

    def count_streak(self, returns: list[float], wanted: StreakSettings) -> bool:
        """Count episodes in a row above the mark; True when there are enough for the first time."""
        reached = False
        for value in returns:
            self.streak = self.streak + 1 if value > wanted.above else 0
            if self.streak == wanted.episodes and self.steps_to_streak is None:
                self.steps_to_streak, reached = self.env_steps, True
        return reached

    @property
    def best_env_steps(self) -> int:
        """Env steps of training behind the best model; without evaluations that is the newest one."""
        return self.env_steps if self.best is None else self.best.env_steps

    def to_json(self) -> dict[str, Any]:
        """All counters as plain JSON."""
        return asdict(self) | {"best": None if self.best is None else self.best.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """The counters that `to_json` wrote."""
        best = None if data["best"] is None else Evaluation.from_json(data["best"])
        pending = [Pending(**p) for p in data["pending"]]
        returns = [float(value) for value in data["recent_returns"]]  # one that is not finite is a text in JSON
        by_name = {
            key: {name: [float(value) for value in values] for name, values in data.get(key, {}).items()}
            for key in ("recent_infos", "recent_agents")
        }
        return cls(**{**data, "best": best, "pending": pending, "recent_returns": returns, **by_name})


class Ledger:
    """Counts iterations: opens a row when the fragments are there, closes it when the learner's metrics are."""

    def __init__(self, config: Config, threshold: float | None, recovery: Recovery, observer: Observer) -> None:
        """`threshold`: the env's reward threshold."""
        self.config, self.threshold, self.recovery, self.observer = config, threshold, recovery, observer
        self.first_step: float | None = None  # unix time of this process's first env step
        self.totals: dict[str, float] = {}  # seconds by phase, over this process's part of the run
        self.rows = 0  # that these are of
        self.earlier_s: float | None = None  # trained by earlier processes
        self.progress = Progress()

    def load(self, progress: Progress) -> None:
        """Go on counting from here."""
        self.progress = progress
        if self.earlier_s is None:
            self.earlier_s = progress.train_s
        self.rated = time.perf_counter(), progress.env_steps  # when, and env steps, of the row before
        self.recovery.blocked = 0.0

    def reason_to_stop(self) -> str | None:
        """What ends the run now, of what was asked for."""
        wanted = self.config.stop.return_mean
        if self.progress.reached(self.threshold if wanted == "auto" else wanted):
            return "return_mean"
        if self.config.iterations is not None and self.progress.iteration >= self.config.iterations:
            return "env_steps"
        callbacks = self.recovery.callbacks
        for reason, at in (("callback", callbacks.stop_at), (PAUSED, callbacks.pause_at)):
            if at is not None and self.progress.iteration >= at:
                return reason
        return None

    def open(self, k: int, reports: list[Report]) -> dict[str, float]:
        """Count an iteration's episodes, in shard order; returns the row that its metrics will complete."""
        progress = self.progress
        if self.first_step is None:
            self.first_step = min(report.started for report in reports)
        progress.env_steps += self.config.rollout.env_steps
        for report in reports:
            progress.count(report)
            self._count_streak(report)
            if report.unfaithful:
                self.observer.warn(UNFAITHFUL.format(self.config.env.id))
        self._time()
        if progress.steps_to_threshold is None and progress.reached(self.threshold):
            progress.steps_to_threshold, progress.time_to_threshold_s = progress.env_steps, progress.train_s
        row = self.head(k) | {"train/episodes": float(progress.episodes)}
        if (mean := progress.return_mean) is not None:
            row["train/return_mean"] = mean
            row["train/length_mean"] = float(np.mean(progress.recent_lengths))
            row |= {f"train/scores/{name}_mean": float(np.mean(v)) for name, v in progress.recent_infos.items()}
            row |= {f"train/agents/{name}_mean": float(np.mean(v)) for name, v in progress.recent_agents.items()}
        for phase in reports[0].seconds:
            row[f"time/{phase}_s"] = sum(report.seconds[phase] for report in reports)
        return row | self._rates()

    def close(self, row: dict[str, float], metrics: dict[str, float]) -> None:
        """Complete a row with what the learner says of the iteration, and record it."""
        self._time()
        row["time/learn_s"] = self.recovery.learn_s = metrics.pop("learn_s")
        row |= {f"train/{name}": value for name, value in metrics.items()}
        row["restarts"] = float(self.recovery.restarts)
        self.rows += 1
        for name, value in row.items():
            if name.startswith("time/") and name.endswith("_s") and name != "time/env_steps_per_s":
                self.totals[name] = self.totals.get(name, 0.0) + value
        self.recovery.record(row)

    def head(self, k: int) -> dict[str, float]:
        """What every row begins with."""
        return {"iteration": float(k), "env_steps": float(self.progress.env_steps), "time": time.time()}

    def _time(self) -> None:
        """Training has gone on until now."""
        assert self.earlier_s is not None
        if self.first_step is not None:  # else what is learnt is what a run owed that was left
            self.progress.train_s = self.earlier_s + time.time() - self.first_step

    def _rates(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed, steps = now - self.rated[0], self.progress.env_steps - self.rated[1]
        driver_s = elapsed - self.recovery.blocked
        self.rated, self.recovery.blocked = (now, self.progress.env_steps), 0.0
        return {"time/env_steps_per_s": steps / elapsed if elapsed > 0 else 0.0, "time/driver_s": driver_s}

    def _count_streak(self, report: Report) -> None:
        wanted = self.config.track.streak
        if wanted is not None and self.progress.count_streak(report.episodes.returns.tolist(), wanted):
            self.observer.note(
                f"{wanted.episodes} training episodes in a row above {wanted.above:g}, "
                f"after {self.progress.env_steps:,} env steps"
            )
