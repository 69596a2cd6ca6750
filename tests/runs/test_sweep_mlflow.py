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
