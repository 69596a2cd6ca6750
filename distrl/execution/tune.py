"""Ray Tune runs the trials of a sweep: it places them, queues those that do not fit, and starts lost ones again.

What is tried next, and what is stopped, is decided by whoever calls (distrl.runs.sweep_decisions), since what Tune's own
schedulers and searchers decide depends on which trial was faster, and cannot be gone on with after a kill. Here a Tune
trial is one *piece* of work: a run of one config with one seed, up to a mark or to its end.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from distrl.errors import UserError
from distrl.execution.cluster import RayExecution
from distrl.execution.own_ray import RayConnection
from distrl.json_format import json_text

LIVES = 3  # of a piece of work whose process dies
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a user's modules and paths are of the directory where the sweep was called
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are of the sweep
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own state, which nobody goes on from
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Dealer(Protocol):
    """Who decides what is tried."""

    def deal(self) -> Mapping[str, Any] | None:
        """The next piece of work, as plain JSON; None: only what is under way may lead to one."""

    def done(self) -> bool:
        """Whether no more pieces come."""

    def take(self, piece: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        """The result of a piece, as plain JSON; None: its process died each time it was tried."""

    def watch(self) -> None:
        """Called several times a second in between."""

    def leaving(self) -> bool:
        """Whether what is under way is to end, so that what still waits for its place need not begin."""


class Trials:
    """A Ray to run trials on; a context, which ends what it started."""

    def __init__(self, address: str, runners: int, gpus: float, most: int | None) -> None:
        """`runners`: actors of each trial, in its placement group; 0: it takes one CPU. `most`: trials at once.

        Raises:
            UserError: a trial asks for more than the cluster has
        """
        os.environ.update(SETTINGS)
        self._connection = RayConnection(address, 256 * 2**20)
        self._connection.wait()
        try:
            import ray

            whole = ray.cluster_resources()
            cpus, each, there = float(whole.get("CPU", 0)), 1 + runners, float(whole.get("GPU", 0))
            if each > cpus:
                raise UserError(
                    f"trial.runners={runners} takes {each} CPUs for each trial (one for the trial, one for each runner); "
                    f"there are {cpus:g}. Set trial.runners to at most {max(0, int(cpus) - 1)}; it changes only the speed."
                )
            if gpus > there:
                raise UserError(
                    f"learner.device=cuda takes {gpus:g} GPU for each trial; there are {there:g}. Set learner.device=cpu, or run "
                    "the sweep where there is one."
                )
            room = int(min(cpus // each, there // gpus if gpus else cpus))
            self.at_once = min(room, most or room)
        except BaseException:
            self.close()
            raise
        self._bundles = [{"CPU": 1.0, **({"GPU": gpus} if gpus else {})}, *({"CPU": 1.0} for _ in range(runners))]

    def run(self, work: Callable[[Mapping[str, Any]], Mapping[str, Any]], dealer: Dealer) -> None:
        """Work off all pieces that the dealer gives, several at once, each in a process with its share of the machine."""
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is told once, by the sweep
        source, watcher = _source(dealer), _watcher(dealer)
        with tempfile.TemporaryDirectory(prefix="distrl-tune-", dir=self._connection.directory) as storage:
            tuner = tune.Tuner(
                tune.with_resources(_trainable(work), tune.PlacementGroupFactory(self._bundles)),
                tune_config=tune.TuneConfig(
                    search_alg=ConcurrencyLimiter(source, max_concurrent=self.at_once),
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=lambda trial: f"piece-{trial.trial_id}",
                    trial_dirname_creator=lambda trial: f"piece-{trial.trial_id}",
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=storage,
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_at_end=False
                    ),  # a run has checkpoints of its own
                    failure_config=tune.FailureConfig(max_failures=LIVES - 1),
                    callbacks=[watcher],
                ),
            )
            try:
                tuner.fit()
            except Exception:
                if watcher.left:
                    return
                for asked in (source, watcher):
                    if asked.error is not None:  # Tune would tell of it as of a failure of its own
                        raise asked.error from None
                raise

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _trainable(work: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
    from ray import tune

    class Piece(tune.Trainable):  # type: ignore[misc]
        """One piece of work is one step; the process stays for the next one."""

        def setup(self, config: dict[str, Any]) -> None:
            self.piece = json.loads(config["piece"])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.piece = json.loads(new_config["piece"])
            return True

        def step(self) -> dict[str, Any]:
            return {"result": json_text(work(self.piece)), "done": True}

    return Piece


def _source(dealer: Dealer) -> Any:
    from ray.tune.search import Searcher

    class Source(_Bound, Searcher):  # type: ignore[misc]
        """The dealer, as Tune asks for what to try."""

        def __init__(self, dealer: Dealer) -> None:
            super().__init__(dealer)
            Searcher.__init__(self)
            self.pieces: dict[str, Mapping[str, Any]] = {}

        def suggest(self, trial_id: str) -> Any:
            with self.kept():
                piece = None if self.dealer.done() else self.dealer.deal()
                if piece is None:
                    return Searcher.FINISHED if self.dealer.done() else None
            self.pieces[trial_id] = piece
            return {"piece": json_text(piece)}  # as a text: Tune takes mappings apart

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            told = None if error or not result else json.loads(result["result"])
            with self.kept():
                self.dealer.take(self.pieces.pop(trial_id), told)

    return Source(dealer)


def _watcher(dealer: Dealer) -> Any:
    from ray import tune

    class Watcher(_Bound, tune.Callback):  # type: ignore[misc]
        left = False  # while all that is left waited for its place, as it may for ever where others have that

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            with self.kept():
                self.dealer.watch()
            waiting = [trial.status == "PENDING" for trial in trials if not trial.is_finished()]
            if waiting and all(waiting) and self.dealer.leaving():
                self.left = True
                raise InterruptedError("nothing is under way")  # Tune knows no other way out

    return Watcher(dealer)


class _Bound:
    """What Tune asks us by. It belongs to this process: Tune's copies of its own state, which nobody reads, lack it."""

    def __init__(self, dealer: Dealer) -> None:
        self.dealer = dealer
        self.error: BaseException | None = None  # what the dealer raised

    @contextmanager
    def kept(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = self.error or error
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class TrialExecution(RayExecution):
    """Workers as actors of the trial that this process is, in its placement group."""

    def __init__(self) -> None:
        self._use(Within(), joined=False)


class Within:
    """The Ray that this process is a worker of, and ends with."""

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass
