"""Train on a Ray cluster from a CI: as `distrl submit` does, from a checkout, with `ray[default]` installed and nothing else.

    python scripts/submit_job.py configs/ppo_cartpole.yaml seed=3 --address http://127.0.0.1:8265

The first line is the job's id; then comes what the run says; the results go to runs/JOB; the exit code is the run's. The config is
checked by the run. The cluster's token is looked for where Ray does: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # distrl is not installed

from distrl.errors import UserError  # noqa: E402
from distrl.execution.jobs import RUNS, Cluster, Order, new_id, refuse_taken  # noqa: E402

PASSED = ("MLFLOW_", "AWS_")  # names in the environment that begin so are for what a run speaks to


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument("--detach", action="store_true", help="leave when it is submitted")
    parser.add_argument("--working-dir", type=Path, help="a directory with modules of your own")
    parser.add_argument("--out", type=Path, help="where the results go; default: runs/JOB")
    asked = parser.parse_intermixed_args()
    try:
        return submit(asked)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def submit(asked: argparse.Namespace) -> int:
    """Returns the exit code."""
    if not asked.config.is_file():
        raise UserError(f"There is no config file {str(asked.config)!r}.")
    job = new_id(asked.config.stem)
    out = asked.out or Path("runs") / job
    refuse_taken(out)
    cluster = Cluster(asked.address)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    order = Order(
        what=str(asked.config),
        distrl=version,
        run_dir=f"{RUNS}/{job}",
        overrides=asked.overrides,
        config=asked.config.read_text(encoding="utf-8"),
        environment={name: value for name, value in os.environ.items() if name.startswith(PASSED)},
    )
    cluster.submit(job, order, ROOT / "distrl", asked.working_dir)
    print(job, flush=True)
    if asked.detach:
        return 0
    ended = cluster.follow(job, lambda text: print(text, end="", flush=True), warn)
    try:
        cluster.fetch(job, out, warn)
    except UserError as error:
        if ended.code == 0:
            raise
        warn(str(error))
    return ended.code


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
