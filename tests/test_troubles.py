"""Environments that raise, hang, crash or go mad: recovered in place to the same bits, or ended with what is known."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from conftest import CARTPOLE, Outcome, config_of, no_file_beyond, run_trainer
from troubled import Troubled

from distrl import train
from distrl.errors import Diverged, EnvError, UserError
from distrl.execution.cluster import RayExecution
from distrl.execution.local import LocalExecution
from distrl.models.store import list_checkpoints
from distrl.settings import Config
from distrl.training.checkpoint import read_checkpoint
from distrl.workers.evaluator import Evaluator

BASE: dict[str, Any] = {
    **CARTPOLE,
    "env": {"id": "troubled:Troubled-v0"},
    "evaluation": {"every": 0, "final_episodes": 0},
    "cluster": {"step_timeout_s": 2},
}


TABLE = {
    "name": "q",
    "coding": {"kind": "bins", "n": [5, 5, 5, 5], "low": [-2, -2, -0.2, -2], "high": [2, 2, 0.2, 2]},
}


def troubled(**trouble: Any) -> Config:
    return config_of({**BASE, "env": {"id": "troubled:Troubled-v0", "kwargs": trouble}})


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_trainer(troubled(), LocalExecution(), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(("trouble", "told"), [("raise", "raised"), ("hang", "hung"), ("crash", "lost")])
def test_a_passing_trouble_is_recovered_in_place(
    trouble: str, told: str, untroubled: Outcome, ray_execution: RayExecution, tmp_path: Path
) -> None:
    config = troubled(trouble=trouble, flag=str(tmp_path / "flag"))
    outcome = run_trainer(config, ray_execution, tmp_path / "run", runners=2)
    assert (tmp_path / "flag").exists()
    assert outcome.trainer.recovery.restarts == 1, outcome.observer.messages
    assert told in " ".join(outcome.observer.messages)
    assert outcome.facts == untroubled.facts


def test_an_env_that_is_slow_to_make_has_not_hung(ray_execution: RayExecution, tmp_path: Path) -> None:
    """A shard's copies together take several times `step_timeout_s` to be made, one of them does not."""
    env = {"id": "troubled:Troubled-v0", "kwargs": {"making_s": 0.4}}
    config = config_of(
        {**BASE, "env": env, "rollout": {"shards": 1, "envs_per_shard": 8, "steps": 32}},
        "stop.env_steps=512",
        "cluster.step_timeout_s=1",
    )
    outcome = run_trainer(config, ray_execution, tmp_path)
    assert outcome.trainer.recovery.restarts == 0, outcome.observer.messages


@pytest.mark.parametrize("local", [True, False])
def test_a_lasting_bug_of_the_env_ends_the_run_with_all_that_is_known(
    local: bool, ray_execution: RayExecution, tmp_path: Path
) -> None:
    with pytest.raises(EnvError) as caught:
        run_trainer(troubled(trouble="raise"), LocalExecution() if local else ray_execution, tmp_path)
    message = str(caught.value)
    assert "ConnectionError: the simulator hung up" in message
    assert 'raise ConnectionError("the simulator hung up")' in message  # the line of the original traceback
    assert "distrl/envs" not in message
    assert "shard" in message
    assert "episode seed" in message
    assert caught.value.env_copy // 4 == caught.value.shard


