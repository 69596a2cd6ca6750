"""Joining a Ray: one that is there, one that is closed to us, none, and what only seems to be one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from distrl.execution.cluster import RayExecution

SCRIPT = """
import json, sys, time
from distrl.errors import UserError
from distrl.execution import other_ray
from distrl.execution.cluster import RayExecution

other_ray.OUTSIDE_S = 2.0
for address in sys.argv[1:]:
    start = time.monotonic()
    try:
        execution = RayExecution(address, 0)
        said = f"{sum(node.cpus for node in execution.nodes()):g} CPUs"
        execution.close()
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - start]), flush=True)
"""


@pytest.fixture
def mute() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def join(*addresses: str, **environment: str) -> list[tuple[str, float]]:
    """What comes of joining each in turn, and the seconds that it took; nothing else is said."""
    outside = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *addresses],
        capture_output=True,
        text=True,
        timeout=200,
        env=outside | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_does_not_answer_is_refused_in_time(mute: str, ray_execution: RayExecution) -> None:
    """The Ray of the other tests here is closed to all but them; it is named, as other tests may run others beside it."""
    address = ray_execution.ray.get_runtime_context().gcs_address
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_ADDRESS": address}
    outcomes = join(mute, "127.0.0.1:1", "auto", "nowhere", "ray://127.0.0.1:1", **closed)
    for (said, seconds), part in zip(
        outcomes, ["nothing said within 2 s", "Connection refused", "its token", "HOST:PORT", "HOST:PORT"], strict=True
    ):
        assert part in said
        assert "Start one with 'ray start --head'" in said
        assert len(said.splitlines()) == 1
        assert seconds < 10


def test_a_ray_that_answers_is_joined(ray_execution: RayExecution) -> None:
    address = ray_execution.ray.get_runtime_context().gcs_address
    token = os.environ["RAY_AUTH_TOKEN"]
    start = time.monotonic()
    said = [said for said, _ in join(address, "auto", RAY_AUTH_TOKEN=token, RAY_ADDRESS=address)]
    assert [words.split()[1] for words in said] == ["CPUs", "CPUs"]
    assert time.monotonic() - start < 90
