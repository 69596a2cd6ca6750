"""Sweeps in this process, without Ray: what Ray Tune does, in a loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrl.runs import tune
from distrl.runs.sweep import load_sweep


class Killed(Exception):
    """Stands for the end of the driver's process."""


def sweep_here(
    monkeypatch: pytest.MonkeyPatch,
    data: Mapping[str, Any],
    sweep_dir: Path,
    kill_at: int | None = None,
    resume: bool = False,
    before: Callable[[tune.Driver, int], None] = lambda driver, count: None,
) -> tune.Tuned:
    """Run a sweep; before its job number `kill_at` is told of, everything ends at once. `before`: called before each job."""

    class Trials:
        """In turn."""

        def run(self, work: Any, driver: tune.Driver) -> None:
            count = 0
            while not driver.done():
                job = driver.deal()
                assert job is not None
                before(driver, count)
                result = work(json.loads(json.dumps(job)))
                if count == kill_at:
                    raise Killed
                driver.take(job, json.loads(json.dumps(result)))
                driver.watch()
                count += 1

    monkeypatch.setattr(tune, "start_trials", lambda sweep: nullcontext(Trials()))
    file = sweep_dir.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(data)))
    return tune.tune(load_sweep(file), sweep_dir, resume=resume, quiet=True)


def read_trials(sweep_dir: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((sweep_dir / "trials.json").read_text())
    return sorted(trials, key=lambda trial: (trial["trial"], trial["seed"]))
