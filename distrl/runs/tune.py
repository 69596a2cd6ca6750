"""A sweep from its file to its winner: checks first, then trials on Ray Tune, then winner and base on the test seeds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl import signals
from distrl.errors import UserError, did_you_mean
from distrl.execution.tune import Trials
from distrl.files import locked, new_directory, write_text
from distrl.json_format import json_text
from distrl.reports.sweeps import POPULATION
from distrl.runs.sweep import Sweep, load_sweep
from distrl.runs.sweep_book import Book, Job, Test, outcome_of
from distrl.runs.sweep_check import check_sweep, rungs, trial_count
from distrl.runs.sweep_decisions import Decisions, Piece
from distrl.runs.sweep_end import present_sweep
from distrl.runs.sweep_jobs import STOP, Jobs, key
from distrl.runs.sweep_metrics import TRAINED, Metric
from distrl.runs.sweep_population import Population
from distrl.runs.sweep_rows import SweepRows
from distrl.runs.sweep_searchers import Seen, make_searcher
from distrl.runs.sweep_spaces import Overrides, told
from distrl.runs.sweep_trial import work
from distrl.runs.sweep_view import Views
from distrl.settings import dotted
from distrl.tracking.board import Board
from distrl.tracking.mlflow import ENDS, MlflowTracker
from distrl.tracking.where import collect_tags, tracking_uri
from distrl.yaml_format import read_yaml

SEND_S = 600.0  # that MLflow may take at the end for what is left of all runs
CHANGEABLE = ("budget.seconds", "trial", "sweep_dir")  # on resume, since they change nothing that is decided


@dataclass(frozen=True)
class Tuned:
    """How a sweep ended."""

    sweep_dir: Path
    data: dict[str, Any]  # what result.json holds

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def winner(self) -> Path | None:
        """The run of the best trial whose best model does best."""
        run_dir = self.data["winner"]
        return None if run_dir is None else Path(run_dir)


def new_sweep(source: str | Path, overrides: Sequence[str], name: str | None) -> tuple[Sweep, Path]:
    """A sweep and where it goes. Raises `UserError` where the name is in use, or the file is wrong."""
    sweep = load_sweep(source, overrides)
    name = name or f"{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    sweep_dir = Path(sweep.sweep_dir or f"sweeps/{name}").expanduser().absolute()
    if sweep_dir.exists() and any(sweep_dir.iterdir()):
        raise UserError(
            f"The sweep {name!r} exists, in {sweep_dir}. Choose another --name, or go on with it: distrl tune --resume {name}"
        )
    return sweep, sweep_dir


def find_sweep_dir(name: str) -> Path:
    """The directory of a sweep by its name or its path. Raises `UserError` where there is none."""
    for path in (Path("sweeps") / name, Path(name)):
        if (path / "sweep.yaml").exists():
            return path.absolute()
    known = [path.parent.name for path in Path("sweeps").glob("*/sweep.yaml")]
    near = did_you_mean(name, known) or (f" There are {', '.join(sorted(known))}." if known else "")
    raise UserError(f"There is no sweep {name!r}: neither sweeps/{name} nor {name} holds a sweep.yaml.{near}")


def is_running(sweep_dir: Path) -> bool:
    """Whether a process is at work on the sweep now."""
    try:
        with locked(sweep_dir):
            return False
    except UserError:
        return True


def resumed_sweep(sweep_dir: Path, overrides: Sequence[str], source: str | None) -> Sweep:
    """The sweep of a directory, with overrides of what may change. Raises `UserError` for any other."""
    before = load_sweep(sweep_dir / "sweep.yaml")
    now = load_sweep(sweep_dir / "sweep.yaml" if source is None else source, overrides)
    old, new = (dotted(read_yaml(sweep.to_yaml())) for sweep in (before, now))
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key) and not any(key == c or key.startswith(f"{c}.") for c in CHANGEABLE)
    )
    if changed:
        changes = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} here)" for key in changed)
        raise UserError(
            f"{sweep_dir} is another sweep: {changes}. A resumed sweep may change only {', '.join(CHANGEABLE[:2])}; start a "
            "new one, under another --name, for the rest."
        )
    return now


def tune(sweep: Sweep, sweep_dir: Path, resume: bool = False, quiet: bool = False) -> Tuned:
    """Run a sweep, or go on with it, and leave everything in its directory.

    Raises:
        UserError: it cannot be run; nothing was made
    """
    metric = check_sweep(sweep, str(sweep_dir))
    request = signals.Request()
    board = Board(quiet)
    with _taken(sweep_dir, resume) as keep, signals.handled(request), ExitStack() as stack:
        stack.callback(board.close)
        address = sweep.base_config().cluster.address

        def begin() -> Trials:
            board.note("Starting Ray ..." if address == "local" else f"Joining Ray at {address} ...")
            return stack.enter_context(start_trials(sweep))

        trials = None if resume else begin()  # before anything is written
        keep()
        (sweep_dir / STOP).unlink(missing_ok=True)
        if not resume:
            write_text(sweep_dir / "sweep.yaml", sweep.to_yaml())
        book = stack.enter_context(closing(Book(sweep_dir)))
        rows = stack.enter_context(closing(SweepRows(book, metric)))
        driver = Driver(sweep, metric, book, rows, request, board)
        if trials is None and not driver.done():
            trials = begin()
        driver.tracker = tracker = _start_tracker(sweep, sweep_dir)
        if tracker is not None:
            stack.callback(tracker.abandon)
        driver.write("running")
        if trials is not None and not driver.done():  # it may be over before it began, by Ctrl-C
            trials.run(work, driver)
        board.close()
        result = driver.write("interrupted" if request.reason else "finished")
        if result.status == "finished":
            present_sweep(sweep, sweep_dir, result.winner, board)
        if tracker is not None and (behind := tracker.finish(ENDS[result.status], timeout=SEND_S)):
            board.warn(behind)
        return result


@contextmanager
def _taken(sweep_dir: Path, resume: bool) -> Iterator[Callable[[], None]]:
    """The directory for this process alone, and a call that keeps a new one."""
    if resume:
        with locked(sweep_dir):
            yield lambda: None
        return
    with new_directory(sweep_dir, numbered=False) as (_, keep):
        yield keep


def start_trials(sweep: Sweep) -> AbstractContextManager[Trials]:
    """What runs trials: a Ray with Ray Tune on it. Raises `UserError` where there is none, or trials can never fit."""
    config = sweep.base_config()
    gpus = float(config.learner.device == "cuda")
    return Trials(config.cluster.address, sweep.trial.runners, gpus, sweep.trial.at_once)


def _start_tracker(sweep: Sweep, sweep_dir: Path) -> MlflowTracker | None:
    """The process that tells MLflow of the sweep and all its runs."""
    base = sweep.base_config()
    if not base.track.mlflow:
        return None
    params = read_yaml(sweep.to_yaml())
    return MlflowTracker.start(
        sweep_dir,
        uri=tracking_uri(base, sweep_dir),
        experiment=base.track.experiment,
        tags=collect_tags() | {"distrl.sweep": sweep_dir.name, "distrl.level": "sweep"},
        params={name: value for name, value in params.items() if name != "sweep_dir"},
        run_name=sweep_dir.name,
    )


class Driver:
    """Deals pieces of runs out, takes what comes of them, and keeps the book (`distrl.execution.tune.Dealer`)."""

    def __init__(
        self,
        sweep: Sweep,
        metric: Metric,
        book: Book,
        rows: SweepRows,
        request: signals.Request,
        board: Board,
    ) -> None:
        self.sweep, self.metric, self.book, self.rows = sweep, metric, book, rows
        self.request, self.board, self.views = request, board, Views(sweep, book)
        self.tracker: MlflowTracker | None = None
        trials, shares = trial_count(sweep), rungs(sweep, sweep.base_config(), metric, trial_count(sweep))
        self.decisions: Decisions | Population
        if sweep.scheduler in POPULATION:
            self.decisions, at_rungs = Population(sweep, metric, trials), Metric(TRAINED)
        else:
            kind = sweep.scheduler if sweep.scheduler in ("asha", "halving") else "none"
            self.decisions = Decisions(kind, metric, trials, sweep.seeds.tune, len(shares), sweep.eta)
            at_rungs = metric.at_a_rung
        self.jobs = Jobs(sweep, book.directory, metric, at_rungs, shares)
        for piece, event in book.begun.items():
            self.decisions.begin(piece, event["overrides"], event["donor"])
        for piece, outcome in book.outcomes():
            self.decisions.tell(piece, outcome)
        self.searcher = make_searcher(sweep, metric)
        self.busy: list[Job] = []
        self.began, self.before_s = time.monotonic(), book.search_s
        self.out_of_time = False

    def done(self) -> bool:
        return not self.busy and (self.request.reason is not None or self._next() is None)

    def deal(self) -> Mapping[str, Any] | None:
        job = None if self.request.reason is not None else self._next()
        if job is None:
            return None
        self.busy.append(job)
        if isinstance(job, Piece):
            if job not in self.book.open or job in self.book.cut:
                self._begin(job)
            self._write()
        else:  # the time of the search may have been up
            (self.book.directory / STOP).unlink(missing_ok=True)
        tried = self.book.overrides[job.trial] if isinstance(job, Piece) else self._phases(job.trial)[-1][1]
        self.rows.begin(self.book.run_dir(job).parent, tried)
        return self._described(job)

    def _begin(self, piece: Piece) -> None:
        overrides, donor = self.book.overrides.get(piece.trial), None
        if isinstance(self.decisions, Population):
            moves = self.decisions.moves(piece.rung)
            run_dirs = {m: self.book.run_dir(self.decisions.piece(m, 0)) for m in range(self.decisions.members)}
            self.jobs.take_over(piece.rung, moves, run_dirs, piece.seed)
            if piece.trial in moves:
                overrides, donor = moves[piece.trial].overrides, moves[piece.trial].donor
        overrides = self._draw(piece.trial) if overrides is None else overrides
        self.book.begin(piece, overrides, donor)
        self.decisions.begin(piece, overrides, donor)

    def take(self, piece: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        job = self._job(piece)
        self.busy.remove(job)
        result = dict(result or LOST)
        cut = result["status"] == "interrupted"
        if cut and not (self.out_of_time and isinstance(job, Piece)):
            return  # it goes on when the sweep is resumed
        self._count_time()
        if cut:
            result["status"] = "paused"
        self.book.end(job, result, cut)
        self.rows.write()
        if isinstance(job, Piece):
            if not cut:
                self.decisions.tell(job, outcome_of(result))
            self._write()
        self._tell(job, result)

    def leaving(self) -> bool:
        return self.request.reason is not None

    def watch(self) -> None:
        self._count_time()
        limit = self.sweep.budget.seconds
        searching = any(isinstance(job, Piece) for job in self.busy)
        if limit is not None and searching and self.book.search_s >= limit:
            self.out_of_time = True
        stop = self.book.directory / STOP
        if self.request.reason is not None or (self.out_of_time and searching):
            stop.touch()
        elif stop.exists():
            stop.unlink()
        if self.tracker is not None and (message := self.tracker.poll()):
            self.board.warn(message)
        if self.board.due():
            self.board.show(self.views.of(self.busy))

    def _count_time(self) -> None:
        if not self.over:
            self.book.search_s = self.before_s + time.monotonic() - self.began

    @property
    def over(self) -> bool:
        """Whether the search has ended, and the test seeds are left."""
        searching = [job for job in self.busy if isinstance(job, Piece)]
        return not searching and (self._out() or (not self._left() and self.decisions.next(()) is None))

    def _out(self) -> bool:
        limit = self.sweep.budget.seconds
        return self.out_of_time or (limit is not None and self.book.search_s >= limit)

    def _left(self) -> list[Piece]:
        """Pieces that a killed sweep had begun."""
        return [piece for piece in self.book.open if piece not in self.busy]

    def _next(self) -> Job | None:
        pieces = [job for job in self.busy if isinstance(job, Piece)]
        if not self._out():
            if left := self._left():
                return left[0]
            if (piece := self.decisions.next(pieces)) is not None:
                return piece
        leader = self.decisions.leader()
        if pieces or leader is None:
            return None
        tests = [Test(trial, seed) for seed in self.sweep.seeds.test for trial in (leader, None)]
        return next((test for test in tests if test not in self.book.tested and test not in self.busy), None)

    def _draw(self, trial: int) -> Overrides:
        seen = []
        for number, overrides in self.book.overrides.items():
            scores = [e["result"]["score"] for p, e in self.book.ended.items() if p.trial == number]
            under_way = any(piece.trial == number for piece in self.book.open)
            seen.append(Seen(overrides, scores[-1] if scores else None, under_way))
        return self.searcher(trial, seen)

    def _described(self, job: Job) -> dict[str, Any]:
        """A job as plain JSON, for a trial's process."""
        run_dir = self.book.run_dir(job)
        if isinstance(job, Test):
            phases = [self.jobs.phase(values, job.seed, run_dir, rung) for rung, values in self._phases(job.trial)]
            return self.jobs.describe(job, run_dir, phases)
        event = self.book.begun[job]
        taken = None if event["donor"] is None else self.jobs.taken_over(job.rung, job.trial)
        return self.jobs.describe(
            job, run_dir, [self.jobs.phase(event["overrides"], job.seed, run_dir, job.rung)], taken
        )

    def _job(self, piece: Mapping[str, Any]) -> Job:
        return next(job for job in self.busy if key(job) == piece["job"])

    def _phases(self, trial: int | None) -> list[tuple[int, Overrides]]:
        """With what values a trial or the base is trained up to which rung; of a population by all that it went through."""
        end = len(self.jobs.shares)
        if trial is None:
            return [(end, {})]
        if isinstance(self.decisions, Population):
            return self.decisions.lineage(trial)
        return [(end, self.book.overrides[trial])]

    def _tell(self, job: Job, result: Mapping[str, Any]) -> None:
        score = "no score" if result["score"] is None else f"{result['score']:.4g}"
        what = f"test seed {job.seed}, {job.whose}" if isinstance(job, Test) else f"trial {job.trial} seed {job.seed}"
        status = "paused" if result["status"] == "paused" else result["status"]
        line = f"{what}: {status} after {result['env_steps']:,} env steps, {score}"
        if result["error"]:
            line += f" ({str(result['error']).splitlines()[0]})"
        if isinstance(job, Piece):
            line += f"  {told(self.book.overrides[job.trial])}"
        self.board.note(line)

    def _write(self) -> None:
        leader = self.decisions.leader(tuple(job for job in self.busy if isinstance(job, Piece)))
        score = None if leader is None else self.decisions.mean(leader)
        head = "# the base config: no trial has ended yet\n"
        if leader is not None:
            head = f"# trial {leader}: {self.metric.name} {score} over tuning seeds: {self.decisions.scores(leader)}\n"
            if isinstance(self.decisions, Population):
                head += "# These are its values at the end. What made it is its schedule, in result.json; its model is in model/.\n"
        config = self.sweep.config({} if leader is None else self.book.overrides[leader])
        self.book.write(head + config.to_yaml())

    def write(self, status: str) -> Tuned:
        """result.json, and what else says how far the sweep is."""
        self._write()
        self.rows.write()
        leader = self.decisions.leader()
        data = {
            "status": status,
            "metric": self.metric.name,
            "best": None if leader is None else self._best(leader),
            "winner": None if leader is None else str(self._winner(leader)),
            "test": {"best": [] if leader is None else self._tests(leader), "base": self._tests(None)},
            "search_s": self.book.search_s,
        }
        text = json_text(data, indent=1)
        write_text(self.book.directory / "result.json", text)
        return Tuned(self.book.directory, json.loads(text))

    def _best(self, leader: int) -> dict[str, Any]:
        found = {
            "trial": leader,
            "overrides": self.book.overrides[leader],
            "score": self.decisions.mean(leader),
            "scores": self.decisions.scores(leader),
            "returns": [value for _, value in self._finished(leader)],  # of the best models, in fresh episodes
        }
        if isinstance(self.decisions, Population):  # which values it had in each generation
            found["schedule"] = [[generation, values] for generation, values in self._phases(leader)]
        return found

    def _winner(self, leader: int) -> Path:
        best = max(self._finished(leader), key=lambda run: -math.inf if run[1] is None else run[1])
        return self.book.run_dir(best[0])

    def _finished(self, trial: int) -> list[tuple[Piece, float | None]]:
        """Of each tuning seed with which a trial came to its end, the piece and the return of the best model."""
        results = sorted(
            ((p, e["result"]) for p, e in self.book.ended.items() if p.trial == trial),
            key=lambda pair: self.sweep.seeds.tune.index(pair[0].seed),
        )
        return [(piece, result["return_mean"]) for piece, result in results if result["status"] == "finished"]

    def _tests(self, trial: int | None) -> list[dict[str, Any]]:
        tested = [(seed, self.book.tested.get(Test(trial, seed))) for seed in self.sweep.seeds.test]
        names = ("status", "score", "return_mean", "env_steps", "seconds", "weights_sha256", "error")
        run_dirs = {seed: str(self.book.run_dir(Test(trial, seed))) for seed, _ in tested}
        return [
            {"seed": s, "run_dir": run_dirs[s]} | {name: e["result"][name] for name in names}
            for s, e in tested
            if e is not None
        ]


LOST = {  # of a piece whose process died each time
    **dict.fromkeys(("score", "rung_score", "return_mean", "weights_sha256")),
    "status": "failed",
    "env_steps": 0,
    "seconds": 0.0,
    "error": "its process died each time it was tried, perhaps for lack of memory",
}
