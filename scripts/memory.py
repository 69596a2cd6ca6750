"""Is memory flat? Runs a config for some minutes and prints the memory of every kind of process as it goes.

Usage: .venv/bin/python scripts/memory.py configs/ppo_cartpole.yaml MINUTES
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import psutil

from distrl.tools.memory import process_memory


def main(config: str, minutes: float) -> None:
    with tempfile.TemporaryDirectory(prefix="memory-") as directory:
        command = [
            sys.executable,
            "-m",
            "distrl",
            "train",
            config,
            f"run_dir={directory}/run",
            "--quiet",
            "cluster.start=wait",
        ]
        limits = ["stop.return_mean=null", "stop.env_steps=100000000000", f"stop.seconds={60 * minutes}"]
        process = psutil.Popen([*command, *limits, "evaluation.every=500"])
        start = time.monotonic()
        while process.poll() is None:
            sizes: dict[str, float] = {}
            for name, size in process_memory(process).values():
                sizes[name] = sizes.get(name, 0.0) + size
            parts = ", ".join(f"{name} {size:.0f}" for name, size in sorted(sizes.items()))
            print(f"{time.monotonic() - start:6.0f} s  {sum(sizes.values()):6.0f} MB in all: {parts}", flush=True)
            time.sleep(min(15.0, 60 * minutes / 20))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("minutes", type=float)
    main(**vars(parser.parse_args()))
