"""Whole sweeps in processes of their own, on Ray Tune: killed, interrupted, with trials that fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import CARTPOLE
from nodes import ENVIRONMENT, Nodes
from processes import distrl, family, gone

from distrl import load_config, train

pytestmark = pytest.mark.timeout(1200)  # of a busy machine
SWEEP: dict[str, Any] = {
    "base": {**CARTPOLE, "track": {"mlflow": False, "video": False}},
    "search": {"algorithm.lr": {"loguniform": [1e-4, 1e-2]}, "algorithm.epochs": {"choice": [2, 4]}},
    "budget": {"trials": 4, "env_steps": 5120},
    "scheduler": "halving",
    "seeds": {"tune": [1, 2], "test": [101]},
}
NAMES = {"overrides", "seed", "status", "score", "env_steps", "weights_sha256", "run_dir"}


def told(sweep_dir: Path) -> list[tuple[Any, ...]]:
    """All that a sweep promises of its trials, whatever ran first."""
    trials = json.loads((sweep_dir / "trials.json").read_text())
    assert all(trial.keys() >= NAMES for trial in trials)
    names = sorted(NAMES - {"run_dir"})
    return sorted((trial["trial"], trial["seed"], *(str(trial[name]) for name in names)) for trial in trials)


def tune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """To its end. Ray gives up after 30 s in which it could not start, which a busy machine may need."""
    for _ in range(5):
        done = distrl("tune", *arguments, cwd=cwd, timeout=600)
        if "Ray could not be started" not in done.stderr:
            break
    return done


def ends(sweep_dir: Path) -> int:
    file = sweep_dir / "events.jsonl"
    return file.read_text().count('"ended"') if file.exists() else 0


def start(directory: Path, *arguments: str) -> psutil.Popen:
    command = [sys.executable, "-m", "distrl", "tune", *arguments]
    return psutil.Popen(
        command, cwd=directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def start_until(directory: Path, sweep_dir: Path, count: int, *arguments: str) -> psutil.Popen:
    """A sweep that goes on, of which so many pieces have ended."""
    for _ in range(5):
        process = start(directory, *arguments)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None and ends(sweep_dir) < count:
            time.sleep(0.05)
        if process.poll() is None or "Ray could not be started" not in (said := process.stderr.read().decode()):
            assert ends(sweep_dir) >= count, "too slow" if process.poll() is None else said
            return process
    raise AssertionError(said)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody disturbed, one trial after another."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "s.yaml").write_text(yaml.safe_dump(SWEEP))
    done = tune("s.yaml", "trial.at_once=1", "--name", "whole", cwd=directory)
    assert done.returncode == 0, done.stderr
    assert "on the test seeds" in done.stdout and "distrl train" in done.stdout
    return directory / "sweeps" / "whole"


def test_a_sweep_stops_the_weak_and_tells_the_best(whole: Path) -> None:
    trials = json.loads((whole / "trials.json").read_text())
    assert sorted(t["trial"] for t in trials if t["seed"] == 1) == [0, 1, 2, 3]
    stopped = [t for t in trials if t["status"] == "stopped"]
    finished = [t for t in trials if t["status"] == "finished"]
    assert stopped and {t["env_steps"] for t in finished} == {5120} and all(t["env_steps"] < 5120 for t in stopped)
    result = json.loads((whole / "result.json").read_text())
    best = next(t for t in finished if t["trial"] == result["best"]["trial"] and t["seed"] == 1)
    config = load_config(whole / "best.yaml")
    assert config.algorithm.lr.start == best["overrides"]["algorithm.lr"]  # type: ignore[attr-defined]
    assert [len(result["test"][whose]) for whose in ("best", "base")] == [1, 1]


def test_a_trial_is_the_run_that_distrl_train_makes(whole: Path, tmp_path: Path) -> None:
    best = json.loads((whole / "result.json").read_text())["best"]["trial"]
    trials = json.loads((whole / "trials.json").read_text())
    known = next(t for t in trials if t["trial"] == best and t["seed"] == 2)
    config = load_config(whole / "best.yaml", ["seed=2", f"run_dir={tmp_path}/run"])
    assert train(config, local=True, quiet=True).data["weights_sha256"] == known["weights_sha256"]


def test_interrupted_and_killed_and_gone_on_with_it_is_the_same_sweep(
    whole: Path, temporary: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGKILL of the driver; and two trials at once instead of one."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SWEEP))
    sweep_dir = tmp_path / "sweeps" / "mine"
    process = start_until(tmp_path, sweep_dir, 1, "s.yaml", "--name", "mine")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert json.loads((sweep_dir / "result.json").read_text())["status"] == "interrupted"
    process = start_until(tmp_path, sweep_dir, ends(sweep_dir) + 2, "--resume", "mine")
    members = family(process)
    process.kill()
    json.loads((sweep_dir / "trials.json").read_text())
    load_config(sweep_dir / "best.yaml")
    shown = distrl("tune", "--status", "mine", cwd=tmp_path)
    assert shown.returncode == 0 and "mine: killed; go on with 'distrl tune --resume mine'" in shown.stdout
    done = tune("--resume", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert gone(members, 20)
    assert not [*temporary.glob("distrl-*")]
    assert told(sweep_dir) == told(whole)
    assert (sweep_dir / "best.yaml").read_text() == (whole / "best.yaml").read_text()
    events = [json.loads(line) for line in (sweep_dir / "events.jsonl").read_text().splitlines()]
    ended = [(e["trial"], e["seed"], e["rung"]) for e in events if e["event"] == "ended"]
    assert len(ended) == len(set(ended)), "a piece was run twice"
    assert {path.name for path in (sweep_dir / "plots").iterdir()} >= {"parallel.png", "curves.png", "cost.png"}


def test_a_node_that_is_lost_costs_a_sweep_nothing(whole: Path, tmp_path: Path) -> None:
    """Of two machines with a core each one is lost in the middle of a trial, which goes on from its checkpoint on the other."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SWEEP))
    nodes, sweep_dir = Nodes(), tmp_path / "sweeps" / "n"
    try:
        _, lost = nodes.add(1), nodes.add(1)
        command = [sys.executable, "-m", "distrl", "tune", "s.yaml", f"cluster.address={nodes.address}", "--name", "n"]
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": ENVIRONMENT}
        process = psutil.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
        deadline = time.monotonic() + 600
        while ends(sweep_dir) < 1 or "ResourceTrainable" not in nodes.workers(lost):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.05)
        nodes.kill(lost)
        _, told_of = process.communicate(timeout=900)
        assert process.returncode == 0, told_of.decode()
    finally:
        nodes.close()
    assert told(sweep_dir) == told(whole)


