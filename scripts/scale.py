"""Do more runners collect in proportion, and what does each cost the driver? An env whose step takes 5 ms of sleep, each
runner a shard of 4 copies, fragments of 32 steps. Points are measured; of those that leave half of the cores free a model is
made, which says what limits any number of runners (.github/SCALE.md), and is held against the others.

Usage: .venv/bin/python scripts/scale.py [RUNNERS ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

STEP_S, COPIES, STEPS, ITERATIONS = 0.005, 4, 32, 40


class Sleeping(CartPoleEnv):
    def step(self, action: Any) -> Any:
        time.sleep(STEP_S)
        return super().step(action)


if "Sleeping-v0" not in gym.registry:
    gym.register("Sleeping-v0", Sleeping, max_episode_steps=100)


@dataclass(frozen=True)
class Point:
    """Medians over the iterations of a run, in ms."""

    runners: int
    iteration_ms: float
    driver_ms: float  # of which the driver works
    learn_ms: float  # beside it
    cpu_ms: float  # that one fragment takes a runner, sleep left out

    @property
    def rate(self) -> float:
        """env steps/s."""
        return 1e3 * self.runners * COPIES * STEPS / self.iteration_ms


@dataclass(frozen=True)
class Model:
    """An iteration takes as long as the longest of what goes on side by side."""

    fragment_ms: float  # one runner's, alone
    driver_ms: tuple[float, float]  # of an iteration, and of each of its fragments
    learn_ms: tuple[float, float]  # likewise
    cpu_ms: float  # of the runners' machines, for each fragment

    def parts(self, runners: int, cpus: int) -> dict[str, float]:
        return {
            "fragment": self.fragment_ms,
            "driver": self.driver_ms[0] + runners * self.driver_ms[1],
            "learner": self.learn_ms[0] + runners * self.learn_ms[1],
            "cpus": runners * (self.cpu_ms + self.driver_ms[1] + self.learn_ms[1]) / cpus,
        }


def fit(points: list[Point], cpus: int) -> Model:
    """Of points that leave half of the cores free: elsewhere driver and learner mostly wait for a core."""
    one = points[0]
    points = [point for point in points if point.runners * one.cpu_ms <= cpus * one.iteration_ms / 2]
    runners = [point.runners for point in points]

    def line(values: list[float]) -> tuple[float, float]:
        slope, start = np.polyfit(runners, values, 1)
        return float(start), float(slope)

    return Model(
        points[0].iteration_ms,
        line([point.driver_ms for point in points]),
        line([point.learn_ms for point in points]),
        statistics.median(point.cpu_ms for point in points),
    )


def settings(runners: int, directory: str) -> dict[str, Any]:
    return {
        "run_dir": f"{directory}/run",
        "env": {"id": "scale:Sleeping-v0"},
        "algorithm": {"name": "ppo", "minibatch_size": runners * COPIES * STEPS, "epochs": 1},
        "rollout": {"shards": runners, "envs_per_shard": COPIES, "steps": STEPS},
        "stop": {"env_steps": runners * COPIES * STEPS * ITERATIONS},
        "evaluation": {"every": 0, "final_episodes": 0},
        "checkpoint": {"every": 1000},
        "cluster": {"runners": runners, "start": "wait"},
        "track": {"mlflow": False, "video": False},
    }


def measure(runners: int) -> Point:
    from distrl import load_config, train

    with tempfile.TemporaryDirectory() as directory:
        result = train(load_config(settings(runners, directory)), quiet=True)
        lines = (Path(result.run_dir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][ITERATIONS // 4 :]
    gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(rows)]
    awake = [row["time/act_s"] + row["time/step_s"] - runners * STEPS * COPIES * STEP_S for row in rows]
    return Point(
        runners,
        1e3 * statistics.median(gaps),
        1e3 * statistics.median(row["time/driver_s"] for row in rows),
        1e3 * statistics.median(row["time/learn_s"] for row in rows),
        1e3 * statistics.median(awake) / runners,
    )


def sizes() -> dict[str, int]:
    """Bytes of what travels: a fragment to the learner, its report to the driver, a version of the weights to each node."""
    from distrl import load_config
    from distrl.acting.make import initial_weights, make_policy
    from distrl.envs.make import describe_env
    from distrl.types import Weights
    from distrl.workers.runner import Runner

    config = load_config(settings(1, "."))
    policy = make_policy(config, describe_env(config.env))
    weights = Weights(0, initial_weights(config, policy))
    runner = Runner(config.env, config.rollout, config.seed, policy)
    report, fragment = runner.rollout(0, 0, weights, None)
    things = {"a fragment": fragment, "a report": report, "a version of the weights": weights}
    return {name: len(pickle.dumps(thing, protocol=5)) for name, thing in things.items()}


def main(runners: list[int]) -> None:
    cpus = len(os.sched_getaffinity(0))
    points = []
    for count in runners:
        points.append(point := measure(count))
        share = point.rate / (count * points[0].rate / points[0].runners)
        print(
            f"{count:4} runners: {point.rate:8,.0f} env steps/s, {share:5.0%} of {count} times one; an iteration {point.iteration_ms:6.0f} ms; "
            f"driver {point.driver_ms:5.1f} ms, {point.driver_ms / count:5.2f} a fragment; learner {point.learn_ms:5.1f} ms",
            flush=True,
        )
    told: dict[str, Any] = {"cpus": cpus, "points": [asdict(point) for point in points], "bytes": sizes()}
    if len(points) > 2:
        model = fit(points, cpus)
        predicted = {point.runners: max(model.parts(point.runners, cpus).values()) for point in points}
        told |= {"model": asdict(model), "predicted_ms": predicted}
    print(json.dumps(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runners", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    main(**vars(parser.parse_args()))
