"""`distrl verify`, by real runs: the same weights where the run is the same, and a difference where it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CARTPOLE, DQN, config_of, run_trainer
from typer.testing import CliRunner

from distrl.cli import app
from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.tools import verify as module
from distrl.tools.verify import REPLAY_TRIAL, TRIALS, Trial, verify

LONG_ENOUGH = {**CARTPOLE, "stop": {"env_steps": 256 * 40}, "evaluation": {"every": 0, "final_episodes": 0}}


def test_a_kill_changes_no_bit_and_does_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of a run in one process, which is resumed on Ray, and a runner of one that was there from the start."""
    started: list[list[str]] = []
    train = module._train
    monkeypatch.setattr(
        module,
        "_train",
        lambda run_dir, arguments, *rest: (started.append(arguments), train(run_dir, arguments, *rest)),
    )
    trials = (
        Trial("the driver killed", ("--local",), ((0.3, "driver"),)),
        Trial("a runner killed", ("cluster.runners=2",), ((0.3, "Runner"),)),
    )
    monkeypatch.setattr(module, "TRIALS", trials)
    verdicts = list(verify(config_of(LONG_ENOUGH)))
    undisturbed = run_trainer(config_of(LONG_ENOUGH), LocalExecution(), tmp_path)
    assert [verdict.trial for verdict in verdicts] == list(trials)
    assert {verdict.weights_sha256 for verdict in verdicts} == {undisturbed.sha256}
    assert [verdict.restarts for verdict in verdicts] == [0, 1]
    assert [arguments[0] == "--resume" for arguments in started] == [False, True, False]
    assert all(verdict.seconds > 0.5 for verdict in verdicts)


def test_a_difference_is_told_and_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run_dir: Path, arguments: list[str], *rest: Any) -> None:
        weights = "b" if "cluster.runners=3" in arguments else "a"
        run_dir.mkdir()
        (run_dir / "result.json").write_text(json.dumps({"weights_sha256": weights * 64, "restarts": 0}))

    monkeypatch.setattr(module, "_train", train)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(LONG_ENOUGH))
    shown = CliRunner().invoke(app, ["verify", str(tmp_path / "config.yaml")])
    assert shown.exit_code == 1
    assert [line.split()[0][0] for line in shown.stdout.splitlines()] == list("aaabaaa")
    assert "The weights differ." in shown.stderr
    monkeypatch.setattr(module, "TRIALS", TRIALS[:3])
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "config.yaml")]).exit_code == 0


@pytest.mark.parametrize(
    ("base", "override", "remedy"),
    [
        (CARTPOLE, "stop.return_mean=400", "stop.return_mean=null"),
        (CARTPOLE, "stop.seconds=5", "stop.env_steps alone"),
        (DQN, "schedule.kind=async", "schedule.kind=lockstep"),
    ],
)
def test_a_run_that_cannot_be_repeated_is_refused_before_it_is_made(
    base: dict[str, Any], override: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train", lambda *arguments: pytest.fail("it was made"))
    with pytest.raises(UserError, match=remedy):
        next(verify(config_of(base, override)))


def test_a_run_that_fails_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIALS", (Trial("broken", ("--local", "env.kwargs={gravitas: 1}")),))
    with pytest.raises(UserError, match=r"(?s)env.kwargs=\{gravitas: 1\} failed:.*env.kwargs .*do not fit"):
        next(verify(config_of(LONG_ENOUGH)))


def test_every_kind_of_worker_and_the_driver_are_killed_somewhere() -> None:
    victims = {victim for trial in (*TRIALS, REPLAY_TRIAL) for _, victim in trial.kills}
    assert victims == {"Runner", "Learner", "Replay", "driver"}
    assert {"--local", "cluster.runners=1", "cluster.runners=3"} <= {a for trial in TRIALS for a in trial.arguments}
