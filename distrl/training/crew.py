"""Who works for a run, and where: the learner, replays, and runners, which come and go as the nodes of a cluster do.

Who rolls a shard is looked up for every fragment (`runner_of`). A shard that is dealt to another runner is asked of the old
one no more: when its fragments there have come, the next is asked of the new one, with a snapshot.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from distrl.acting.team import TeamPolicy
from distrl.errors import UserError
from distrl.execution import Worker
from distrl.execution.resources import Resources, Seat, counted, lacking, share_out
from distrl.execution.watched import WatchedExecution
from distrl.settings import EnvSettings
from distrl.training.job import Job
from distrl.training.recovery import Recovery
from distrl.types import Arrays
from distrl.workers.evaluator import Evaluator
from distrl.workers.learner import Learner
from distrl.workers.learners import LearnerAmongOthers
from distrl.workers.replay import Replay
from distrl.workers.replays import ReplayOfGroups, agents_apart
from distrl.workers.runner import Runner

LOOK_S = 1.0  # between two looks at the nodes


class Crew:
    def __init__(
        self,
        job: Job,
        execution: WatchedExecution,
        resources: Resources,
        recovery: Recovery,
    ) -> None:
        """Every worker gets a copy of the job's policy."""
        self.config, self.policy, self.origin = job.config, job.policy, job.origin
        self.judged = job.policy if job.judged is None else job.judged
        self.execution, self.resources, self.recovery = execution, resources, recovery
        self.runners: list[Worker] = []  # who are asked
        self.coming: list[Worker] = []  # whose processes are starting
        self.leaving: list[Worker] = []  # who may finish what they were asked for
        self.seats: dict[Worker, Seat] = {}  # of all these
        self.dealt: dict[int, Worker] = {}  # by shard
        self.live: dict[int, Worker] = {}  # by shard: the runner that has it, which need not be sent a snapshot
        self.seated = resources  # where learner and replays are
        self.node_died = False  # with runners on it, since that was asked last
        self._looked = time.monotonic()
        self._asked: list[dict[str, float]] = []

    @property
    def all_runners(self) -> list[Worker]:
        return [*self.runners, *self.coming, *self.leaving]

    def learner(self, state: Arrays) -> Worker:
        """A fresh one, to go on from the state of a checkpoint; empty: from the beginning. It may stand for several."""
        self.seated = self.resources
        arguments = self.config, self.policy, state or None, self.origin
        if len(self.resources.learners) == 1:
            return self.execution.spawn(Learner, *arguments, name="learner", seat=self.resources.learner)
        return self.execution.spawn_together(
            LearnerAmongOthers, *arguments, name="learner", seats=self.resources.learners
        )

    def replay(self, number: int, state: Arrays) -> Worker:
        """A fresh one, as `learner`."""
        seat, kept = self.resources.replay(number), state or None
        if isinstance(self.policy, TeamPolicy):
            return self.execution.spawn(
                ReplayOfGroups, self.config, number, kept, self.policy, name="replay", seat=seat
            )
        agents = agents_apart(self.config, self.policy)
        return self.execution.spawn(Replay, self.config, number, kept, agents, name="replay", seat=seat)

    def evaluator(self, env: EnvSettings) -> Worker:
        """One that plays in `env`."""
        self._settle()
        arguments = env, self.config.seed, self.judged
        return self.execution.spawn(Evaluator, *arguments, name="evaluator", seat=self.resources.evaluator)

    def start(self) -> None:
        """As many runners as there shall be, in place of all there are."""
        for runner in self.all_runners:
            self.execution.kill(runner)
        self.seats.clear()
        self.coming, self.leaving = [], []
        self.runners = [self._spawn(seat) for seat in self.resources.runners]
        self._deal()

    def runner_of(self, shard: int) -> tuple[Worker, bool]:
        """Who is asked for a shard's next fragment from now on, and whether it has the shard."""
        runner = self.dealt[shard]
        has = self.live.get(shard) is runner
        self.live[shard] = runner
        return runner, has

    def ahead(self, shard: int, depth: int) -> int:
        """How many fragments of a shard may be under way where another is asked for: none where it goes to another runner."""
        return depth if self.live.get(shard) is self.dealt[shard] else 0

    def replace(self, runner: Worker) -> bool:
        """A fresh process in the place of one; False where its node is gone, or it was leaving: others do its work then.

        On a cluster others do its work until the fresh one has begun: somebody else may have taken its CPUs.
        """
        self._settle()
        if runner not in self.runners:
            self._end(runner)
            return False
        seat, place = self.seats[runner], self.runners.index(runner)
        self._end(runner)
        fresh = self._spawn(seat)
        if self.runners and self.resources.nodes != {""}:
            self.coming.append(fresh)
            self._deal()
        else:
            self.runners.insert(place, fresh)
            self.dealt = {shard: fresh if who is runner else who for shard, who in self.dealt.items()}
        return True

    def follow(self, busy: Collection[Worker] = (), at_once: bool = False) -> bool:
        """Look at the nodes, now and then: put runners on those that came, and let go who is where none shall be any more.

        Args:
            busy: who was asked for something; the rest of those that leave is ended
        Returns:
            whether the nodes can hold the run
        """
        if self.resources.nodes == {""} or (not at_once and time.monotonic() < self._looked + LOOK_S):
            return True
        nodes = self.execution.nodes()
        for runner in [runner for runner in self.all_runners if not self.execution.alive(runner)]:
            self.node_died = True
            self._end(runner)
        parts = lacking(self.config, nodes)
        came = len(parts) < len(self._asked)  # maybe on a node that is known: others left it
        there, known = frozenset(node.id for node in nodes), self.resources.nodes
        if there != known or came:
            try:
                target = share_out(self.config, nodes, self.resources.replay_bytes, self.resources)
            except UserError as error:
                self.recovery.observer.warn(f"the run waits for a node that can hold it: {error}")
                self._ask(parts)
                return False
            self.resources = target
            self._fit(target.runners)
            self._tell(len(there - known), len(known - there))
        self._ask(parts)
        begun = [runner for runner in self.coming if self.execution.begun(runner)]
        if begun or not self.runners:
            self.runners += begun or self.coming
            self.coming = [runner for runner in self.coming if runner not in self.runners]
            self._deal()
        if not at_once:
            self._looked = time.monotonic()
            for runner in [runner for runner in self.leaving if runner not in busy]:
                self._end(runner)
        return True

    @property
    def to_move(self) -> bool:
        """Whether the node of the learner or of a replay is to end, or has ended."""
        places = [([seat.node for seat in r.learners], r.replays) for r in (self.seated, self.resources)]
        return places[0] != places[1]

    def move(self, all_of_it: bool) -> bool:
        """Before learner and replays are started anew: see that they have a place. Returns whether all of it is new."""
        self._settle()
        anew = all_of_it or self.to_move  # runners may hold the CPUs that the learner needs now
        if anew or self.node_died:  # and who is left of them has been asked for much that nobody wants any more
            self.start()
        return anew

    def _spawn(self, seat: Seat) -> Worker:
        config = self.config
        arguments = config.env, config.rollout, config.seed, self.policy, config.cluster.rebuild_timeout_s
        runner = self.execution.spawn(Runner, *arguments, name="runner", seat=seat)
        self.seats[runner] = seat
        return runner

    def _end(self, runner: Worker) -> None:
        """Nothing is asked of it any more."""
        self.execution.kill(runner)
        self.seats.pop(runner, None)
        for some in (self.runners, self.coming, self.leaving):
            if runner in some:
                some.remove(runner)

    def _fit(self, seats: Sequence[Seat]) -> None:
        """Have runners on these seats: who sits on one with no more CPUs than it gives stays."""
        free = list(seats)
        for runner in [*self.runners, *self.coming]:
            seat = next(
                (s for s in free if s.node == self.seats[runner].node and s.cpus >= self.seats[runner].cpus), None
            )
            if seat is None:
                self.leaving.append(runner)
            else:
                free.remove(seat)
        self.runners, self.coming = (
            [runner for runner in some if runner not in self.leaving] for some in (self.runners, self.coming)
        )
        self.coming += [self._spawn(seat) for seat in free]
        if self.runners:
            self._deal()

    def _deal(self) -> None:
        """Deal the shards out evenly. As many as can stay where they are."""
        shards = range(self.config.rollout.shards)
        now = self.dealt | self.live
        have = Counter(now.values())
        order = sorted(self.runners, key=lambda runner: -have[runner])
        fair, extra = divmod(len(shards), len(order))
        room = {runner: fair + (number < extra) for number, runner in enumerate(order)}
        dealt = {}
        for shard in shards:
            if room.get(now.get(shard), 0):
                dealt[shard] = now[shard]
                room[dealt[shard]] -= 1
        for shard in shards:
            if shard not in dealt:
                dealt[shard] = max(room, key=lambda runner: room[runner])
                room[dealt[shard]] -= 1
        self.dealt = dealt

    def _ask(self, parts: list[dict[str, float]]) -> None:
        """Have machines come where fewer are left than the config asks for."""
        if parts and parts != self._asked:
            self.recovery.observer.note(
                f"the cluster lacks {counted(parts)}, which it is asked for, in case it can grow"
            )
        self._asked = parts
        self.execution.ask_for(parts)

    def _settle(self) -> None:
        """Have a place for all on the nodes that there are now; wait for one where it must be."""
        while not self.follow(at_once=True):
            self.recovery.check()
            time.sleep(LOOK_S)

    def _tell(self, came: int, left: int) -> None:
        news = [f"{'a node' if n == 1 else f'{n} nodes'} {what}" for n, what in ((came, "came"), (left, "left")) if n]
        news = news or ["what the cluster lacked is free"]
        runners, nodes = len(self.resources.runners), len(self.resources.nodes)
        now = f"{runners} runner{'s' * (runners != 1)} on {nodes} node{'s' * (nodes != 1)}"
        self.recovery.observer.note(f"{' and '.join(news)}: {now} now")
