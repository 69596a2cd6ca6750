"""Holding an algorithm on its device. The one worker that imports torch, for algorithms that need it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from distrl.errors import Diverged, UserError
from distrl.heartbeat import at_work
from distrl.learning.drawn import learn_from
from distrl.learning.normalise import make_algorithm
from distrl.learning.slices import Slices
from distrl.registry import algorithm_module
from distrl.settings import Config, LearnerSettings
from distrl.types import (
    Algorithm,
    Array,
    Arrays,
    Drawn,
    Fragment,
    OnPolicy,
    Origin,
    Policy,
    Told,
    Weights,
)
from distrl.workers.holding import HoldsReplays
from distrl.workers.leaving import can_be_left
from distrl.workers.versions import Message, Sender

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def gpu_count() -> int:
    """GPUs that torch can use in this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_device(wanted: str, gpus: float) -> Literal["cpu", "cuda"]:
    """What `learner.device` means where so many GPUs are free. Raises `UserError` where it cannot be had."""
    if wanted == "cuda" and gpus < 1:
        raise UserError(
            "learner.device is 'cuda', but there is no GPU here that this run could learn on. Set learner.device=cpu: the "
            "bits are then those of a CPU, also of a run that began on a GPU."
        )
    return "cuda" if wanted != "cpu" and gpus >= 1 else "cpu"


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed, where it is glibc; see mallopt(3).

    Else every batch of images, and every layer's output for it, comes as fresh pages from the kernel: up to a fifth of the
    time of an update.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**30)


def _set_up_torch(settings: LearnerSettings) -> torch.device:
    """Make torch's arithmetic a function of the settings; returns the device to learn on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    import torch

    _keep_freed_memory()
    torch.set_num_threads(settings.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings.precision == "fast"
    device = torch.device(choose_device(settings.device, 0 if settings.device == "cpu" else gpu_count()))
    if device.type == "cuda":  # on the CPU a fixed number of threads suffices, and this call takes 2 s
        torch.use_deterministic_algorithms(True)
    return device


@contextlib.contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Within, floating-point numbers too small to be normal (float32: below 1e-38) are 0, in torch as in NumPy.

    Adam's moments of a unit that has died become so small, and a processor takes many times as long for them. It holds
    for this thread and for those that torch starts within, which inherit it. Outside all is as it was: in one process the
    runners act in this thread too, and must compute what they compute in processes of their own.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@at_work
@can_be_left
class Learner(HoldsReplays):
    def __init__(self, config: Config, policy: Policy, state: Arrays | None, origin: Origin | None = None) -> None:
        """`state`: of the checkpoint to go on from; None: the beginning, which is `origin` or fresh weights."""
        module = algorithm_module(config.algorithm.name)
        device = self.device = _set_up_torch(config.learner) if module.NEEDS_TORCH else None
        self.arithmetic = _denormals_flushed if module.NEEDS_TORCH else contextlib.nullcontext
        with self.arithmetic():  # torch may start its threads here
            self.slices = Slices(config.learner.slices)
            self.algorithm: Algorithm = make_algorithm(config, policy, device, origin, self.slices)
        self.config, self.version = config, 0
        self.new_priorities: list[Told] = []  # of the newest update, by replay
        self.sender = Sender(config)
        if state is not None:
            self.version = int(state["version"])
            self.algorithm.load_state({k.removeprefix("algorithm."): v for k, v in state.items() if k != "version"})

    def weights(self) -> Weights:
        return Weights(self.version, self.algorithm.weights())

    def update(self, iteration: int, env_steps: int, *fragments: Fragment) -> tuple[Message, dict[str, float]]:
        """Learn from an iteration's fragments, in shard order.

        Args:
            env_steps: of training before this iteration
        Raises:
            Diverged: a loss or a weight is not finite; the state is then of no more use.
        """
        start = time.perf_counter()
        algorithm = cast(OnPolicy, self.algorithm)
        with self.arithmetic():
            metrics = algorithm.update(list(fragments), iteration, self.config.progress(env_steps))
        return self._updated(metrics, env_steps, start)

    def learn(self, iteration: int, env_steps: int, *drawn: Drawn) -> tuple[Message, dict[str, float]]:
        """Learn from what each replay drew for an iteration; else as `update`."""
        start, counted = time.perf_counter(), env_steps + self.config.rollout.env_steps
        progress = self.config.progress(env_steps)
        with self.arithmetic():
            metrics, self.new_priorities = learn_from(self.algorithm, drawn, counted, progress, self.joined)
        return self._updated(metrics, env_steps, start)

    def priorities(self, number: int) -> Told:
        """What became of the newest batch of replay `number`."""
        return self.new_priorities[number]

    def _updated(self, metrics: dict[str, float], env_steps: int, start: float) -> tuple[Message, dict[str, float]]:
        self.version += 1
        weights = self.weights()
        check_finite(f"update {self.version} at {env_steps} env steps", metrics, weights.vector)
        return self.sender.message(weights), metrics | {"learn_s": time.perf_counter() - start}

    def state(self) -> Arrays:
        """All that is needed to go on bit for bit after the newest update."""
        return {"version": np.array(self.version)} | {f"algorithm.{k}": v for k, v in self.algorithm.state().items()}


def check_finite(update: str, metrics: dict[str, float], vector: Array) -> None:
    """Raises `Diverged`, with what is known of the update, where a number or a weight is not finite."""
    bad = [
        name for name, value in metrics.items() if not math.isfinite(value) and not name.endswith("explained_variance")
    ]
    if bad or not np.isfinite(vector).all():
        what = ", ".join(f"{name} is {metrics[name]}" for name in bad) or "a weight is not finite"
        known = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        raise Diverged(f"{update}: {what} ({known})")
