"""`distrl doctor`: is this machine ready?"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.text import Text

from distrl.errors import UserError
from distrl.execution.resources import cpu_count
from distrl.models.store import versions
from distrl.settings import Config


def examine(out: Console) -> bool:
    """Print what is here and what is wrong; False where something that training needs does not work."""
    from distrl.config import load_config

    config = load_config({"env": {"id": "CartPole-v1"}, "algorithm": {"name": "ppo"}})
    checks: list[tuple[str, Callable[[Config], str]]] = [
        ("versions", lambda _: ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("cores, memory", lambda _: f"{cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.1f} GiB"),
        ("shared memory", _shared_memory),
        ("torch", _torch),
        ("GPU", _gpu),
        ("environments", _environments),
        ("Ray", _ray),
        ("MLflow", _mlflow),
    ]
    healthy = True
    for name, check in checks:
        try:
            out.print(Text.assemble(("ok", "green"), f"      {name}: {check(config)}"))
        except Exception as error:
            healthy = False
            out.print(Text.assemble(("broken", "bold red"), f"  {name}: {str(error).strip() or type(error).__name__}"))
    return healthy


def _shared_memory(config: Config) -> str:
    if not Path("/dev/shm").is_dir():
        return "no /dev/shm; Ray uses the temporary directory, which is slower"
    free = shutil.disk_usage("/dev/shm").free / 2**30
    return f"{free:.1f} GiB free in /dev/shm" + (
        "" if free > 1 else ": little; give a container more with --shm-size=2g"
    )


def _torch(config: Config) -> str:
    import torch

    # The fused step is part of the arithmetic, and no public part of torch.
    return f"{torch.__version__}, {'with' if hasattr(torch, '_fused_adam_') else 'without'} a fused step of Adam"


def _gpu(config: Config) -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if shutil.which("nvidia-smi"):
        found = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        ).stdout.strip()
        if found:
            raise UserError(
                f"{found}, but this torch ({torch.__version__}) cannot use it: install a CUDA build of torch"
            )
    return "none; the learner uses the CPU"


def _environments(config: Config) -> str:
    from distrl.envs.make import describe_env
    from distrl.settings import EnvSettings

    ids = ("CartPole-v1", "LunarLander-v3", "FlappyBird-v0")
    for env_id in ids:
        describe_env(EnvSettings(id=env_id))
    return ", ".join(ids) + " can be made"


def _ray(config: Config) -> str:
    from distrl.execution.cluster import RayExecution

    start = time.perf_counter()
    execution = RayExecution("local", 128 * 2**20)
    took = time.perf_counter() - start
    execution.close()
    other = os.environ.get("RAY_ADDRESS")
    return f"started and stopped; starting took {took:.1f} s" + (f"; RAY_ADDRESS is {other}" if other else "")


def _mlflow(config: Config) -> str:
    from distrl.tracking.where import check_tracking, tracking_uri

    with tempfile.TemporaryDirectory() as directory:
        uri = tracking_uri(config, Path(directory) / "run")
        check_tracking(uri)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    return "the tracking server of MLFLOW_TRACKING_URI answers" if server else "runs go to a SQLite store beside them"
