"""What operators see of a run on the Prometheus endpoint that every node of a Ray has: gauges, labelled by the run.

    http://NODE:PORT/metrics      ray_distrl_env_steps_per_second{run="ppo-cartpole-v1-...", path="/...", ...} 5130.0

Ray lists the endpoints of its nodes for Prometheus in /tmp/ray/prom_metrics_service_discovery.json;
configs/cluster/grafana.json shows them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrl.settings import Config

PREFIX = "distrl_"  # of their names, behind Ray's own: ray_distrl_...
GAUGES = {
    "env_steps": "env steps of training so far",
    "env_steps_per_second": "env steps of training a second, in the newest iteration",
    "return_mean": "mean return of the last 100 training episodes, in the env's units",
    "lag_seconds": "from the moment when the fragments of an iteration were there until the learner had learnt from them",
    "restarts": "workers that were lost and replaced, and trips back to a checkpoint",
    "learner_busy": "part of the time in which the learner learns, 0 to 1",
    "replay_fill": "part of the replay that holds steps, 0 to 1",
}


class Gauges:
    """Those of one run. Where this process is on no Ray, nobody can see them, and nothing is done."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.labels = {"run": run_dir.name, "path": str(run_dir)}
        self.steps = config.rollout.env_steps  # of an iteration
        self.capacity = None if config.replay is None else config.replay.capacity
        self._gauges: dict[str, Any] = {}

    def values(self, row: Mapping[str, float | int | str], now: float) -> dict[str, float]:
        """What a row of metrics.jsonl says that is complete since `now` (unix time); by the names in GAUGES."""
        told = {name: float(row[key]) for name, key in KEYS.items() if key in row}
        if "time/learn_s" in row and "env_steps_per_second" in told:
            told["learner_busy"] = min(1.0, float(row["time/learn_s"]) * told["env_steps_per_second"] / self.steps)
            told["lag_seconds"] = max(0.0, now - float(row["time"]))
        if self.capacity is not None:
            told["replay_fill"] = min(1.0, told["env_steps"] / self.capacity)
        return told

    def publish(self, row: Mapping[str, float | int | str]) -> None:
        is_up = getattr(sys.modules.get("ray"), "is_initialized", None)  # it may be on its way in another thread
        if is_up is None or not is_up():
            return
        from ray.util.metrics import Gauge

        for name, value in self.values(row, time.time()).items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"{PREFIX}{name}", GAUGES[name], tag_keys=tuple(self.labels))
            self._gauges[name].set(value, self.labels)


KEYS = {  # of a row, that are told as they are
    "env_steps": "env_steps",
    "env_steps_per_second": "time/env_steps_per_s",
    "return_mean": "train/return_mean",
    "restarts": "restarts",
}
