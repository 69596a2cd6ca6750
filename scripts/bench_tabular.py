"""Env steps/s of the tabular agent against a plain Python Q-learning loop over the same environment.

    .venv/bin/python scripts/bench_tabular.py [SECONDS]

Both learn with the same rates and explore as much. They are measured in turn, five times, since shared machines change
from minute to minute. Ours is a whole run (choosing actions, stepping, learning, bookkeeping) from the end of its first
iteration on, when all processes are there, as the plain loop is timed when its environment is. As a table the env runs in
one process, as the plain loop does; stepped one by one on Ray, with a runner for each core.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from time import perf_counter

import gymnasium as gym
import numpy as np

from distrl import load_config, train
from distrl.execution.resources import cpu_count

LR, GAMMA, EPSILON = 0.1, 0.99, 0.1
SINGLE = ["env.vectorize=single", f"rollout.shards={cpu_count()}", "rollout.envs_per_shard=128", "rollout.steps=256"]
TASKS = {  # name: config, overrides, whether in one process
    "FrozenLake-v1, table": ("q_frozenlake", [], True),
    "Taxi-v4, table": ("q_taxi", [], True),
    "FrozenLake-v1, one by one": ("q_frozenlake", SINGLE, False),
    "Taxi-v4, one by one": ("q_taxi", SINGLE, False),
}


def plain_loop(env_id: str, seconds: float) -> float:
    """Q-learning as tutorials write it; env steps/s."""
    env = gym.make(env_id)
    q = np.zeros((env.observation_space.n, env.action_space.n))  # type: ignore[attr-defined]
    state, steps = env.reset(seed=0)[0], 0
    start = perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        action = env.action_space.sample() if random.random() < EPSILON else int(np.argmax(q[state]))
        after, reward, terminated, truncated, _ = env.step(action)
        best = 0.0 if terminated else np.max(q[after])
        q[state, action] += LR * (float(reward) + GAMMA * best - q[state, action])
        state = env.reset()[0] if terminated or truncated else after
        steps += 1
    return steps / elapsed


def ours(config: str, overrides: list[str], local: bool, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as directory:
        settings = [
            *("stop.env_steps=null", f"stop.seconds={seconds}", "evaluation.every=0", "evaluation.final_episodes=0"),
            *("checkpoint.every=0", "track.mlflow=false", "track.video=false", f"run_dir={directory}/run"),
            *(
                f"algorithm.lr={LR}",
                f"algorithm.gamma={GAMMA}",
                f"algorithm.epsilon={EPSILON}",
                "algorithm.visit_power=null",
            ),
        ]
        path = Path(__file__).parent.parent / "configs" / f"{config}.yaml"
        result = train(load_config(path, [*settings, *overrides]), local=local, quiet=True)
        rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    return float((rows[-1]["env_steps"] - rows[0]["env_steps"]) / (rows[-1]["time"] - rows[0]["time"]))


def main(seconds: float) -> None:
    for name, (config, overrides, local) in TASKS.items():
        pairs = [(plain_loop(name.split(",")[0], seconds), ours(config, overrides, local, seconds)) for _ in range(5)]
        plain, fast = (f"{np.median(side):,.0f}" for side in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        print(
            f"{name}: plain {plain}, distrl {fast} env steps/s; {np.median(ratios):.1f} times as many "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f}; medians of {len(pairs)})",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=5.0)
    main(**vars(parser.parse_args()))
