"""The command line as its user meets it: real processes, real Ray, real signals."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import SMALL, distrl, family, gone, result_of, start, wait_for_rows, write

from distrl.cli.train import summarize
from distrl.models.player import load_policy
from distrl.outside import HUGE_PAGES
from distrl.runs.result import Result
from distrl.types import Evaluation, Spread

HUGE_PAGES_OF = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished local run in `run` and its config in `config.yaml`."""
    directory = tmp_path_factory.mktemp("finished")
    done = distrl("train", write(directory, SMALL), "run_dir=run", "--local", cwd=directory)
    assert done.returncode == 0, done.stderr
    (directory / "told.txt").write_text(done.stdout)
    return directory


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    run_dir, result = finished / "run", result_of(finished / "run")
    assert result["status"] == "finished"
    assert result["stopped_by"] == "env_steps"
    assert result["env_steps"] == 256 * 12
    assert len(result["weights_sha256"]) == 64
    assert 0 < result["startup_s"] < 60
    assert {"restarts", "versions", "episodes", "return_mean", "train_s", "env_steps_per_s"} <= result.keys()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(12 + 2))  # two evaluations were due at the end
    assert len(list((run_dir / "checkpoints").iterdir())) == 3
    assert {"learning_curve.png", "losses.png"} <= {p.name for p in (run_dir / "plots").iterdir()}
    again = distrl("train", str(run_dir / "config.yaml"), "run_dir=again", "--local", "-q", cwd=finished)
    assert again.returncode == 0, again.stderr
    assert result_of(finished / "again")["weights_sha256"] == result["weights_sha256"]


def test_one_evaluation_is_told_everywhere(finished: Path) -> None:
    """In result.json, on the terminal, on the model's card and in the model itself."""
    best = finished / "run" / "best"
    evaluation = Evaluation.from_json(result_of(finished / "run")["evaluation"])
    assert (evaluation.episodes, evaluation.greedy) == (6, True)
    assert f"{evaluation.returns:.2f} over 6 greedy episodes" in (finished / "told.txt").read_text()
    assert f"{evaluation.returns:,.6g}** over 6 greedy episodes" in (best / "README.md").read_text()
    about = json.loads((best / "policy.json").read_text())
    assert Evaluation.from_json(about["evaluation"]) == evaluation
    chosen = Evaluation.from_json(about["selected_by"])
    assert (chosen.version, chosen.env_steps) == (evaluation.version, evaluation.env_steps)
    assert (chosen.version, chosen.env_steps) == (about["version"], about["env_steps"])


def test_scores_are_told_on_lines_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"pipes": Spread(3, 1, 2, 4), "[red]": Spread(5, 0, 5, 5)}
    evaluation = Evaluation(1, 100, False, 10, Spread(7.5, 0.5, 7, 8), Spread(20, 0, 20, 20), scores)
    facts = {"status": "finished", "stopped_by": "env_steps", "env_steps": 100, "train_s": 1.0}
    run_dir = tmp_path / "a:b:[red]run[/]"
    (run_dir / "best").mkdir(parents=True)
    summarize(Result(run_dir, facts | {"evaluation": evaluation.to_json()}))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "return 7.50 ± 0.50 (min 7.00, max 8.00) over 10 sampled episodes of the best model" in lines
    assert "pipes 3.00 ± 1.00 (min 2.00, max 4.00)" in lines
    assert "[red] 5.00 ± 0.00 (min 5.00, max 5.00)" in lines
    assert f"model {run_dir}/best" in lines  # what is written is what it says, neither markup nor an emoji


