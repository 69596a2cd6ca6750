"""Presets: found by name and by what they are for, in a checkout and in an installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import distrl

from distrl.config import load_config
from distrl.errors import UserError
from distrl.presets import Preset, presets, presets_for, scores
from distrl.runs.choose import choose_config
from distrl.runs.plan import plan_run

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("preset", presets(), ids=lambda p: p.name)
def test_every_preset_is_a_config_whatever_it_is_called_by_and_can_be_run(preset: Preset, tmp_path: Path) -> None:
    """As far as can be known without running it: settings, spaces, sizes, and the memory of a replay."""
    by_name = load_config(preset.name)
    assert by_name == load_config(preset.path) == load_config(yaml.safe_load(by_name.to_yaml()))
    assert by_name.env.id == preset.env_id
    assert plan_run(load_config(preset.name, [f"run_dir={tmp_path}/run", "track.mlflow=false"])).policy.shapes()


def test_scores_are_of_presets_that_there_are_and_are_told() -> None:
    assert set(scores()) <= {preset.name for preset in presets()}
    told = {preset.name: preset.score for preset in presets()}
    assert told["ppo_cartpole"] == "return 500.0 ± 0.0 (5 seeds)"
    assert told["q_frozenlake"] == "exact value 0.7402 ± 0.0000 (5 seeds)"


def test_games_are_scored_by_opponent_and_seat() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import scores as script

    def result(won: float, drawn: float) -> dict[str, Any]:
        shares = {"win": {"x": won, "o": 0.5}, "draw": {"x": drawn, "o": 0.0}, "loss": {"x": 1 - won - drawn, "o": 0.5}}
        return {"evaluation": {"against": {"random": shares, "some.module:look": shares}}}

    known = script.games([result(0.75, 0.25), result(0.25, 0.25)])
    assert known == {name: {"x": [0.5, 0.25, 0.25], "o": [0.5, 0.0, 0.5]} for name in ("random", "look")}
    entry = {"what": "games won against random", "seeds": {"1": 0.625}, "against": known}
    assert "| `ppo_some` | look | o | 0.5 | 0.0 | 0.5 |" in script.table({"ppo_some": entry}).splitlines()


def test_the_preset_of_a_pair_is_the_plainest() -> None:
    found = {pair: presets_for(*pair) for pair in [("CartPole-v1", "dqn"), ("CartPole-v1", None), ("Nothing-v0", None)]}
    assert {pair: [p.name for p in ps][:1] for pair, ps in found.items()} == {
        ("CartPole-v1", "dqn"): ["dqn_cartpole"],
        ("CartPole-v1", None): ["ppo_cartpole"],
        ("Nothing-v0", None): [],
    }


def test_of_several_presets_the_one_of_the_same_env_kwargs_is_taken() -> None:
    config, origin = choose_config("LunarLander-v3", "ppo", ["env.kwargs.continuous=true"])
    assert origin == "the preset ppo_lunarlander_continuous" and config.env.kwargs == {"continuous": True}
    assert choose_config("LunarLander-v3", "ppo")[1] == "the preset ppo_lunarlander"


def test_without_a_preset_the_spaces_decide_and_the_run_can_be_planned(tmp_path: Path) -> None:
    config, origin = choose_config(
        "Blackjack-v1", "q", ["env.kwargs={natural: true}", "track.mlflow=false", f"run_dir={tmp_path}/run"]
    )
    assert "preset q_blackjack" in origin and config.env.kwargs == {"natural": True}
    config, origin = choose_config("MountainCarContinuous-v0", "ppo", ["track.mlflow=false", f"run_dir={tmp_path}/run"])
    assert "defaults" in origin and plan_run(config).info.id == "MountainCarContinuous-v0"
    with pytest.raises(UserError, match=r"Did you mean 'Acrobot-v1'"):
        choose_config("Acrobt-v1", "ppo")


def test_a_dqn_on_images_fits_into_a_laptop() -> None:
    """Whatever the size of the images is: what all processes hold of them at once."""
    for options in (
        ["env.kwargs={continuous: false}"],
        ["env.kwargs={continuous: false}", "env.wrappers=[{name: frame_stack}]"],
    ):
        config, _ = choose_config("CarRacing-v3", "dqn", [*options, "track.mlflow=false"])
        plan = plan_run(config)
        assert config.replay is not None and config.replay.samples_per_insert <= 8
        assert plan.object_store_bytes + plan.replay_bytes < 2 * 2**30


def test_a_chosen_config_is_written_whole_and_is_an_input(tmp_path: Path) -> None:
    done = distrl("train", "--env", "CartPole-v1", "seed=7", "--save-config", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "mine.yaml") == load_config("ppo_cartpole", ["seed=7"])
    again = distrl("train", "--env", "CartPole-v1", "--save-config", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "exists" in again.stderr
    both = distrl("train", "ppo_cartpole", "--env", "CartPole-v1", cwd=tmp_path)
    assert both.returncode == 2 and "Leave out --env" in both.stderr


def test_a_wheel_carries_the_presets(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "distrl" / "py.typed").exists()  # its annotations are meant to be used
    code = "import json; from distrl.presets import DIRECTORY, presets; print(json.dumps([str(DIRECTORY), len(presets())]))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == [str(tmp_path / "site" / "distrl" / "presets"), len(presets())]
    few = "stop.return_mean=null stop.env_steps=4096 evaluation.final_episodes=2 track.mlflow=false run_dir=run"
    trained = subprocess.run(
        [sys.executable, "-P", "-m", "distrl", "train", "ppo_cartpole", "--local", *few.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"
