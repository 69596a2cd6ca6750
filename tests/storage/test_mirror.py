"""In which order a run is copied: at no moment is there a checkpoint that cannot be resumed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import CARTPOLE, config_of, run_trainer

from distrl.execution.local import LocalExecution
from distrl.files import write_text
from distrl.models.store import list_checkpoints
from distrl.storage.fetch import fetch_run
from distrl.storage.mirror import Mirror
from distrl.storage.place import Place
from distrl.stores import Store
from distrl.tracking.metrics import MetricsLog, read_metrics
from distrl.training.checkpoint import read_checkpoint, read_checkpoint_config


class Torn(Place):
    """A store that is gone after so many calls."""

    def __init__(self, store: Store, calls: float) -> None:
        super().__init__(store)
        self.calls = calls

    def _count(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise OSError("the store is gone")

    def write(self, name: str, file: IO[bytes]) -> None:
        self._count()
        super().write(name, file)

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)

    def delete_directory(self, name: str) -> None:
        self._count()
        super().delete_directory(name)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run's directory at three moments: its newest checkpoints are 3, then 6, then 9 to 12."""
    stages = []
    run_dir = tmp_path_factory.mktemp("stages") / "run"
    for number, iterations in enumerate((3, 6, 12)):
        config = config_of(CARTPOLE, f"stop.env_steps={256 * iterations}", "checkpoint.keep=2")
        start = list_checkpoints(run_dir)[-1] if number else None
        outcome = run_trainer(config, LocalExecution(), run_dir, start=start)
        write_text(run_dir / "config.yaml", config.to_yaml())
        log = MetricsLog(run_dir / "metrics.jsonl")
        for row in outcome.observer.rows:
            log.append(row)
        log.close()
        stages.append(shutil.copytree(run_dir, run_dir.with_name(f"stage{number}")))
    return stages


def whole(store: Path) -> list[Path]:
    """The checkpoints there, each of which holds what was written, and no row that it has counted is missing."""
    found = [path.parent for path in sorted(store.glob("checkpoints/*/manifest.json"))]
    for path in found:
        read_checkpoint_config(path)
        iterations = [int(row["iteration"]) for row in read_metrics(store / "metrics.jsonl")]
        assert sorted({*iterations}) == [*range(max(iterations) + 1)]
        assert max(iterations) + 1 >= read_checkpoint(path, 4).progress.iteration
    return found


def test_wherever_it_is_torn_the_newest_whole_checkpoint_stays(stages: list[Path], tmp_path: Path) -> None:
    torn = 0
    for calls in range(60):
        run_dir, kept = tmp_path / f"{calls}" / "run", tmp_path / f"{calls}" / "store" / "run"
        newest, before = "", torn
        for stage in stages:
            shutil.rmtree(run_dir, ignore_errors=True)
            shutil.copytree(stage, run_dir)
            try:
                Mirror(run_dir, Torn(Store("file", str(kept)), calls), keep=2).copy()
            except OSError:
                torn += 1
                found = whole(kept)
                assert max((path.name for path in found), default="") >= newest
            Mirror(run_dir, Place(Store("file", str(kept))), keep=2).copy()
            newest = whole(kept)[-1].name
            assert newest == list_checkpoints(run_dir)[-1].name
            assert len(whole(kept)) <= 2
        if torn == before:
            break
    else:
        pytest.fail("it was torn everywhere")
    assert torn > 20


def test_what_is_there_is_not_sent_again(stages: list[Path], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(stages[2], tmp_path / "run"))
    place = Torn(Store("file", str(tmp_path / "store" / "run")), 10**6)
    mirror = Mirror(run_dir, place, keep=2)
    mirror.copy()
    before = place.calls
    mirror.copy()
    assert place.calls == before
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 12, "env_steps": 1, "time": 1}) + "\n")
    mirror.copy()
    assert place.calls == before - 1
    Mirror(run_dir, place, keep=2).copy()  # of a run that goes on: its checkpoint is there, the small files are sent
    assert place.calls == before - 1 - len(
        [p for p in run_dir.rglob("*") if p.is_file() and "checkpoints" not in p.parts]
    )


def test_a_checkpoint_that_was_written_anew_is_copied_anew(stages: list[Path], tmp_path: Path) -> None:
    """As by a run that went back: the same state, but other times in it."""
    run_dir, kept = Path(shutil.copytree(stages[0], tmp_path / "run")), tmp_path / "store" / "run"
    mirror = Mirror(run_dir, Place(Store("file", str(kept))), keep=2)
    mirror.copy()
    path = list_checkpoints(run_dir)[-1]
    shutil.rmtree(path)
    config = config_of(CARTPOLE, "stop.env_steps=768", "checkpoint.keep=2", "cluster.restarts=7")
    run_trainer(config, LocalExecution(), run_dir)
    mirror.copy()
    assert (kept / "checkpoints" / path.name / "manifest.json").read_bytes() == (path / "manifest.json").read_bytes()
    assert [p.name for p in whole(kept)] == [path.name]


def test_a_run_is_brought_back_without_what_is_broken(stages: list[Path], tmp_path: Path) -> None:
    kept = tmp_path / "store" / "run"
    for stage in stages[1:]:
        Mirror(stage, Place(Store("file", str(kept))), keep=2).copy()
    numbers = [path.name for path in whole(kept)]
    assert len(numbers) == 2
    (kept / "checkpoints" / numbers[1] / "driver.npz").write_bytes(b"torn")
    (kept / "best" / "policy.safetensors").write_bytes(b"torn")
    said: dict[str, Any] = fetch_run(Store("file", str(kept)), tmp_path / "here" / "run")
    assert said == {"checkpoint": numbers[0]}
    here = tmp_path / "here" / "run"
    assert [path.name for path in list_checkpoints(here)] == [numbers[0]]
    assert not (here / "best").exists()
    assert (here / "metrics.jsonl").read_bytes() == (stages[2] / "metrics.jsonl").read_bytes()
    assert fetch_run(Store("file", str(kept)), here / "again") == said