@pytest.mark.parametrize("lasting", [False, True])
def test_an_evaluation_whose_env_raises_is_played_again_once(
    lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, evaluating = [], []
    evaluate = Evaluator.evaluate

    def watched(*arguments: Any) -> Any:
        evaluating.append(True)
        try:
            return evaluate(*arguments)
        finally:
            evaluating.clear()

    monkeypatch.setattr(Evaluator, "evaluate", watched)

    class Raising(Troubled):
        def step(self, action: Any) -> Any:
            if evaluating and len(raised) < troubles:
                raised.append(action)
                raise ConnectionError("the simulator hung up")
            return super().step(action)

    gym.register("Raising-v0", Raising, max_episode_steps=100)
    evaluation = {"every": 4, "episodes": 3, "final_episodes": 2}
    config = config_of({**BASE, "env": {"id": "Raising-v0"}, "evaluation": evaluation}, "stop.env_steps=2048")
    troubles = 0
    untroubled = run_trainer(config, LocalExecution(), tmp_path / "untroubled")
    troubles = 1000 if lasting else 1
    if lasting:
        with pytest.raises(EnvError, match=r"(?s)env copy 0, episode seed \d+, step 1 .*the simulator hung up"):
            run_trainer(config, LocalExecution(), tmp_path / "run")
    else:
        outcome = run_trainer(config, LocalExecution(), tmp_path / "run")
        assert outcome.facts == untroubled.facts
        assert outcome.trainer.recovery.restarts == 1
        assert "trying that evaluation again" in " ".join(outcome.observer.messages)
    assert len(raised) == (3 if lasting else 1)  # two evaluations are under way at the end; the first ends the run
    del gym.registry["Raising-v0"]


def test_a_full_disk_does_not_hide_what_ended_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = ExitStack()

    class Filling(Troubled):
        def step(self, action: Any) -> Any:
            disk.enter_context(no_file_beyond(0))  # from now on
            raise ConnectionError("the simulator hung up")

    gym.register("Filling-v0", Filling)
    config = {**BASE, "env": {"id": "Filling-v0"}, "track": {"mlflow": False}, "run_dir": str(tmp_path / "run")}
    with disk, pytest.raises(EnvError, match="the simulator hung up"):
        train(config_of(config), local=True)
    del gym.registry["Filling-v0"]
    assert "result.json' cannot be written" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "running"


def test_a_lasting_crash_ends_the_run(ray_execution: RayExecution, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"fragment \d+ of shard \d+ of troubled:Troubled-v0 took its runner down"):
        run_trainer(troubled(trouble="crash", at=1), ray_execution, tmp_path)
    assert time.monotonic() - started < 60


def test_numbers_that_are_not_finite_end_the_run_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    Troubled.steps = 0
    config = troubled(trouble="nan", at=256 * 5 + 10)
    with pytest.raises(Diverged, match=r"update 6 .* is nan"):
        run_trainer(config, LocalExecution(), tmp_path)
    state = read_checkpoint(list_checkpoints(tmp_path)[-1], config.rollout.shards)
    assert state.progress.iteration == 3


@pytest.mark.parametrize("algorithm", [BASE["algorithm"], TABLE], ids=["network", "table"])
def test_runners_share_out_a_slow_env(algorithm: dict[str, Any], ray_execution: RayExecution, tmp_path: Path) -> None:
    """Four runners of an env that mostly sleeps take well under half the time that one takes, once all are at work."""
    slow = {"id": "troubled:Troubled-v0", "kwargs": {"trouble": "sleep"}}
    config = config_of({**BASE, "env": slow, "algorithm": algorithm}, "stop.env_steps=3072")
    one = run_trainer(config, ray_execution, tmp_path / "one", runners=1)
    four = run_trainer(config, ray_execution, tmp_path / "four", runners=4)
    seconds = [[row["time"] for row in outcome.observer.rows if "time/learn_s" in row] for outcome in (one, four)]
    assert seconds[1][-1] - seconds[1][3] < 0.5 * (seconds[0][-1] - seconds[0][3])
    assert four.sha256 == one.sha256


def test_a_ray_in_use_is_left_alone(ray_execution: RayExecution) -> None:
    with pytest.raises(UserError, match=r"ray\.shutdown\(\)"):
        RayExecution("local", 256 * 2**20)
    assert ray_execution.get(ray_execution.put(7)) == 7


def test_two_runs_in_one_process_that_knew_ray_before(tmp_path: Path) -> None:
    """Each run's Ray has a token of its own, and Ray likes to remember the first: or none, where it was imported early."""
    script = """
        import json, sys
        import ray
        from distrl import load_config, train

        for name in ("one", "two"):
            config = load_config({**json.loads(sys.argv[1]), "run_dir": f"{sys.argv[2]}/{name}"})
            print(train(config, quiet=True).data["weights_sha256"])
    """
    config = {**CARTPOLE, "stop": {"env_steps": 512}, "track": {"mlflow": False, "video": False}}
    config["cluster"] = {"start": "wait"}
    arguments = [sys.executable, "-c", textwrap.dedent(script), json.dumps(config), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
