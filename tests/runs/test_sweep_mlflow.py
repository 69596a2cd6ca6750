"""A sweep in MLflow: parent, children, grandchildren; each once, with the same ids, whatever was killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE
from sweeping import Killed, read_trials, sweep_here

from distrl.tracking.metrics import read_metrics

SWEEP: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"video": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}},
    "budget": {"trials": 3, "env_steps": 5120},
    "scheduler": "halving",
    "seeds": {"tune": [1], "test": [101]},
}


@pytest.mark.timeout(900)
def test_sixteen_trials_in_one_store_lose_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    sweep_dir = tmp_path / "sweeps" / "many"
    short = {"evaluation": {"every": 0, "final_episodes": 0}, "checkpoint": {"every": 0}}
    data = {**SWEEP, "base": {**SWEEP["base"], **short}, "scheduler": "none", "metric": "train/return_mean"}
    data |= {"budget": {"trials": 16, "env_steps": 1024}, "seeds": {"tune": [1], "test": []}}
    sweep_here(monkeypatch, data, sweep_dir)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "distrl"]
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 1 + 16 + 16
    for trial in range(16):
        rows = read_metrics(sweep_dir / f"trials/{trial:04}/seed-1/metrics.jsonl")
        for metric in ("train/return_mean", "train/policy_loss", "time/env_steps_per_s"):
            points = client.get_metric_history(runs[f"{trial:04} seed-1"], metric)
            told = sorted((point.step, point.value) for point in points)
            assert told == [(row["env_steps"], row[metric]) for row in rows if metric in row] and told
        assert len(client.get_metric_history(runs[f"trial {trial}"], "sweep/score")) == 1


@pytest.mark.timeout(900)
def test_each_run_and_each_row_is_there_once_after_a_kill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    sweep_dir = tmp_path / "sweeps" / "mine"
    with pytest.raises(Killed):
        sweep_here(monkeypatch, SWEEP, sweep_dir, kill_at=2)
    best = sweep_here(monkeypatch, SWEEP, sweep_dir, resume=True).data["best"]["trial"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "distrl"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parents = {key: run.data.tags.get("mlflow.parentRunId") for key, run in runs.items()}
    (top,) = [key for key, parent in parents.items() if parent is None]
    children = [key for key, parent in parents.items() if parent == top]
    assert Counter(runs[key].info.run_name for key in children) == Counter(
        ["trial 0", "trial 1", "trial 2", f"trial {best}, on the test seeds", "base, on the test seeds"]
    )
    grandchildren = {key: parent for key, parent in parents.items() if parent in children}
    assert len(runs) == 1 + 5 + 5 and sorted(grandchildren.values()) == sorted(children)
    for key, parent in grandchildren.items():
        name, seed = runs[key].info.run_name.split(" ")
        (run_dir,) = sweep_dir.glob(f"*/{name}/{seed}")
        rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if "train/return_mean" in row]
        history = client.get_metric_history(key, "train/return_mean")
        assert [(point.step, point.value) for point in sorted(history, key=lambda p: p.step)] == [
            (row["env_steps"], row["train/return_mean"]) for row in rows
        ]
        assert float(runs[key].data.params["algorithm.lr.start"]) > 0 and parent in runs
    trials = read_trials(sweep_dir)
    for trial in trials:
        (child,) = [key for key in children if runs[key].info.run_name == f"trial {trial['trial']}"]
        assert float(runs[child].data.params["algorithm.lr"]) == trial["overrides"]["algorithm.lr"]
        assert runs[child].data.metrics["sweep/score"] == trial["score"]
    ended = sum(1 for line in (sweep_dir / "events.jsonl").read_text().splitlines() if '"ended"' in line)
    assert len(client.get_metric_history(top, "sweep/score")) == ended
    assert {item.path for item in client.list_artifacts(top)} >= {"sweep.yaml", "trials.json", "best.yaml", "plots"}
    assert {runs[key].info.status for key in [top, *children]} == {"FINISHED"}
