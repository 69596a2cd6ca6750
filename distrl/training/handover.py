"""When a run that began in this process goes on with Ray, and how.

It goes at an iteration's border, where all that it is is one value: as a checkpoint would bring it there, with no file.
"""

from __future__ import annotations

import psutil

from distrl.errors import ExecutionLost, UserError
from distrl.execution import Execution
from distrl.execution.moving import MovingExecution
from distrl.execution.resources import Node, Resources, cpu_count, share_out
from distrl.execution.watched import WatchedExecution
from distrl.settings import Config
from distrl.training.checkpoints import Checkpoints
from distrl.training.crew import Crew
from distrl.training.evaluations import Evaluations
from distrl.training.progress import Ledger
from distrl.training.recovery import Recovery
from distrl.training.updates import Updates

WARM = 1  # iterations that do not count: what is called for the first time takes longer
MEASURED_S = 0.5  # of further ones, which tell how long one takes
FRAGMENT_S = 0.004  # of all cores together, that Ray costs for a fragment
CROWDED = 1.2  # times as long as alone anything takes on a core while the other cores work too, as measured
WORTH_S = 5.0  # what must be gained until the end of the run: on a quiet machine starting Ray and going over cost about as much


def busy() -> float:
    """How many times as long as on a quiet machine anything takes here now."""
    return max(1.0, psutil.getloadavg()[0] / cpu_count())


class Handover:
    def __init__(
        self,
        config: Config,
        execution: WatchedExecution,
        crew: Crew,
        recovery: Recovery,
        ledger: Ledger,
        updates: Updates,
        evaluations: Evaluations,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.crew, self.recovery, self.ledger = config, crew, recovery, ledger
        self.updates, self.evaluations, self.checkpoints = updates, evaluations, checkpoints
        self.execution, begins = execution, execution.inner
        self.elsewhere = begins.elsewhere if isinstance(begins, MovingExecution) else None  # None: it stays where it is
        self.begun = False
        self.before: tuple[int, float, float] | None = None  # where measuring began: iterations, seconds of both kinds

    def at(self, k: int) -> None:
        """Between two iterations: begin to start Ray where that will pay, go over once it is up."""
        there = None
        try:
            if self.elsewhere is None:
                return
            if self.begun and self.elsewhere.ready():
                there = self.elsewhere.take()
            elif not self.begun and self.wanted(k):
                self.begun = True
                self.elsewhere.begin()
        except (UserError, ExecutionLost) as error:
            self.elsewhere = None
            self.recovery.observer.warn(f"training goes on in this process: {error}")
        if there is not None:
            self.go(*there)

    def wanted(self, k: int) -> bool:
        """Whether Ray would end the run sooner: always, where a cluster or a number of runners or learners was asked for."""
        cluster, several = self.config.cluster, self.config.learner.count > 1
        if cluster.address != "local" or cluster.runners != "auto" or several:
            self.recovery.observer.note("Ray's workers start beside this process, which trains until they are up")
            return True
        seconds = self.seconds()
        if seconds is None:
            return False
        rolling, learning = seconds
        here, there = rolling + learning, self.estimate(rolling, learning)
        left = float("inf") if self.config.iterations is None else self.config.iterations - k
        if left * (here - there) < WORTH_S * busy():
            return False
        self.recovery.observer.note(
            f"Ray starts beside this process: an iteration takes {here:.2g} s here, and about {there:.2g} s there"
        )
        return True

    def seconds(self) -> tuple[float, float] | None:
        """That an iteration takes here for rolling and for learning; None before enough were seen."""
        totals = self.ledger.totals
        whole, learning = totals.get("time/driver_s", 0.0), totals.get("time/learn_s", 0.0)
        now = self.ledger.rows, whole - learning, learning
        if self.before is None:
            self.before = now if now[0] >= WARM else None
            return None
        rows, *spent = (end - begin for end, begin in zip(now, self.before, strict=True))
        return None if sum(spent) < MEASURED_S else (spent[0] / rows, spent[1] / rows)

    def estimate(self, rolling: float, learning: float) -> float:
        """Seconds of an iteration on Ray: of what takes longest, its runners, its learner, or all cores together."""
        cores = cpu_count()
        runners = min(cores, len(share_out(self.config, [Node(cpus=cores, gpus=1)]).runners))
        at_once = max(rolling / runners, learning) if self.config.schedule.lag else rolling / runners + learning
        busiest = max(at_once, (rolling + learning) / cores)
        return CROWDED * busiest + FRAGMENT_S * self.config.rollout.shards / cores

    def go(self, execution: Execution, resources: Resources) -> None:
        """Take the run there."""
        self.updates.settle(0)
        state = self.checkpoints.state(replay=True)
        self.elsewhere = None
        self.execution.use(execution)
        self.crew.resources = resources
        self.crew.start()
        self.evaluations.replace()
        self.checkpoints.give(state)
        self.recovery.observer.note(f"Ray is up: training goes on there, with {len(resources.runners)} runners")
