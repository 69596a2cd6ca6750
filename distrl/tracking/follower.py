"""The process that reads metrics.jsonl and tells MLflow. The one place, with the logged model, that imports mlflow."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distrl.acting.normalise import without
from distrl.acting.recurrent import RecurrentPolicy
from distrl.acting.team import TeamPolicy
from distrl.errors import UserError
from distrl.files import lock_now
from distrl.models.store import read_model
from distrl.tracking.companion import Driver, tell_behind
from distrl.tracking.meter import Meter
from distrl.tracking.metrics import Row, points, safe_name
from distrl.tracking.mlflow_store import experiment_id, make_store
from distrl.tracking.where import KEY, MODEL, NOTE, database_path, read_json, without_credentials, write_json
from distrl.types import Evaluation

REQUEST = 1000  # metrics that MLflow takes in one request
FOLLOW_S, BACKOFF_S = 1.5, 10.0  # between two looks at the file; the longest pause between two tries
FILES = ("config.yaml", "result.json", "plots", "videos")  # of a run that become artifacts
LOG = logging.getLogger("distrl.tracking")


class Follower:
    """A run on its way to MLflow. Whatever fails, do `connect` and what comes after it once more: no row is sent twice,
    and none is left out."""

    def __init__(self, run_dir: Path, files: Sequence[str] = FILES) -> None:
        """`files`: that become artifacts when it has ended."""
        from mlflow import MlflowClient

        self.run_dir, self.files = run_dir, files
        self.about = read_json(run_dir / "track.json")
        if (uri := os.environ["MLFLOW_TRACKING_URI"]).startswith("sqlite:"):
            make_store(database_path(uri))
        self.client = MlflowClient()
        self.run_id = ""
        self.env_steps = 0
        self._held, self._offset = -1, 0
        self._introduced = False
        self._logged = ""  # the digest of the best model that MLflow has
        self._model_id: str | None = None
        self._meter = Meter(os.getppid())

    def connect(self) -> None:
        """Find or create the run in MLflow, say what it is, and ask which rows MLflow holds of it."""
        from mlflow.entities import Param, RunTag

        run = self._find() or self.client.create_run(
            self._experiment(), run_name=self.about["run_name"], tags={KEY: self.about["key"]}
        )
        self.run_id = run.info.run_id
        where = {"tracking_uri": os.environ["MLFLOW_TRACKING_URI"], "experiment_id": run.info.experiment_id}
        write_json(self.run_dir / "mlflow.json", where | {"run_id": self.run_id, "run_name": run.info.run_name})
        if run.info.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        # In MLflow a param can never change; so a resumed run adds only those that are new.
        params = [Param(key, value) for key, value in self.about["params"].items() if key not in run.data.params]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])
        tags = {safe_name(key): text for key, text in self.about["tags"].items()}
        if NOTE in run.data.tags:  # somebody may have written another one there
            tags.pop(NOTE, None)
        self.client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in tags.items()])
        self._held, self._offset = int(run.data.metrics.get("iteration", -1)), 0
        self._logged = ""

    def _find(self) -> Any:
        from mlflow import MlflowException

        if known := read_json(self.run_dir / "mlflow.json"):
            try:
                run = self.client.get_run(known["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if (
                    error.error_code != "RESOURCE_DOES_NOT_EXIST"
                ):  # else this is another server, or the run was deleted there
                    raise
        found = self.client.search_runs([self._experiment()], f"tags.`{KEY}` = '{self.about['key']}'", max_results=1)
        return found[0] if found else None

    def _experiment(self) -> str:
        return experiment_id(self.client, self.about["experiment"], os.environ["MLFLOW_TRACKING_URI"])

    def follow(self) -> None:
        """Send the rows that MLflow does not hold yet, now and then what the machine is doing, and the model once it is whole."""
        self.send()
        if not self._introduced:
            self._upload("config.yaml")
            self._introduced = True
        if metrics := self._meter.read():
            row = {**metrics, "env_steps": self.env_steps}
            self.client.log_batch(self.run_id, metrics=self._metrics(row, time.time()))
        if self._trained():
            self._log_model()

    def _trained(self) -> bool:
        """Whether the run has its model, with the card that is written behind the result; its driver then makes pictures."""
        result, card = self.run_dir / "result.json", self.run_dir / "best" / "README.md"
        ended = read_json(result).get("status") == "finished"
        return ended and card.exists() and card.stat().st_mtime >= result.stat().st_mtime

    def finish(self, status: str, model: bool = True) -> None:
        """Send all that is left of a run that has ended, with or without its best model."""
        try:
            self.send()
            if model:
                self._log_model()
            for name in self.files:
                self._upload(name)
            self._final()
        finally:  # also where MLflow did not take everything, it learns how the run ended
            self.client.set_terminated(self.run_id, status)

    def _final(self) -> None:
        """Send the last evaluation, as metrics of the run and of the model that it is of."""
        result = self.run_dir / "result.json"
        if (final := read_json(result).get("evaluation")) is not None:
            evaluation = Evaluation.from_json(final)
            # The time is that of the file, not now: sent twice, it is still the same point.
            row, of_model = {**evaluation.metrics("final"), "env_steps": evaluation.env_steps}, dict[str, str]()
            if self._model_id is not None:
                of_model = {"model_id": self._model_id, "run_id": self.run_id}
            self.client.log_batch(self.run_id, metrics=self._metrics(row, result.stat().st_mtime, **of_model))

    def fell_behind(self, error: Exception, log: bool) -> None:
        """Let the driver know, through track.state."""
        reason = without_credentials(" ".join(str(error).split()))[:300]
        tell_behind(self.run_dir, "track", reason)
        if log:
            LOG.warning("MLflow does not take everything: %s", reason)

    def caught_up(self) -> None:
        """Let the driver know."""
        LOG.warning("MLflow takes the metrics again")
        tell_behind(self.run_dir, "track", "")

    def send(self) -> None:
        """The rows that MLflow does not hold yet."""
        while rows := self._rows():
            for metrics in self._requests(rows):
                self.client.log_batch(self.run_id, metrics=metrics)

    def _rows(self) -> list[Row]:
        """The next whole lines of metrics.jsonl, about a megabyte of them; the next call goes on behind them."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offset)
            lines = [line for line in file.readlines(1 << 20) if line.endswith(b"\n")]
        self._offset += sum(map(len, lines))
        return [json.loads(line) for line in lines]

    def _requests(self, rows: list[Row]) -> Iterator[list[Any]]:
        """Lists of metrics, one for each request. MLflow takes a request whole or not at all, and so it takes a row."""
        request: list[Any] = []
        for row in rows:
            self.env_steps = int(row["env_steps"])
            if int(row["iteration"]) <= self._held:
                continue
            metrics = self._metrics(row, float(row["time"]))
            if len(request) + len(metrics) > REQUEST:
                yield request
                request = []
            request += metrics
        if request:
            yield request

    def _metrics(self, row: Mapping[str, Any], unix: float, **of: str) -> list[Any]:
        from mlflow.entities import Metric

        return [Metric(name, value, int(unix * 1000), step, **of) for name, value, step in points(row)]

    def _upload(self, name: str) -> None:
        path = self.run_dir / name
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), name)
        elif path.exists():
            self.client.log_artifact(self.run_id, str(path))

    def _log_model(self) -> None:
        """Log the best policy as a model of MLflow's own, which loads and predicts where distrl is not installed.

        One that remembers would have to be told which episode an observation is of: its files are logged as they are,
        and so are those of several policies.
        """
        from distrl.tracking import mlflow_files

        best = self.run_dir / "best"
        if not (best / "policy.json").exists() or self._logged == (digest := mlflow_files.digest(best)):
            return
        run = self.client.get_run(self.run_id)
        if isinstance(without(read_model(best)[0]), RecurrentPolicy | TeamPolicy):
            self._upload("best")
        elif run.data.tags.get(MODEL) != digest:
            about = read_json(best / "policy.json")
            name = model_name(run.info.run_name, str(about.get("algorithm", "policy")))
            experiment, register_as = run.info.experiment_id, self.about["register_as"]
            self._model_id = mlflow_files.log_model(self.client, experiment, name, best, about, run, register_as)
            self.client.set_tag(self.run_id, MODEL, digest)
        self._logged = digest


