"""Event files, read back record by record."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE
from tensorboardX.proto.event_pb2 import Event

from distrl import train
from distrl.tracking.metrics import read_metrics


def events(directory: Path) -> dict[tuple[str, int], list[float]]:
    """Values by name and step. A record is its length (8 bytes), 4 of checksum, the event, 4 of checksum."""
    found: dict[tuple[str, int], list[float]] = {}
    for path in directory.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def expected(run: Path) -> dict[tuple[str, int], list[float]]:
    """What metrics.jsonl and result.json hold, as single precision has it."""
    single = lambda x: struct.unpack("f", struct.pack("f", x))[0]
    points: dict[tuple[str, int], list[float]] = {}
    for row in read_metrics(run / "metrics.jsonl"):
        for name, value in row.items():
            if name in ("time", "env_steps", "evaluation/env_steps") or (
                name == "iteration" and "train/episodes" not in row  # none: an evaluation at the end
            ):
                continue
            step = row["evaluation/env_steps"] if name.startswith("evaluation/") else row["env_steps"]
            points.setdefault((name, int(step)), []).append(single(value))
    final = json.loads((run / "result.json").read_text())["evaluation"]
    points["final/return_mean", final["env_steps"]] = [single(final["mean"])]
    return points


def test_events_are_the_metrics_also_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    track: dict[str, Any] = {"mlflow": False, "video": False, "tensorboard": True}
    config = {**CARTPOLE, "track": track, "run_dir": str(tmp_path / "run")}

    class Stop:
        def on_iteration(self, row: dict[str, float]) -> None:
            if row["iteration"] == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, local=True, quiet=True, callbacks=[Stop()])
    first = events(tmp_path / "run" / "tensorboard")
    assert ("train/return_mean", 256 * 8) in first
    with (tmp_path / "run" / "tensorboard" / "events.out.tfevents.0.killed").open("wb") as file:
        file.write(b"half a record")  # of a process that was killed
    result = train(config, local=True, quiet=True, resume=tmp_path / "run")
    found = events(result.run_dir / "tensorboard")
    wanted = expected(result.run_dir)
    assert {key: found[key] for key in wanted} == wanted
    assert {name.partition("/")[0] for name, _ in found.keys() - wanted.keys()} == {"final"}
