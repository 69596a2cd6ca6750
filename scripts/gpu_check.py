"""What a GPU does for distrl: whether bits repeat there, updates/s against a bare torch loop, Flappy Bird from pixels.

scripts/gpu_check.sh starts it. Everything goes to one JSON file, part by part, so that what was found stays whatever happens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from distrl import load_config
from distrl.acting.network import single_threaded
from distrl.acting.spaces import network_spec
from distrl.envs.make import describe_env
from distrl.execution.resources import cpu_count
from distrl.learning.networks import Network
from distrl.registry import algorithm_module
from distrl.seeding import stream
from distrl.settings import Config
from distrl.tools.verify import TRIALS, verify
from distrl.types import Array, Fragment
from distrl.workers.learner import Learner
from distrl.workers.replay import Replay
from distrl.workers.runner import Runner

PIXELS = {"dqn": "dqn_flappy_pixels", "ppo": "ppo_flappy_pixels"}
SHORT = ["stop.return_mean=null", "evaluation.every=0", "evaluation.final_episodes=0"]
BITS = {  # a network of two layers, and one of convolutions with a replay
    "ppo_cartpole": [*SHORT, "stop.env_steps=40960"],
    "dqn_flappy_pixels": [
        *SHORT,
        "stop.env_steps=2560",
        "replay.start=640",
        "replay.capacity=4000",
        "algorithm.epsilon.over=2560",
    ],
}
REPEATED = ("in one process", "Ray, 2 runners", "the learner killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 256, 2048])
    parser.add_argument("--parts", nargs="+", default=["bits", "updates", "training"])
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"machine": machine(arguments.device)}

    print(json.dumps(found["machine"]), flush=True)
    jobs: dict[str, dict[str, Callable[[], Any]]] = {
        "bits": {preset: partial(bits, preset, arguments.device) for preset in BITS},
        "updates": {
            f"{algorithm}, batch {size}": partial(updates, algorithm, arguments.device, size)
            for algorithm in PIXELS
            for size in arguments.batches
        },
        "training": {PIXELS["dqn"]: lambda: training(arguments.device, until)},
    }
    for part in arguments.parts:
        found[part] = {}
        for name, job in jobs[part].items():
            start = time.monotonic()
            try:
                result = job()
            except Exception as error:  # the others are worth having
                result = {"failed": f"{type(error).__name__}: {error}"}
            found[part][name] = result | {"seconds": round(time.monotonic() - start, 1)}
            print(part, name, json.dumps(found[part][name]), flush=True)
            arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"gpu": gpu, "cuda": torch.version.cuda, "torch": torch.__version__, "cores": cpu_count()}


def bits(preset: str, device: str) -> dict[str, Any]:
    """The sha256 of the weights of a short run, by how it was done; the first way twice."""
    config = load_config(preset, [*BITS[preset], f"learner.device={device}"])
    trials = [trial for trial in TRIALS if trial.name in REPEATED]
    again = replace(trials[0], name=f"{trials[0].name}, again")
    found = {v.trial.name: v.weights_sha256 for v in verify(config, (*trials, again))}
    return {"the same": len(set(found.values())) == 1} | found


def updates(algorithm: str, device: str, batch: int) -> dict[str, Any]:
    """Updates/s on batches of images that lie ready, of distrl's learner and of a bare loop with the same network."""
    single_threaded()
    ours, bare, *held = MEASURED[algorithm](_config(algorithm, device, batch))
    found = {"distrl_per_s": round(1 / ours, 1), "bare_per_s": round(1 / bare, 1), "ratio": round(bare / ours, 3)}
    return found | ({"held_per_s": round(1 / held[0], 1)} if held else {})


def _config(algorithm: str, device: str, batch: int) -> Config:
    size = "algorithm.minibatch_size" if algorithm == "ppo" else "algorithm.batch_size"
    more = (
        ["rollout.steps=128", "algorithm.epochs=1"]
        if algorithm == "ppo"
        else [f"replay.start={max(batch, 100)}", "replay.capacity=8000"]
    )
    return load_config(PIXELS[algorithm], [*more, f"{size}={batch}", f"learner.device={device}"])


def _rolled(config: Config) -> tuple[Learner, list[Fragment]]:
    """A learner, and an iteration of the env."""
    policy = algorithm_module(config.algorithm.name).make_policy(config.algorithm, describe_env(config.env))
    learner, runner = Learner(config, policy, None), Runner(config.env, config.rollout, config.seed, policy)
    weights = learner.weights()
    return learner, [runner.rollout(shard, 0, weights, None)[1] for shard in range(config.rollout.shards)]


