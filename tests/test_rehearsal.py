"""A cluster of several hosts on this machine, with the real `ray up`, and hosts that come and are lost; where that can be made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LOSSES = {"a worker's host lost", "a host added", "a link cut for 30 s", "the head lost"}
ASKED = os.environ.get("DISTRL_REHEARSAL", "")  # quick, or full
SCRIPT, ENVIRONMENT = ROOT / "scripts" / "rehearse_cluster.sh", {**os.environ, "PYTHON": sys.executable}
whole = pytest.mark.skipif(ASKED != "full", reason="takes a quarter of an hour: set DISTRL_REHEARSAL=full")


def rehearsed(*arguments: str, seconds: int) -> dict[str, Any]:
    """What it tells. Skips, with the reason, where it cannot be done."""
    command = [str(SCRIPT), *arguments, "--seconds", str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, timeout=seconds + 40, check=False
    )
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert all(cluster == laptop for cluster, laptop in told["sha256"].values())
    assert min(told["seconds"].values()) > 0
    return told


@pytest.mark.skipif(ASKED != "quick", reason="takes four minutes: set DISTRL_REHEARSAL=quick")
@pytest.mark.timeout(960)
def test_two_hosts_of_which_one_is_lost_have_the_weights_of_one_process() -> None:
    told = rehearsed("--quick", seconds=900)
    assert told["sha256"].keys() == {"ppo"} and told["steps lost"].keys() == {"a worker's host lost"}


@whole
@pytest.mark.timeout(3660)
def test_hosts_that_come_and_are_lost_leave_the_weights_of_one_process() -> None:
    told = rehearsed(seconds=3600)
    assert told["sha256"].keys() == {"ppo", "a2c", "dqn", "q"}
    assert told["steps lost"].keys() == LOSSES < told["seconds"].keys()


@whole
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_one_that_is_ended(ended_by: signal.Signals) -> None:
    there = set(Path("/var/tmp").glob("distrl-rehearsal-*"))
    with subprocess.Popen([str(SCRIPT)], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT) as script:
        while not (new := set(Path("/var/tmp").glob("distrl-rehearsal-*")) - there):
            if script.poll() == 77:
                pytest.skip("namespaces cannot be made here")
        [directory] = new
        while not (directory / "host3" / "sshd.log").exists():
            assert script.poll() is None
            time.sleep(0.1)
        script.send_signal(ended_by)
        script.wait(60)
    for _ in range(100):
        found = subprocess.run(["pgrep", "-f", directory.name], capture_output=True, text=True, check=False).stdout
        if not found:
            break
        time.sleep(0.1)
    assert found == ""
    if ended_by is signal.SIGKILL:  # nobody was left to take it away
        shutil.rmtree(directory)
    assert not directory.exists()
