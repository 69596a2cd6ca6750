"""The algorithm that README shows is the one that is trained here, by the command that README gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import toys
from conftest import config_of, run_trainer
from processes import distrl

from distrl import Config, load_config, train
from distrl.execution.local import LocalExecution
from distrl.models.store import list_checkpoints
from distrl.runs.choose import choose_config

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
CALLBACKS = next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class Pruning" in code)
SHOWN = README[README.index("<details>\n<summary>A whole algorithm") :].partition("</details>")[0]
[CODE] = re.findall(r"```python\n(.*?)```", SHOWN, re.DOTALL)
[COMMAND] = re.findall(r"```bash\ndistrl (.*?)\n```", SHOWN)
ARGUMENTS = COMMAND.split()
assert ARGUMENTS[:5] == ["train", "--env", "CartPole-v1", "--algo", "reinforce"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the module path, with README's `reinforce.py` in it, which is forgotten afterwards."""
    (tmp_path / "reinforce.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("reinforce", None)


@pytest.mark.parametrize("seed", range(1, 6))
def test_it_learns(seed: int, own: Path) -> None:
    """By measurement from some 20 to 170 and more, and to 440 and more with greedy actions."""
    settings = (f"seed={seed}", "evaluation.every=0", "evaluation.final_episodes=10")
    config, _ = choose_config("CartPole-v1", "reinforce", [*ARGUMENTS[5:], *settings])
    outcome = run_trainer(config, LocalExecution(), own / "run")
    returns = [row["train/return_mean"] for row in outcome.observer.rows if "train/return_mean" in row]
    assert returns[0] < 30 and returns[-1] > 100
    assert outcome.trainer.evaluations.final is not None and outcome.trainer.evaluations.final.mean > 250


def test_the_command_trains_it(own: Path) -> None:
    short = [argument for argument in ARGUMENTS if not argument.startswith("stop.")]
    more = ("stop.env_steps=32768", "run_dir=run", "track.mlflow=false", "track.video=false", "-q")
    done = distrl(*short, *more, cwd=own)
    assert done.returncode == 0, done.stderr
    result = json.loads((own / "run" / "result.json").read_text())
    config, _ = choose_config("CartPole-v1", "reinforce", [*short[5:], "stop.env_steps=32768"])
    assert result["weights_sha256"] == run_trainer(config, LocalExecution(), own / "local").sha256


def test_it_takes_every_space_and_is_resumed_bit_for_bit(own: Path) -> None:
    kwargs = {"obs": "dict", "action": "dict", "mask": "info"}
    config = config_of(
        {
            "env": {"id": f"toys:{toys.WALK}", "max_episode_steps": 12, "kwargs": kwargs},
            "algorithm": {"name": "reinforce"},
            "rollout": {"shards": 2, "envs_per_shard": 2, "steps": 8},
            "stop": {"env_steps": 32 * 8},
            "evaluation": {"every": 4, "episodes": 2, "final_episodes": 2},
        }
    )
    whole = run_trainer(config, LocalExecution(), own / "whole")
    asked = iter(range(5))
    first = run_trainer(
        config,
        LocalExecution(),
        own / "cut",
        interrupted=lambda: None if next(asked, None) is not None else "interrupted",
    )
    assert 0 < first.trainer.progress.iteration < 8
    second = run_trainer(config, LocalExecution(), own / "cut", start=list_checkpoints(own / "cut")[-1])
    second.observer.rows = first.observer.rows + second.observer.rows
    assert second.facts == whole.facts


class Trial:
    """As Optuna's, which prunes from the second report on."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, int]] = []

    def suggest_float(self, name: str, low: float, high: float, log: bool) -> float:
        return 1e-3

    def report(self, value: float, step: int) -> None:
        self.reports.append((value, step))

    def should_prune(self) -> bool:
        return len(self.reports) >= 2


def test_the_callbacks_that_it_shows_tell_and_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Pruned(Exception): ...

    def short(name: str) -> Config:
        return load_config(name).with_(run_dir=tmp_path / "run", **{"track.mlflow": False, "track.video": False})

    trial = Trial()
    known = {
        "load_config": short,
        "train": partial(train, local=True, quiet=True),
        "optuna": SimpleNamespace(TrialPruned=Pruned),
    }
    exec(CALLBACKS, known)
    with pytest.raises(Pruned):
        known["objective"](trial)  # type: ignore[operator]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["stopped_by"]) == ("finished", "callback")
    steps = [step for _, step in trial.reports]  # after the second only of what was under way, and of the last weights
    assert 2 < len(steps) < 6 and steps == sorted(set(steps)) and steps[-1] == result["env_steps"] < 100_000
    assert f"{trial.reports[0][0]:.1f} after {steps[0]:,} env steps" == capsys.readouterr().out.splitlines()[0]
