"""Waiting on a cluster until what a run asks for is free; where the cluster grows by itself, this is what it grows for.

python -m distrl.execution.room '[{"CPU": 1}, {"GPU": 1}]' SECONDS
"""

from __future__ import annotations

import json
import sys
import time

from distrl.execution.resources import counted

FULL = 2  # exit code, as of `UserError`


def main() -> int:
    """Returns the exit code: 0 as soon as everything has been free at once."""
    import ray
    from ray.util import placement_group, remove_placement_group

    parts, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
    deadline = time.monotonic() + seconds
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    asked = counted(parts)
    group = placement_group(parts)  # a request, which autoscalers see
    told = False
    while not group.wait(min(5.0, max(0.1, deadline - time.monotonic()))):
        free = {kind: ray.available_resources().get(kind, 0) for kind in ("CPU", "GPU")}
        now = f"{free['CPU']:g} CPUs and {free['GPU']:g} GPUs are free"
        if time.monotonic() >= deadline:
            print(
                f"error: the run needs {asked} at once, and after {seconds:.0f} s {now}. Wait for other jobs or end one, give the cluster "
                "more machines, or ask for less: cluster.runners, cluster.cpus_per_runner, learner.device.",
                file=sys.stderr,
            )
            return FULL
        if not told:
            print(f"waiting for {asked}, up to {seconds:.0f} s; {now}", file=sys.stderr, flush=True)
            told = True
    remove_placement_group(group)
    return 0


if __name__ == "__main__":
    sys.exit(main())
