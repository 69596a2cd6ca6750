"""Objects of the user's own that hear of a run: what they are told, that they change nothing, and how they end it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CARTPOLE, DQN, config_of, run_trainer
from faulty import FaultyExecution
from processes import SMALL, result_of, write

from distrl import load_config, train
from distrl.errors import UserError
from distrl.execution.local import LocalExecution
from distrl.models.store import list_checkpoints
from distrl.tracking.metrics import read_metrics
from distrl.training.callbacks import Callbacks
from distrl.types import Evaluation


class Ears:
    """Hears all, spoils all that it is given, and may answer."""

    def __init__(self, answer: Callable[[str, Any], object] = lambda name, news: None) -> None:
        self.answer = answer
        self.rows: list[dict[str, float]] = []
        self.evaluations: list[Evaluation] = []
        self.paths: list[Path] = []

    def on_iteration(self, row: dict[str, float]) -> object:
        self.rows.append(dict(row))
        answer = self.answer("on_iteration", dict(row))
        row.clear()
        return answer

    def on_evaluation(self, evaluation: Evaluation) -> object:
        self.evaluations.append(evaluation)
        evaluation.scores["spoilt"] = evaluation.returns
        return self.answer("on_evaluation", evaluation)

    def on_checkpoint(self, path: Path) -> object:
        assert (path / "manifest.json").exists()
        self.paths.append(path)
        return self.answer("on_checkpoint", path)


def small(run_dir: Path, *overrides: str) -> Any:
    return load_config(SMALL, [f"run_dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody listens to."""
    return train(small(tmp_path_factory.mktemp("whole") / "run"), local=True, quiet=True).run_dir


def test_they_are_told_all_and_cannot_change_it(whole: Path, tmp_path: Path) -> None:
    first, second = Ears(), Ears()
    result = train(small(tmp_path / "run"), local=True, quiet=True, callbacks=[first, second])
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first.rows == rows and second.rows == rows
    assert [e.version for e in first.evaluations] == [4, 8, 12]
    told = [row["evaluation/return_mean"] for row in rows if "evaluation/return_mean" in row]
    means = [e.mean for e in first.evaluations]
    assert told == means  # the last two are due at once, and each has a row
    assert [path.name for path in first.paths] == [f"{k:08d}" for k in (3, 6, 9, 12)]
    assert result.data["weights_sha256"] == result_of(whole)["weights_sha256"]
    assert result.data["evaluation"] == result_of(whole)["evaluation"]
    assert result.status == "finished" and "spoilt" not in (tmp_path / "run" / "result.json").read_text()


def test_false_ends_a_run_as_a_mark_does(tmp_path: Path) -> None:
    ears = Ears(lambda name, news: name != "on_iteration" or news["iteration"] < 3)
    deaf = Ears(lambda name, news: 0)  # nothing but False is False
    result = train(small(tmp_path / "run"), local=True, quiet=True, callbacks=[deaf, ears])
    assert (result.status, result.data["stopped_by"]) == ("finished", "callback")
    assert result.evaluation is not None and result.data["env_steps"] == 256 * 6


@pytest.mark.parametrize("base", [CARTPOLE, DQN], ids=["ppo", "dqn"])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("name", ["on_iteration", "on_evaluation", "on_checkpoint"])
def test_a_run_ends_at_the_same_iteration_however_its_workers_do(
    name: str, lag: int, base: dict[str, Any], tmp_path: Path
) -> None:
    """Rows come sooner or later, some twice as the learner is lost; what ends the run may not depend on that."""

    def answer(heard: str, news: Any) -> object:
        late = {"on_iteration": lambda: news["iteration"] >= 5, "on_evaluation": lambda: news.version >= 4}
        return not (heard == name and late.get(name, lambda: int(news.name) >= 6)())

    config, told, shas = config_of(base, f"schedule.lag={lag}"), [], []
    for number, execution in enumerate([LocalExecution(), *(FaultyExecution(seed, losses=6) for seed in (1, 2))]):
        ears = Ears(answer)
        outcome = run_trainer(config, execution, tmp_path / str(number), runners=2, callbacks=Callbacks([ears]))
        assert outcome.trainer.progress.stopped == "callback"
        told.append(
            (
                outcome.trainer.progress.iteration,
                [row["iteration"] for row in ears.rows],
                [e.version for e in ears.evaluations],
            )
        )
        shas.append(outcome.sha256)
    assert 6 <= told[0][0] < 12 and told[0][1] == sorted(set(told[0][1]))
    assert told[1:] == told[:1] * 2 and len(set(shas)) == 1


@pytest.mark.parametrize("name", ["on_iteration", "on_evaluation", "on_checkpoint"])
def test_what_a_callback_raises_ends_the_run_with_a_checkpoint_to_go_on_from(
    name: str, whole: Path, tmp_path: Path
) -> None:
    def stumble(heard: str, news: Any) -> object:
        if heard == name:
            raise ArithmeticError(f"stumbled in {heard}")
        return None

    ears, other = Ears(stumble), Ears()
    with pytest.raises(ArithmeticError, match=f"stumbled in {name}") as caught:
        train(small(tmp_path / "run"), local=True, quiet=True, callbacks=[ears, other])
    assert caught.traceback[-1].name == "stumble"
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed" and "in stumble" in result["error"] and "ArithmeticError" in result["error"]
    assert sum(map(len, (ears.rows, ears.evaluations, ears.paths))) > 0
    assert int(list_checkpoints(tmp_path / "run")[-1].name) < 12
    again = train(small(tmp_path / "run"), local=True, quiet=True, resume=tmp_path / "run")
    assert again.data["weights_sha256"] == result_of(whole)["weights_sha256"]


def test_nobody_is_told_anything_after_an_error() -> None:
    def stumble(heard: str, news: Any) -> object:
        raise KeyboardInterrupt

    ears, other = Ears(stumble), Ears()
    callbacks = Callbacks([other, ears, other])
    callbacks.iteration({"iteration": 4.0}, lag=1)
    callbacks.iteration({"iteration": 5.0}, lag=1)
    assert (callbacks.stop_at, len(other.rows), len(ears.rows)) == (7, 1, 1)
    assert isinstance(callbacks.error, KeyboardInterrupt)


def test_numpys_false_is_false_and_the_first_wish_counts() -> None:
    callbacks = Callbacks([Ears(lambda name, news: np.float64(1) > np.float64(news["iteration"]))])
    for number in range(4):
        callbacks.iteration({"iteration": float(number)}, lag=0)
    assert callbacks.stop_at == 3  # of row 1


class Mistaken:
    def on_evaluate(self, evaluation: Evaluation) -> None: ...


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Mistaken(), "on_evaluate, .*Did you mean 'on_evaluation'"),
        (Ears, "the class Ears"),
        (print, "no method that is called"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_made(callback: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(small(tmp_path / "run"), local=True, quiet=True, callbacks=[callback])
    assert not any(tmp_path.iterdir())


def test_a_file_a_preset_and_a_mapping_are_trained(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = result_of(whole)["weights_sha256"]
    for source in (write(tmp_path, {**SMALL, "run_dir": "file"}), {**SMALL, "run_dir": "mapping"}):
        assert train(source, local=True, quiet=True).data["weights_sha256"] == wanted
    with pytest.raises(UserError, match="Did you mean 'ppo_cartpole'"):
        train("ppo_cartpol", local=True)
    assert json.loads((tmp_path / "mapping" / "result.json").read_text())["status"] == "finished"