def model_name(run_name: str, algorithm: str) -> str:
    """Tells run and algorithm, without the characters that MLflow refuses in it."""
    name = run_name if algorithm in run_name else f"{algorithm}-{run_name}"
    return re.sub(r"[/:.%\"']+", "-", name)


class Follows(Protocol):
    """Whatever fails in `follow` or `finish`, `connect` and what comes after it are tried once more."""

    def connect(self) -> None: ...

    def follow(self) -> None: ...

    def finish(self, status: str) -> None: ...

    def fell_behind(self, error: Exception, log: bool) -> None: ...

    def caught_up(self) -> None: ...


def follow_run(run_dir: Path, make: Callable[[Path], Follows]) -> int:
    """Follow a run or a sweep, as `make` does, until its driver ends. Returns 0 where MLflow then has all of it."""
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    driver = Driver(LOG)
    driver.start()
    with (run_dir / "track.log").open("ab") as lock:
        # The process of a killed driver may still be at work; that of the resumed run then waits for it. Should the
        # killed driver's come second, it has nothing more to say.
        while not lock_now(lock):
            if driver.ended.wait(0.2) and driver.status is None:
                return 0
        return _follow(make(run_dir), driver)


def _follow(follower: Follows, driver: Driver) -> int:
    from mlflow import MlflowException

    failures, connected = 0, False
    while True:
        ended = driver.ended.is_set()
        try:
            if not connected:
                follower.connect()
                connected = True
            if ended:
                follower.finish(driver.status or "KILLED")
                return 0
            follower.follow()
            if failures:
                follower.caught_up()
            failures = 0
        except (MlflowException, OSError, UserError) as error:  # of the server, the network, the disk
            follower.fell_behind(error, log=ended or not failures)
            if ended and failures >= 3:
                return 1
            failures, connected = failures + 1, False
        if ended:
            time.sleep(2)
        else:
            driver.ended.wait(min(BACKOFF_S, FOLLOW_S * 2**failures))
