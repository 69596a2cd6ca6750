"""Real nodes that come, are told to end, and are killed, under two runs at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CARTPOLE, DQN, config_of, run_trainer
from nodes import ENVIRONMENT, Nodes
from processes import result_of, write

from distrl.execution.local import LocalExecution

ITERATIONS = 60


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


def base(algorithm: dict[str, Any], trouble: str) -> dict[str, Any]:
    return {
        **algorithm,
        "env": {"id": "troubled:Troubled-v0", "kwargs": {"trouble": trouble}},
        "stop": {"env_steps": 256 * ITERATIONS},
        "evaluation": {"every": 20, "episodes": 1, "final_episodes": 0},
        "track": {"mlflow": False, "video": False},
    }


def until(what: Callable[[], Any], runs: list[subprocess.Popen[str]], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        for run in runs:
            assert run.poll() is None, run.stderr.read() if run.stderr else ""
        time.sleep(0.1)


def rows(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.fixture
def runs() -> Iterator[list[subprocess.Popen[str]]]:
    runs: list[subprocess.Popen[str]] = []
    yield runs
    for run in runs:
        run.kill()
        run.wait()


@pytest.mark.timeout(700)
def test_nodes_come_are_told_to_end_and_are_killed(
    nodes: Nodes, runs: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    dirs: list[Path] = []
    first = nodes.add(2)
    config = base(CARTPOLE, "sleep") | {"cluster": {"address": nodes.address}}
    command = [sys.executable, "-m", "distrl", "train", write(tmp_path, config), "--dry-run"]
    told = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "(head)" in told.stdout and "nothing; 0 CPUs are free" in told.stdout
    assert "the learner, the evaluator, 2 runners of 0.6666 CPUs; 2 CPUs are free" in told.stdout
    for name, algorithm in (("ppo", CARTPOLE), ("dqn", DQN)):
        config = base(algorithm, "sleep") | {
            "run_dir": str(tmp_path / name),
            "cluster": {"address": nodes.address, "runners": "1..4", "cpus_per_runner": 0.5},
        }
        command = [sys.executable, "-m", "distrl", "train", write(tmp_path, config, f"{name}.yaml")]
        dirs.append(tmp_path / name)
        runs.append(subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True))
        until(lambda: nodes.workers(first).count("Learner") == len(runs), runs)
    until(lambda: set(nodes.workers(first)) >= {"Learner", "Replay", "Runner"}, runs)
    here = [rows(run_dir) for run_dir in dirs]  # what was learnt before the learners were there
    until(lambda: all(rows(d) > n + 3 for d, n in zip(dirs, here, strict=True)), runs)

    second = nodes.add(2)
    until(lambda: "Runner" in nodes.workers(second), runs)
    nodes.drain(first)  # all that is there goes elsewhere before it ends
    until(lambda: nodes.workers(second).count("Learner") == 2, runs)
    until(lambda: not {"Runner", "Learner", "Replay"} & set(nodes.workers(first)), runs)

    before = [rows(run_dir) for run_dir in dirs]
    assert not nodes.asked_for()
    nodes.kill(second)  # with learners and replays, and no other is left
    until(lambda: nodes.asked_for() == [{"CPU": 0.5}] * 2, runs)  # of each run as much as it cannot do without
    third = nodes.add(2)
    until(lambda: nodes.workers(third).count("Learner") == 2, runs)
    until(lambda: "Runner" in nodes.workers(third) and not nodes.asked_for(), runs)
    until(lambda: all(rows(d) > n for d, n in zip(dirs, before, strict=True)), runs)
    ends = [run.communicate(timeout=400)[1] for run in runs]
    for run, said, algorithm, run_dir in zip(runs, ends, (CARTPOLE, DQN), dirs, strict=True):
        assert run.returncode == 0, said
        assert "workers start beside this process" in said and "training goes on there" in said
        assert "a node came" in said and "a node left" in said
        assert "the cluster lacks 0.5 CPUs" in said and "the run waits for a node that can hold it" in said
        assert "move to other nodes" in said and "going back to iteration" in said
        expected = run_trainer(config_of(base(algorithm, "")), LocalExecution(), tmp_path / f"{run_dir.name}-local")
        assert result_of(run_dir)["weights_sha256"] == expected.sha256


@pytest.mark.timeout(300)
def test_what_lay_on_a_node_that_died_is_rolled_again(
    nodes: Nodes, runs: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Fragments so large that they lie in the store of the node that rolled them: the learner would wait for ever.

    Two of three runners go on meanwhile; the CPU that is asked for in place of the lost one is not taken from them.
    """
    one, two = nodes.add(2), nodes.add(2)
    large: dict[str, Any] = {
        "env": {"id": "CartPole-v1"},
        # Updates so long that fragments wait for them, on the node where they were rolled.
        "algorithm": {"name": "ppo", "minibatch_size": 2048, "epochs": 12, "hidden": [32, 32]},
        "rollout": {"shards": 6, "envs_per_shard": 64, "steps": 128},
        "stop": {"env_steps": 6 * 64 * 128 * 16},
        "evaluation": {"every": 0, "final_episodes": 0},
        "checkpoint": {"every": 5},
        "track": {"mlflow": False, "video": False},
    }
    cluster = {"address": nodes.address, "start": "wait", "runners": 3, "cpus_per_runner": 1}
    config = large | {"cluster": cluster, "run_dir": str(tmp_path / "run")}
    command = [sys.executable, "-m", "distrl", "train", write(tmp_path, config)]
    runs.append(subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True))
    until(lambda: rows(tmp_path / "run") >= 7, runs)
    with_runners_alone = two if "Learner" in nodes.workers(one) else one
    assert "Runner" in nodes.workers(with_runners_alone) and "Learner" not in nodes.workers(with_runners_alone)
    nodes.kill(with_runners_alone)
    said = runs[0].communicate(timeout=200)[1]
    assert runs[0].returncode == 0, said
    assert "a node died, and with it fragments" in said and "the cluster lacks 1 CPU" in said
    assert (
        result_of(tmp_path / "run")["weights_sha256"]
        == run_trainer(config_of(large), LocalExecution(), tmp_path / "local").sha256
    )
