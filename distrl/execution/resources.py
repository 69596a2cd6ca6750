"""Who gets which CPUs and GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass

from distrl.errors import UserError
from distrl.settings import Config


@dataclass(frozen=True)
class Resources:
    """What the workers of a run are given."""

    runners: int
    cpus_per_runner: float = 0
    learner_cpus: float = 0
    learner_gpus: float = 0


RUNNERS_PER_CPU = 32  # more processes than that on a core are a mistake


def share_out(config: Config, cpus: float) -> Resources:
    """Share the CPUs and GPUs of a cluster among the workers of a run whose `learner.device` is chosen.

    Raises:
        UserError: the config asks for more than there is.
    """
    cluster, shards = config.cluster, config.rollout.shards
    if cpus <= 0:
        raise UserError(f"No CPU is free on the cluster at {cluster.address!r}. Wait for its other jobs, or end one.")
    wanted = min(shards, max(1, int(cpus))) if cluster.runners == "auto" else cluster.runners
    each = cluster.cpus_per_runner
    if each is not None and wanted * each > cpus:
        raise UserError(
            f"cluster.runners={wanted} at cluster.cpus_per_runner={each:g} need {wanted * each:g} CPUs; {cpus:g} are free. "
            f"Lower one of them; they change only the speed."
        )
    if wanted > RUNNERS_PER_CPU * cpus:
        raise UserError(
            f"cluster.runners={wanted} is more than {RUNNERS_PER_CPU} processes on each of the {cpus:g} CPUs here. "
            f"Set at most {int(RUNNERS_PER_CPU * cpus)}, or 'auto'; it changes only the speed."
        )
    runners = min(wanted, shards)
    learner_gpus = float(config.learner.device == "cuda")
    if each is not None:
        return Resources(runners, each, 0, learner_gpus)
    unit = int(10_000 * min(1.0, cpus / (runners + config.learner.threads))) / 10_000  # Ray counts in ten-thousandths
    return Resources(runners, unit, unit * config.learner.threads, learner_gpus)


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