def test_a_trial_that_fails_is_told_with_its_cause_and_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    sweep = {
        "base": {
            **SWEEP["base"],
            "env": {"id": "troubled:Troubled-v0", "kwargs": {"flag": ""}},
            "evaluation": {"every": 4, "episodes": 2, "final_episodes": 0},
        },
        "search": {
            "env.kwargs.trouble": {"grid": ["", "raise", "nan", "crash"]},
            "env.kwargs.flag": {"when": {"env.kwargs.trouble": "crash"}, "grid": [f"{tmp_path}/a", f"{tmp_path}/b"]},
        },
        "searcher": "grid",
        "scheduler": "none",
        "budget": {"env_steps": 2560},
        "seeds": {"tune": [1], "test": [101]},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    (tmp_path / "troubled.py").write_text((Path(__file__).parent.parent / "troubled.py").read_text())
    done = tune("s.yaml", "--name", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = json.loads((tmp_path / "sweeps" / "t" / "trials.json").read_text())
    by_trouble: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        by_trouble.setdefault(trial["overrides"]["env.kwargs.trouble"], []).append(trial)
    assert [t["status"] for t in by_trouble[""]] == ["finished"]
    assert [t["status"] for t in by_trouble["raise"]] == ["failed"] and "hung up" in by_trouble["raise"][0]["error"]
    assert [t["status"] for t in by_trouble["nan"]] == ["failed"] and "nan" in by_trouble["nan"][0]["error"].lower()
    assert [t["status"] for t in by_trouble["crash"]] == ["finished"] * 2
    assert len({t["weights_sha256"] for t in [*by_trouble["crash"], *by_trouble[""]]}) == 1


def test_a_trial_with_runners_of_its_own_learns_the_same(tmp_path: Path) -> None:
    sweep = {
        **SWEEP,
        "budget": {"trials": 1, "env_steps": 2560},
        "scheduler": "none",
        "seeds": {"tune": [3], "test": [101]},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    done = tune("s.yaml", "trial.runners=1", "--name", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads((tmp_path / "sweeps" / "r" / "trials.json").read_text())
    config = load_config(tmp_path / "sweeps" / "r" / "best.yaml", ["seed=3", f"run_dir={tmp_path}/run"])
    assert train(config, local=True, quiet=True).data["weights_sha256"] == told["weights_sha256"]