def _dqn(config: Config) -> tuple[float, float, float]:
    """Of the learner, of the loop, and of the learner where what the replay holds lies on the device."""
    size, count = config.algorithm.replayed.batch_size, 8  # type: ignore[union-attr]
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"steps": 192})})
    learner, fragments = _rolled(config)
    assert config.replay is not None
    drawing = config.replay.model_copy(update={"samples_per_insert": float(count), "start": 1})
    replay = Replay(config.model_copy(update={"replay": drawing}), 0, None)
    replay.add(*fragments)
    replay.settled = replay.inserted - size
    batch = replay.sample(0, 0)
    ours = _seconds(lambda: learner.learn(0, 0, batch)) / len(batch.key)
    replay.settled = replay.inserted - size
    by_row = replay.sample(0, 0, True)
    learner.learn(0, 0, by_row)
    assert by_row.fresh is not None
    nothing = replace(by_row.fresh, at=by_row.fresh.at[:0], rows=by_row.fresh.rows[:0])
    by_row = replace(by_row, fresh=nothing)
    held = _seconds(lambda: learner.learn(0, 0, by_row)) / len(batch.key)
    obs, next_obs = (torch.tensor(x[0], device=learner.algorithm.device) for x in (batch.obs, batch.next_obs))  # type: ignore[attr-defined]
    action, reward = (torch.tensor(x[0], device=obs.device) for x in (batch.action, batch.reward))
    online, target = _network(config, 2, obs.device), _network(config, 2, obs.device)
    optimizer = torch.optim.Adam(online.parameters(), fused=True)

    def step() -> None:
        with torch.no_grad():
            best = online(next_obs).argmax(1, keepdim=True)
            y = reward + 0.99 * target(next_obs).gather(1, best).squeeze(1)
        loss = functional.huber_loss(online(obs).gather(1, action[:, None]).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return ours, _seconds(step), held


def _ppo(config: Config) -> tuple[float, float]:
    learner, fragments = _rolled(config)
    metrics: dict[str, float] = {}
    ours = _seconds(lambda: metrics.update(learner.update(0, 0, *fragments)[1]))
    ours /= metrics["minibatches"]
    device = learner.algorithm.device  # type: ignore[attr-defined]
    size = config.algorithm.minibatch_size  # type: ignore[attr-defined]
    shape = (size, 4, 84, 84)
    obs = torch.tensor(stream(0, "check").integers(0, 256, shape).astype("uint8"), device=device)
    network = _network(config, 3, device)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        out = network(obs)
        log_prob = torch.log_softmax(out[:, :2], 1)
        ratio = (log_prob[:, 0] - log_prob[:, 0].detach()).exp()
        loss = -torch.min(ratio, ratio.clamp(0.8, 1.2)).mean() + out[:, 2].square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return ours, _seconds(step)


MEASURED: dict[str, Callable[[Config], tuple[float, ...]]] = {"dqn": _dqn, "ppo": _ppo}


def _network(config: Config, outputs: int, device: torch.device) -> Network:
    algorithm: Any = config.algorithm
    spec = network_spec(describe_env(config.env), outputs, **algorithm.of_network)
    weights: Array = spec.initial(stream(0, "check"), head_gain=1.0)
    return Network(spec, weights).to(device)


def _seconds(call: Callable[[], Any], most: float = 2.0) -> float:
    """Mean seconds of a call after the first two, the device's work included."""
    for _ in range(2):
        call()
    _wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < most:
        call()
        count += 1
        if count % 8 == 0:
            _wait()
    _wait()
    return (time.perf_counter() - start) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training(device: str, until: float) -> dict[str, Any]:
    """Train the DQN from pixels in the time that is left, and say what it came to."""
    left = until - time.monotonic() - 90  # for the start, the final evaluation and the end
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        run_dir = Path(temporary) / "run"
        command = [sys.executable, "-m", "distrl", "train", PIXELS["dqn"], "--quiet", f"run_dir={run_dir}"]
        limits = [
            f"stop.seconds={max(10.0, left):.0f}",
            f"learner.device={device}",
            "track.mlflow=false",
            "track.video=false",
            "cluster.start=wait",
        ]
        short = ["evaluation.episodes=4", "evaluation.final_episodes=16", "evaluation.max_episode_steps=2000"]
        subprocess.run([*command, *limits, *short], check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    main()
