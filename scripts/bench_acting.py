"""Acting for images: distrl's NumPy against torch on one thread, by the milliseconds of a core that a batch takes.

What a batch costs for each of its observations, beside what it costs in a large one, tells what a central worker that acts
for the copies of all runners could save.

Usage: .venv/bin/python scripts/bench_acting.py [--turns 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch

from distrl.acting.network import Network, NetworkSpec, single_threaded
from distrl.acting.spaces import encoder_of
from distrl.layouts import observation_layout
from distrl.learning.networks import make_network
from distrl.types import Array

COPIES = (4, 16, 64)
NETWORKS = {"small_cnn": (256,), "cnn": (512,)}  # hidden layers of each body


def milliseconds(what: Callable[[], Array], calls: int) -> float:
    """Of this process, a call."""
    start = time.process_time()
    for _ in range(calls):
        what()
    return (time.process_time() - start) / calls * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each; the fastest counts")
    turns = parser.parse_args().turns
    single_threaded()
    torch.set_num_threads(1)
    (part,) = observation_layout(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)).parts
    rng = np.random.default_rng(0)
    print("| network | copies | NumPy, ms | torch, ms |\n|---|---|---|---|")
    for body, hidden in NETWORKS.items():
        spec = NetworkSpec((encoder_of(part, body),), 2, hidden, "relu")  # type: ignore[arg-type]
        ours, weights = Network(spec), spec.initial(rng, 0.01)
        ours.load(weights)
        theirs = make_network(spec, weights)
        for copies in COPIES:
            obs = rng.integers(0, 256, (copies, *part.shape), dtype=np.uint8)

            def by_torch(obs: Array = obs, network: torch.nn.Module = theirs) -> Array:
                with torch.inference_mode():
                    return network(torch.from_numpy(obs)).numpy()  # type: ignore[no-any-return]

            def by_numpy(obs: Array = obs, network: Network = ours) -> Array:
                return network(obs)

            np.testing.assert_allclose(by_numpy(), by_torch(), atol=1e-5)
            calls = max(4, 512 // copies)
            pairs = [(milliseconds(by_numpy, calls), milliseconds(by_torch, calls)) for _ in range(turns)]
            numpy_ms, torch_ms = (min(times) for times in zip(*pairs, strict=True))
            print(f"| `{body}` | {copies} | {numpy_ms:.2f} | {torch_ms:.2f} |", flush=True)


if __name__ == "__main__":
    main()
