"""`python -m distrl.tracking RUN`: the process that follows a run and tells MLflow; with `--sync`, sends what MLflow lacks."""

from __future__ import annotations

import sys
from pathlib import Path

from distrl.errors import UserError
from distrl.signals import exit_with
from distrl.tracking.follower import Follower, follow_run
from distrl.tracking.mlflow import sync
from distrl.tracking.sweeps import SweepFollower


def main() -> None:
    *flags, run_dir = sys.argv[1:] or ["--help", ""]
    if not flags:
        sweep = (Path(run_dir) / "sweep.yaml").exists()
        exit_with(follow_run(Path(run_dir), SweepFollower if sweep else Follower))
    if flags != ["--sync"]:
        sys.exit("usage: python -m distrl.tracking --sync RUN_DIR   (sends to MLflow what it does not have of a run)")
    try:
        sync(run_dir)
    except UserError as error:
        sys.exit(f"error: {error}")


main()
