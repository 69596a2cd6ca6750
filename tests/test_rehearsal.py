"""A cluster of several hosts on this machine, with the real `ray up`, and hosts that come and are lost; where that can be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOSSES = {"a worker's host lost", "a host added", "a link cut for 30 s", "the head lost"}


@pytest.mark.skipif("DISTRL_REHEARSAL" not in os.environ, reason="takes ten minutes and more: set DISTRL_REHEARSAL=1")
@pytest.mark.timeout(2460)
def test_hosts_that_come_and_are_lost_leave_the_weights_of_one_process() -> None:
    script = [str(ROOT / "scripts" / "rehearse_cluster.sh"), "--seconds", "2400"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(script, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=2440, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["sha256"]) == 2 and len(set(told["sha256"].values())) == 1
    assert told["steps lost"].keys() == LOSSES < told["seconds"].keys() and min(told["seconds"].values()) > 0
    assert not [*Path("/var/tmp").glob("distrl-rehearsal-*")]
