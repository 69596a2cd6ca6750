"""Do more runners collect in proportion? One runner against many, on an env whose step takes 5 ms of sleep.

Usage: .venv/bin/python scripts/scale.py [RUNNERS]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

STEP_S = 0.005


class Sleeping(CartPoleEnv):
    def step(self, action: Any) -> Any:
        time.sleep(STEP_S)
        return super().step(action)


if "Sleeping-v0" not in gym.registry:
    gym.register("Sleeping-v0", Sleeping, max_episode_steps=100)


def rate(runners: int, shards: int, iterations: int) -> float:
    """env steps/s once all runners are at work."""
    from distrl import load_config, train

    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "run_dir": f"{directory}/run",
            "env": {"id": "scale:Sleeping-v0"},
            "algorithm": {"name": "ppo", "minibatch_size": shards * 128, "epochs": 1},
            "rollout": {"shards": shards, "envs_per_shard": 4, "steps": 32},
            "stop": {"env_steps": shards * 128 * iterations},
            "evaluation": {"every": 0, "final_episodes": 0},
            "cluster": {"runners": runners, "start": "wait"},
            "track": {"mlflow": False, "video": False},
        }
        result = train(load_config(settings), quiet=True)
        rows = [json.loads(line) for line in (Path(result.run_dir) / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[len(rows) // 3], rows[-1]
    return float((last["env_steps"] - first["env_steps"]) / (last["time"] - first["time"]))


def main(runners: int) -> None:
    one, many = rate(1, runners, 4), rate(runners, runners, 30)
    print(
        f"1 runner {one:,.1f} env steps/s, {runners} runners {many:,.1f}: {many / (runners * one):.1%} of {runners} times one"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runners", type=int, nargs="?", default=32)
    main(**vars(parser.parse_args()))