def test_a_trained_model_is_used(finished: Path) -> None:
    evaluated = distrl("evaluate", "run", "--episodes", "7", cwd=finished)
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d .*over 7 greedy episodes", evaluated.stdout), evaluated.stderr
    recorded = distrl("record", "run", "--out", "bird.gif", cwd=finished)
    assert (finished / "bird.gif").stat().st_size > 1000, recorded.stderr
    plotted = distrl("plot", "run", "--out", "curve.png", cwd=finished)
    assert (finished / "curve.png").stat().st_size > 1000, plotted.stderr
    assert "curve.png" in plotted.stdout
    code = "import distrl, numpy as np; p = distrl.load_policy('run'); print(p.act(np.zeros(4)), p.act(np.zeros((3, 4))).shape)"
    acted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=finished, check=True)
    assert re.fullmatch(r"[01] \(3,\)\n", acted.stdout)
    if "DISPLAY" not in os.environ:
        played = distrl("play", "run", cwd=finished)
        assert played.returncode == 2
        assert "record" in played.stderr


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_a_normalised_model_is_used(algorithm: str, tmp_path: Path) -> None:
    """Nobody need know that it is."""
    options = ["normalize.obs=true", "normalize.reward=true", "stop.env_steps=20000", "track.mlflow=false"]
    trained = distrl(
        "train", "--env", "Pendulum-v1", "--algo", algorithm, *options, "--local", "-q", "run_dir=run", cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    returns = Evaluation.from_json(result_of(tmp_path / "run")["evaluation"]).returns
    assert returns.min < -100  # in the env's own units, and not those of what is learnt from
    evaluated = distrl("evaluate", "run", "--episodes", "100", cwd=tmp_path)
    assert "over 100 greedy episodes" in evaluated.stdout, evaluated.stderr
    mean = float(re.search(r"(-\d+\.\d\d) ± ", evaluated.stdout)[1])  # type: ignore[index]
    assert abs(mean - returns.mean) < returns.std
    recorded = distrl("record", "run", "--out", "pendulum.gif", cwd=tmp_path)
    assert (tmp_path / "pendulum.gif").stat().st_size > 1000, recorded.stderr
    policy = load_policy(tmp_path / "run")
    own = policy.policy.arrays()
    assert np.abs(own["obs.mean"]).max() > 0.01 and np.abs(own["obs.scale"] - 1).max() > 0.1
    assert policy.act(np.zeros((3, 3), np.float32)).shape == (3, 1)


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    shown = distrl("--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"distrl {importlib.metadata.version('distrl')}\n")
    assert "--version" in distrl("--help", cwd=tmp_path).stdout


def test_the_first_thing_that_is_said_is_what_is_done(tmp_path: Path) -> None:
    """Before anything is imported that takes long."""
    command = [sys.executable, "-X", "importtime", "-m", "distrl", "train", write(tmp_path, SMALL), "seed=one"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    before, said, after = done.stderr.partition("Looking at the config and the env ...\n")
    assert said and "seed is 'one'" in after
    assert all(f" {name}\n" not in before for name in ("numpy", "gymnasium", "torch", "ray"))


@pytest.mark.parametrize(("typed", "found"), [("distrl tra", "train"), ("distrl train ppo_lun", "ppo_lunarlander")])
def test_a_shell_completes_commands_and_presets(typed: str, found: str, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['distrl']; from distrl.__main__ import main; main()"
    asked = {"_DISTRL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **asked}, check=False
    )
    assert found in done.stdout.split(), done.stderr


@pytest.mark.skipif(
    not HUGE_PAGES_OF.exists() or "[madvise]" not in HUGE_PAGES_OF.read_text(),
    reason="the system gives huge pages to all processes, or to none",
)
@pytest.mark.parametrize("asked", [None, "glibc.malloc.arena_max=2"])
@pytest.mark.parametrize("piped", [False, True])
def test_memory_is_in_huge_pages_unless_the_user_tells_glibc_otherwise(
    asked: str | None, piped: bool, tmp_path: Path
) -> None:
    code = "from distrl.__main__ import ask_for_huge_pages\nprint('begun')\nask_for_huge_pages()\nprint(open('/proc/self/smaps').read())\n"
    (tmp_path / "command.py").write_text(code)
    plain = {name: value for name, value in os.environ.items() if name != HUGE_PAGES[0]}
    environment = plain if asked is None else {**plain, HUGE_PAGES[0]: asked}
    command = [sys.executable, "-u", "-" if piped else str(tmp_path / "command.py")]
    done = subprocess.run(command, input=code, capture_output=True, text=True, env=environment, check=True)
    (heap,) = re.findall(r"\[heap\]\n.*?\nVmFlags: (.*)", done.stdout, re.DOTALL)
    anew = asked is None and not piped  # a script that comes through a pipe could not be read again
    assert ("hg" in heap.split()) == anew
    assert done.stdout.count("begun") == 1 + anew


@pytest.mark.parametrize("how", ["from distrl.__main__ import main; main()", "from distrl import train"])
def test_windows_is_told_what_to_do(how: str) -> None:
    code = f"import sys; sys.platform = 'win32'; {how}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "distrl runs on Linux and macOS. On Windows, install it within WSL" in done.stderr.splitlines()[-1]
    assert ("Traceback" in done.stderr) == ("train" in how)


@pytest.mark.parametrize("columns", ["20", None])
def test_what_goes_to_a_pipe_is_neither_wrapped_nor_cut(
    columns: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the terminal is like that is not written to."""
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    path = tmp_path / "/".join(["a long name" * 9] * 3)
    shown = distrl("train", write(tmp_path, SMALL), f"run_dir={path}", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert [line.rstrip().endswith(str(path)) for line in shown.stdout.splitlines() if "run directory" in line] == [
        True
    ]
    explored = distrl("env", "Pendulum-v1", cwd=tmp_path)
    [misfit] = [line.rstrip() for line in explored.stdout.splitlines() if line.startswith("dqn ")]
    assert len(misfit) > 100 and misfit.endswith(".")


def test_dry_run_makes_nothing(tmp_path: Path) -> None:
    shown = distrl("train", write(tmp_path, SMALL), "run_dir=run", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0
    assert "256 env steps; 12 of them" in shown.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algorithm.lrr=1"], "unknown key 'algorithm.lrr'. Did you mean 'lr'?"),
        (["seed=one"], "seed is 'one'"),
        (["algorithm.gamma=1.5"], "algorithm.gamma is 1.5"),
        (["env.id=CartPole-v7"], "Did you mean 'CartPole-v1'?"),
        (["env.id=a:b:[red]CartPole[/]"], "'a:b:[red]CartPole[/]'"),
        (["env.id=Pendulum-v1", "algorithm={name: dqn}", "replay={}"], "Discrete actions"),
        (["env.id=Pendulum-v1", "algorithm={name: q}"], "a column for every action"),
        (["env.id=Pendulum-v1", "algorithm.action_probs=[0.5,0.5]"], "is of Discrete actions"),
        (["env.id=FrozenLake-v1", "algorithm.body=cnn"], "which takes images"),
        (["algorithm.minibatch_size=100"], "does not divide"),
        (["stop.env_steps=null", "stop.return_mean=null"], "nothing ends this run"),
        (["cluster.runners=100000"], "CPUs here"),
        (["learner.device=cuda"], "no GPU"),
        (["learner.device=cuda", "--dry-run"], "no GPU"),
        (["cluster.address=127.0.0.1:1", "cluster.start=at_once"], "leave it out to use a Ray of this run's own"),
        (["track.mlflow=true", "track.uri=http://127.0.0.1:1"], "127.0.0.1:1"),
        (["run_dir=."], "exists"),
        (["--resume", "nowhere"], "no run to resume"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    name = write(tmp_path, SMALL)
    started = time.monotonic()
    refused = distrl("train", name, *arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr.replace("\n", " ")
    assert "Traceback" not in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert time.monotonic() - started < 40


def test_a_resumed_run_cannot_become_another(finished: Path) -> None:
    refused = distrl("train", "--resume", "run", "algorithm.lr=0.5", cwd=finished)
    assert refused.returncode == 2
    assert "algorithm.lr" in refused.stderr


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_driver_that_ends_early_leaves_nothing_and_resumes_to_the_same_bits(
    how: str, finished: Path, temporary: Path, tmp_path: Path
) -> None:
    """SIGKILL at an arbitrary moment, and what schedulers and spot machines send, of a run on Ray."""
    run_dir = tmp_path / "run"
    process = start(tmp_path, write(tmp_path, SMALL), f"run_dir={run_dir}")
    wait_for_rows(run_dir, 5, process)
    members = family(process)
    assert any("raylet" in " ".join(p.cmdline()) for p in members)
    process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    assert process.wait(60) == (-signal.SIGKILL if how == "kill" else 130)
    assert gone(members, 30)
    assert not [*temporary.glob("distrl-*")]
    assert result_of(run_dir)["status"] == ("running" if how == "kill" else "interrupted")
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    resumed = distrl("train", "--resume", str(run_dir), "cluster.runners=1", "-q", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert result_of(run_dir)["weights_sha256"] == result_of(finished / "run")["weights_sha256"]
    assert result_of(run_dir)["evaluation"] == result_of(finished / "run")["evaluation"]
    all_rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert all_rows[: len(rows)] == rows
    assert [json.loads(row)["iteration"] for row in all_rows] == list(range(12 + 2))


def test_a_quiet_run_says_what_it_recovered_from_and_no_more(tmp_path: Path) -> None:
    """A lost learner leaves many results behind that never come, and Ray has a word to say on each."""
    run_dir = tmp_path / "run"
    config = write(tmp_path, SMALL)
    process = start(tmp_path, config, f"run_dir={run_dir}", "stop.env_steps=10000000", stdout=subprocess.PIPE)
    wait_for_rows(run_dir, 5, process)
    (learner,) = [p for p in family(process) if " ".join(p.cmdline()).startswith("ray::Learner")]
    learner.kill()
    wait_for_rows(run_dir, (run_dir / "metrics.jsonl").read_text().count("\n") + 5, process)
    time.sleep(1)  # for what else there may be to say
    process.send_signal(signal.SIGINT)
    told, warned = process.communicate(timeout=60)
    assert [line.split(b" (")[0] for line in warned.splitlines()] == [
        b"warning: the learner was lost",
        b"",
        b"Ending the run with a checkpoint; Ctrl-C once more to leave at once.",
    ]
    assert [line.split()[0] for line in told.splitlines()] == [b"Interrupted", b"Go"]


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start(tmp_path, write(tmp_path, SMALL), f"run_dir={run_dir}", "stop.env_steps=10000000", "--local")
    wait_for_rows(run_dir, 1, first)
    second = distrl("train", "--resume", str(run_dir), "--local", cwd=tmp_path)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert second.returncode == 2
    assert "another process" in second.stderr


def test_a_damaged_checkpoint_is_refused_and_the_one_before_loads(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished / "run"), str(run_dir)], check=True)
    *_, before, newest = sorted((run_dir / "checkpoints").iterdir())
    with (newest / "learner.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff\xfe")
    refused = distrl("train", "--resume", str(run_dir), "--local", cwd=tmp_path)
    assert refused.returncode == 2
    assert "learner.safetensors" in refused.stderr
    assert before.name in refused.stderr
    again = distrl("train", "--resume", str(before), "--local", "-q", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert result_of(run_dir)["weights_sha256"] == result_of(finished / "run")["weights_sha256"]


def test_env_is_explored_and_a_typo_is_understood(tmp_path: Path) -> None:
    explored = distrl("env", "CartPole-v1", cwd=tmp_path)
    assert explored.returncode == 0, explored.stderr
    for word in ("475", "500", "ppo", "steps/s"):
        assert word in explored.stdout
    refused = distrl("env", "LunarLandr-v3", cwd=tmp_path)
    assert refused.returncode == 2
    assert "Did you mean 'LunarLander-v3'?" in refused.stderr.replace("\n", " ")


def test_bench_tells_the_share_of_pure_simulation(tmp_path: Path) -> None:
    shown = distrl("bench", write(tmp_path, SMALL), "--seconds", "3", "--local", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    ratio = re.search(r"ratio\W+(\d+)%", shown.stdout)
    assert ratio is not None
    assert 0 < int(ratio[1]) < 100
    assert "peak memory" in shown.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_settings_of_a_dotenv_file_count(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MLFLOW_TRACKING_URI=http://127.0.0.1:1\n")
    refused = distrl("train", write(tmp_path, SMALL), "track.mlflow=true", "--local", cwd=tmp_path)
    assert refused.returncode == 2
    assert "http://127.0.0.1:1" in refused.stderr


def test_start_up_counts_from_the_interpreter_not_from_the_shell_that_became_it(tmp_path: Path) -> None:
    few = "stop.env_steps=256 evaluation.every=0 evaluation.final_episodes=0"
    train = f"exec {sys.executable} -m distrl train {write(tmp_path, SMALL)} run_dir=run --local -q {few}"
    subprocess.run(["bash", "-c", f"sleep 3; date +%s.%N > began; {train}"], cwd=tmp_path, check=True)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    seconds = first["time"] - float((tmp_path / "began").read_text())  # to the end of the first iteration
    assert 0.5 * seconds < result_of(tmp_path / "run")["startup_s"] < seconds
