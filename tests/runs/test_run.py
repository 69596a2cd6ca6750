"""What a run does around its training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import pytest
from processes import SMALL

from distrl import load_config, train
from distrl.errors import UserError
from distrl.runs import result, run


def test_a_run_directory_is_taken_before_anything_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray takes seconds to start, in which another run may begin and even end."""
    config = load_config({**SMALL, "run_dir": str(tmp_path / "run")}, ["stop.env_steps=256"])
    start, refused = run._start, []

    def slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(run, "_start", start)
        with pytest.raises(UserError, match="another process") as caught:
            train(config, local=True, quiet=True)
        refused.append(caught)
        return start(*arguments)

    monkeypatch.setattr(run, "_start", slowly)
    assert train(config, local=True, quiet=True).status == "finished"
    assert refused


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    config = load_config(SMALL, ["stop.env_steps=256"])
    results = [train(config, local=True, quiet=True) for _ in range(2)]
    assert [result.run_dir.name for result in results] == [
        "ppo-cartpole-v1-20260101-000000",
        "ppo-cartpole-v1-20260101-000000-2",
    ]
    assert [load_config(result.run_dir).run_dir for result in results] == [str(result.run_dir) for result in results]


@pytest.mark.parametrize(("fails", "left"), [("draw", "videos/best.webm"), ("record", "plots/learning_curve.png")])
def test_pictures_that_cannot_be_made_cost_the_run_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: str, left: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(result, f"_{fails}", fail)
    config = load_config({**SMALL, "run_dir": str(tmp_path / "run")}, ["stop.env_steps=256", "track.video=true"])
    assert train(config, local=True, quiet=True).status == "finished"
    assert "not all pictures of this run could be made: No space left on device" in capsys.readouterr().err
    assert [path.name for folder in ("plots", "videos") for path in (tmp_path / "run" / folder).glob("[bl]e*")] == [
        Path(left).name
    ]


def test_the_film_of_a_run_is_smooth_enough_and_lasts_as_long_as_the_game(tmp_path: Path) -> None:
    """CartPole has 50 frames a second."""
    config = load_config({**SMALL, "run_dir": str(tmp_path / "run")}, ["stop.env_steps=256", "track.video=true"])
    assert train(config, local=True, quiet=True).status == "finished"
    film = cv2.VideoCapture(str(tmp_path / "run" / "videos" / "best.webm"))
    assert film.get(cv2.CAP_PROP_FPS) == 25
