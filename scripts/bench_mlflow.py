"""What it costs to log to MLflow, and how fast MLflow serves a registered model. Everything stays on loopback.

    python scripts/bench_mlflow.py [--seconds 30] [--requests 500]

Logging: rows of 10 metrics, 20 a second, as a run writes them, followed by the process that tells MLflow: into a SQLite
store, and to a server over HTTP. Told are the share of time that the writer spends on it, which is all that training
waits for, and the CPU time that the process (and the server) takes beside it, once it is up.

Serving: `mlflow models serve` on a model of CartPole that this trains and registers, one observation a request, one after
the other.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil

from distrl import train
from distrl.tracking.metrics import MetricsLog
from distrl.tracking.mlflow import MlflowTracker
from distrl.tracking.registry import register
from distrl.tracking.ui import running, serve, wait_until_ready
from distrl.tracking.where import read_json

METRICS, ROWS_PER_S = 10, 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def log(run_dir: Path, uri: str, seconds: float, server: subprocess.Popen[bytes] | None) -> str:
    run_dir.mkdir()
    rows, values = MetricsLog(run_dir / "metrics.jsonl"), np.random.default_rng(0).random(METRICS).tolist()
    tracker = MlflowTracker.start(run_dir, uri, "bench", {}, {}, run_dir.name)
    while not read_json(run_dir / "mlflow.json"):  # importing mlflow takes seconds, once a run
        time.sleep(0.1)
    beside = [process for process in psutil.Process().children() if "distrl.tracking" in process.cmdline()]
    if server is not None:
        beside += [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    began, before, waited, count = time.perf_counter(), cpu_s(beside), 0.0, int(seconds * ROWS_PER_S)
    for k in range(count):
        time.sleep(max(0.0, began + k / ROWS_PER_S - time.perf_counter()))
        row = {f"train/metric_{i}": value for i, value in enumerate(values)}
        start = time.perf_counter()
        rows.append({"iteration": k, "env_steps": k * 1024, "time": time.time(), **row})
        tracker.poll()
        waited += time.perf_counter() - start
    took, used = time.perf_counter() - began, cpu_s(beside) - before
    rows.close()
    start = time.perf_counter()
    behind = tracker.finish("FINISHED", 120)
    return (
        f"{count:,} rows of {METRICS} metrics in {took:.0f} s: the run waited {waited / took:.3%} of the time, beside it "
        f"{used / took:.1%} of a core were used, {time.perf_counter() - start:.1f} s at the end"
        f"{'' if behind is None else '; ' + behind}"
    )


def ask(home: Path, requests: int) -> str:
    config = {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}, "stop": {"env_steps": 20480}}
    run = train({**config, "track": {"video": False}, "run_dir": str(home / "run")}, local=True, quiet=True)
    os.environ["MLFLOW_TRACKING_URI"] = read_json(run.run_dir / "track.json")["uri"]
    registered = register(run.run_dir, "cartpole")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", registered.uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of uvicorn
    os.environ["PATH"] = path
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", b'{"inputs": [[0.0, 0.1, 0.0, -0.1]]}')
    request.add_header("Content-Type", "application/json")
    times = []
    with tempfile.TemporaryFile() as said, running(command, {}, said) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}/ping", said)
        for _ in range(requests + 20):
            start = time.perf_counter()
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert len(json.load(answer)["predictions"]) == 1
            times.append(1e3 * (time.perf_counter() - start))
    half, last = np.percentile(times[20:], [50, 99])
    return f"{1e3 * requests / sum(times[20:]):.0f} requests/s one after the other; {half:.1f} ms (50 %), {last:.1f} ms (99 %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--requests", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        print("SQLite:", log(home / "sqlite", f"sqlite:///{home}/mlflow.db", args.seconds, None), flush=True)
        with serve(f"sqlite:///{home}/served.db", port := free_port()) as server:
            print("HTTP:", log(home / "http", f"http://127.0.0.1:{port}", args.seconds, server), flush=True)
        print("serving:", ask(home, args.requests), flush=True)


if __name__ == "__main__":
    main()
