"""How much faster are several learners? Updates/s of one and of more, in turns, and whether their weights are the same.

Usage: .venv/bin/python scripts/learners.py [CONFIG] [KEY=VALUE]... [--counts 1 2] [--rounds 3]

Each learner has `learner.threads` (1) cores. Runners rest meanwhile (schedule.lag=0), so that they take none of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

PIXELS = [  # a minute or so of PPO on Flappy Bird from pixels
    "rollout={shards: 2, envs_per_shard: 4, steps: 64}",
    "algorithm.epochs=2",
    "stop.env_steps=3072",
    "evaluation={every: 0, final_episodes: 0}",
]
QUIET = [
    "schedule.lag=0",
    "cluster.start=wait",
    "cluster.runners=1",
    "checkpoint.every=0",
    "track={mlflow: false, video: false}",
]


def run(config: str, overrides: list[str]) -> tuple[float, str]:
    """Minibatches/s, the median over all iterations but the first, and the weights' sha256."""
    from distrl import load_config, train

    with tempfile.TemporaryDirectory() as directory:
        result = train(load_config(config, [*overrides, f"run_dir={directory}/run"]), quiet=True)
        rows = [json.loads(line) for line in (Path(result.run_dir) / "metrics.jsonl").read_text().splitlines()]
    rates = [row["train/minibatches"] / row["time/learn_s"] for row in rows if row.get("train/minibatches")]
    return median(rates[1:]), str(result.data["weights_sha256"])


def main(config: str, overrides: list[str], counts: list[int], rounds: int) -> None:
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts:
            several = [f"learner.slices={max(counts)}", f"learner.count={count}"]
            rate, sha256 = run(config, [*QUIET, *several, *overrides])
            rates[count].append(rate)
            print(f"round {number + 1}, learner.count={count}: {rate:.2f} minibatches/s, weights {sha256}", flush=True)
    first = median(rates[counts[0]])
    for count in counts:
        found = median(rates[count])
        print(f"learner.count={count}: {found:.2f} minibatches/s, {found / first:.2f} times those of {counts[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE]...")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    words = list(given.words)
    chosen = words.pop(0) if words and "=" not in words[0] else ""
    main(chosen or "ppo_flappy_pixels", words if chosen else [*PIXELS, *words], given.counts, given.rounds)
