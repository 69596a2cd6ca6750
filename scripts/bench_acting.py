"""Acting for images: distrl's NumPy against torch on one thread, by the milliseconds of a core that a batch takes; and
runners that act for their own copies, a process a core, against a central worker that acts for the copies of all of them.

The central worker is torch with a thread a core. It gets one batch of all runners' observations through shared memory, and
nothing else is done meanwhile on either side: no env is stepped.

Usage: .venv/bin/python scripts/bench_acting.py [--turns 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawArray
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from distrl.acting.network import Network, NetworkSpec, single_threaded
from distrl.acting.spaces import encoder_of
from distrl.execution.resources import cpu_count
from distrl.layouts import observation_layout
from distrl.learning.networks import make_network
from distrl.types import Array

COPIES = (4, 16, 64)
NETWORKS = {"small_cnn": (256,), "cnn": (512,)}  # hidden layers of each body
SHAPE = 4, 84, 84
SPAWN = get_context("spawn")


def milliseconds(what: Callable[[], Array], calls: int) -> float:
    """Of this process, a call."""
    start = time.process_time()
    for _ in range(calls):
        what()
    return (time.process_time() - start) / calls * 1e3


def shared(memory: Any, runners: int, copies: int) -> Array:
    """Observations of all runners, [runners, copies, *SHAPE]."""
    return np.frombuffer(memory, np.uint8).reshape(runners, copies, *SHAPE)


def runner(number: int, spec: NetworkSpec, weights: Array, memory: Any, sizes: tuple[int, int], turn: Any) -> None:
    """Give out observations and wait for what to do; or act itself.

    `turn`: the worker's semaphore, the runners', a barrier, how many calls, whether to ask the worker.
    """
    asked, told, begin, calls, central = turn
    single_threaded()
    network, place = Network(spec), shared(memory, *sizes)[number]
    network.load(weights)
    seen = np.random.default_rng(number).integers(0, 256, place.shape, dtype=np.uint8)
    network(seen)
    begin.wait()
    for _ in range(calls):
        if central:
            place[:] = seen
            asked.release()
            told[number].acquire()
        else:
            network(seen)
    begin.wait()


def per_second(spec: NetworkSpec, weights: Array, copies: int, calls: int, central: bool) -> float:
    """Observations/s of as many runners as cores."""
    runners = cpu_count()
    memory = RawArray("B", runners * copies * int(np.prod(SHAPE)))
    asked, told, begin = SPAWN.Semaphore(0), [SPAWN.Semaphore(0) for _ in range(runners)], SPAWN.Barrier(runners + 1)
    turn = asked, told, begin, calls, central
    processes = [
        SPAWN.Process(target=runner, args=(i, spec, weights, memory, (runners, copies), turn)) for i in range(runners)
    ]
    for process in processes:
        process.start()
    network, obs = make_network(spec, weights), torch.from_numpy(shared(memory, runners, copies)).flatten(0, 1)
    torch.set_num_threads(runners)
    with torch.inference_mode():
        network(obs)
        begin.wait()
        start = time.perf_counter()
        for _ in range(calls if central else 0):
            for _ in processes:
                asked.acquire()
            network(obs)
            for each in told:
                each.release()
        begin.wait()
    seconds = time.perf_counter() - start
    torch.set_num_threads(1)
    for process in processes:
        process.join()
    return runners * copies * calls / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each; the fastest counts")
    turns = parser.parse_args().turns
    single_threaded()
    torch.set_num_threads(1)
    (part,) = observation_layout(gym.spaces.Box(0, 255, SHAPE, np.uint8)).parts
    rng = np.random.default_rng(0)
    print("| network | copies | NumPy, ms | torch, ms | runners, /s | central, /s |\n|---|---|---|---|---|---|")
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
            rates = [
                [per_second(spec, weights, copies, calls, central) for central in (False, True)] for _ in range(turns)
            ]
            alone, central = np.median(rates, axis=0)
            print(
                f"| `{body}` | {copies} | {numpy_ms:.2f} | {torch_ms:.2f} | {alone:,.0f} | {central:,.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
