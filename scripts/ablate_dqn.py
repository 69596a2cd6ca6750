"""What each piece of DQN does on one task: `python scripts/ablate_dqn.py configs/dqn_cartpole.yaml --seeds 5 [KEY=VALUE]...`

Trains the config as it is and with one switch changed at a time, and prints for each the return of the best model and the mean
return of all evaluations on the way (how fast it learnt), as mean and deviation over seeds. One run after the other, in this process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from distrl import load_config, train

SWITCHES = {
    "as it is": [],
    "one step": ["algorithm.n_step=1"],
    "no layer norm": ["algorithm.layer_norm=false"],
    "layer norm": ["algorithm.layer_norm=true"],
    "not double": ["algorithm.double=false"],
    "double": ["algorithm.double=true"],
    "dueling": ["algorithm.dueling=true"],
    "prioritised": ["replay.prioritized=true"],
    "munchausen": ["algorithm.munchausen={}"],
    "soft target": ["algorithm.target_every=1", "algorithm.tau=0.01"],
    "squared error": ["algorithm.huber=null"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    base = load_config(arguments.config, arguments.overrides)
    print(f"| switch | best model | on the way | {arguments.seeds} seeds |\n|---|---|---|---|")
    switches = SWITCHES | {"constant learning rate": [f"algorithm.lr={base.algorithm.lr.start}"]}
    for name, overrides in switches.items():
        if overrides and load_config(arguments.config, [*arguments.overrides, *overrides]) == base:
            continue  # the config has it already
        best, way = [], []
        for seed in range(1, arguments.seeds + 1):
            run_dir = arguments.out / name.replace(" ", "-") / str(seed)
            quiet = [f"seed={seed}", f"run_dir={run_dir}", "track.mlflow=false", "track.video=false"]
            config = load_config(arguments.config, [*arguments.overrides, *overrides, *quiet])
            result = train(config, local=True, quiet=True)
            rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            assert result.evaluation is not None
            best.append(result.evaluation.mean)
            way.append(np.mean([row["evaluation/return_mean"] for row in rows if "evaluation/return_mean" in row]))
        returns = ", ".join(f"{value:.0f}" for value in best)
        print(
            f"| {name} | {np.mean(best):.1f} ± {np.std(best):.1f} | {np.mean(way):.1f} ± {np.std(way):.1f} | {returns} |"
        )


if __name__ == "__main__":
    main()
