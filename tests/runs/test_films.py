"""Videos of learning, recorded beside the training by another process."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import pytest
from conftest import CARTPOLE, config_of, run_trainer
from processes import distrl

from distrl import train
from distrl.execution.local import LocalExecution
from distrl.models.play import by_policy, play_episodes
from distrl.models.store import read_model
from distrl.models.video import record_video
from distrl.reports.page import report_page
from distrl.settings import EnvSettings


def frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    return int(video.get(cv2.CAP_PROP_FRAME_COUNT))


def test_every_second_evaluation_is_filmed_and_changes_no_bit(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is evaluated after 4, 8 and 12 of 12 iterations of 256 steps, and filmed after the first and the third of them."""
    config = {**CARTPOLE, "run_dir": str(tmp_path / "run")}
    plain = run_trainer(config_of(CARTPOLE), LocalExecution(), tmp_path / "plain")
    track: dict[str, Any] = {"mlflow": False, "video": False, "video_every": 2}
    result = train({**config, "track": track}, local=True, quiet=True)
    assert result.data["weights_sha256"] == plain.sha256
    assert capfd.readouterr().err == ""
    videos = sorted((tmp_path / "run" / "videos").iterdir())
    assert [path.name for path in videos] == ["step-0000001024.webm", "step-0000003072.webm"]  # and no model
    policy, _ = read_model(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])  # the last weights
    again = record_video(by_policy(policy, 1), EnvSettings(id="CartPole-v1"), tmp_path / "again.webm", 1)
    assert frames(videos[1]) == again.frames
    page = report_page([tmp_path / "run"])
    assert all(base64.b64encode(path.read_bytes()).decode() in page for path in videos)


def test_what_cannot_be_filmed_is_told_and_costs_the_run_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    env = {"id": "CartPole-v1", "wrappers": ["gymnasium.wrappers.TimeAwareObservation", "films_test_blind:Blind"]}
    (tmp_path / "films_test_blind.py").write_text(
        "import gymnasium\n\n\n"
        "class Blind(gymnasium.Wrapper):\n"
        "    def render(self):\n"
        "        raise RuntimeError('no lamp')\n"
    )
    track: dict[str, Any] = {"mlflow": False, "video": False, "video_every": 1}
    config = {**CARTPOLE, "env": env, "track": track, "run_dir": str(tmp_path / "run"), "stop": {"env_steps": 256 * 4}}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert train(config, local=True, quiet=True).status == "finished"
    assert "a video could not be recorded" in (told := capfd.readouterr().err) and "no lamp" in told
    assert not list((tmp_path / "run" / "videos").iterdir())


def test_every_twentieth_episode_of_a_hundred(tmp_path: Path) -> None:
    run_trainer(config_of(CARTPOLE, "stop.env_steps=512"), LocalExecution(), tmp_path / "run")
    done = distrl("record", "run", "--every", "20", "--episodes", "40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [path.name for path in sorted((tmp_path / "run" / "videos").iterdir())]
    assert names == ["seed0-episode0000.webm", "seed0-episode0020.webm"]
    policy, _ = read_model(tmp_path / "run" / "best")
    returns = [0.0] * 21
    for moment in play_episodes(by_policy(policy, 0), gym.make("CartPole-v1"), 0, 21):
        returns[moment.episode] += moment.reward
    assert [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines()] == [returns[0], returns[20]]
    done = distrl("record", "run", "--every", "20", cwd=tmp_path)
    assert done.returncode == 2 and "Add --episodes 100" in done.stderr
