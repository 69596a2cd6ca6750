"""What a run is made of before it starts: the device that it learns on, at its beginning and when it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import CARTPOLE, config_of

from distrl import train
from distrl.config import load_config
from distrl.errors import UserError
from distrl.models.store import newest_checkpoint, read_model
from distrl.runs.plan import plan_run
from distrl.runs.resume import load_resumed_config
from distrl.settings import NormalizeSettings
from distrl.training.checkpoint import read_checkpoint, read_checkpoint_config, write_checkpoint

SMALL = [
    "stop.env_steps=256", "track.mlflow=false", "track.video=false", "evaluation.every=0", "evaluation.final_episodes=0",
]  # fmt: skip
LONGER = "stop.env_steps=512"


def device_of(text: str) -> str:
    found: str = yaml.safe_load(text)["learner"]["device"]
    return found


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration, that was left to choose its device."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(config_of(CARTPOLE, *SMALL, f"run_dir={run_dir}"), local=True, quiet=True)
    return run_dir


@pytest.fixture
def on_gpu(on_cpu: Path, tmp_path: Path) -> Path:
    """The same run, as one that learnt on a GPU would have left it."""
    run_dir = tmp_path / "run"
    shutil.copytree(on_cpu, run_dir)
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None
    state, policy = read_checkpoint(checkpoint, shards=4), read_model(checkpoint)[0]
    config = read_checkpoint_config(checkpoint).replace("device: cpu", "device: cuda")
    shutil.rmtree(checkpoint)
    write_checkpoint(checkpoint, state, policy, {}, config)
    (run_dir / "config.yaml").write_text(config)
    return run_dir


def test_the_device_that_was_found_is_written_where_a_resume_reads_it(on_cpu: Path) -> None:
    checkpoint = newest_checkpoint(on_cpu)
    assert checkpoint is not None
    assert device_of((on_cpu / "config.yaml").read_text()) == "cpu"
    assert device_of(read_checkpoint_config(checkpoint)) == "cpu"


def test_a_run_that_learnt_on_a_gpu_does_not_go_on_without_one_unless_told_to(on_gpu: Path) -> None:
    for config in (load_resumed_config(on_gpu, [LONGER]), config_of(CARTPOLE, *SMALL, LONGER)):
        with pytest.raises(UserError, match=r"learner.device is 'cuda'.*no GPU.*learner.device=cpu"):
            train(config, local=True, resume=on_gpu, quiet=True)
    assert device_of((on_gpu / "config.yaml").read_text()) == "cuda"

    told = load_resumed_config(on_gpu, [LONGER, "learner.device=cpu"])
    assert "learnt on cuda until here; on cpu it goes on to other bits" in " ".join(plan_run(told, on_gpu).warnings)
    assert train(told, local=True, resume=on_gpu, quiet=True).data["env_steps"] == 512
    assert device_of((on_gpu / "config.yaml").read_text()) == "cpu"


@pytest.mark.parametrize(("given", "device"), [("auto", "cuda"), ("cpu", "cpu")])
def test_a_config_file_beside_the_run_may_name_the_device(
    given: str, device: str, on_gpu: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config_of(CARTPOLE, *SMALL, f"learner.device={given}", f"run_dir={on_gpu}").to_yaml())
    assert plan_run(load_resumed_config(on_gpu, [], file), on_gpu).config.learner.device == device


def test_a_run_goes_on_where_it_was_without_a_word(on_cpu: Path) -> None:
    for override in ([], ["learner.device=auto"], ["learner.device=cpu"]):
        plan = plan_run(load_resumed_config(on_cpu, override), on_cpu)
        assert (plan.config.learner.device, plan.warnings) == ("cpu", ())


def test_a_run_directory_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plan_run(config_of(CARTPOLE, *SMALL, "run_dir=~/runs/a")).run_dir == tmp_path / "runs" / "a"


def test_several_learners_are_told_and_warned_of_where_they_do_not_pay() -> None:
    several = ("learner.slices=4", "learner.count=2")
    plan = plan_run(config_of(CARTPOLE, *several))
    assert plan.learners_note == "2 processes, 2 of the 4 slices of a minibatch each"
    assert "a minibatch of 64 is little work for 1,282 parameters" in " ".join(plan.warnings)
    large = ("algorithm.hidden=[1024, 1024]", "algorithm.minibatch_size=256")
    assert not any("little work" in warning for warning in plan_run(config_of(CARTPOLE, *several, *large)).warnings)
    pixels = load_config("ppo_flappy_pixels", [*several, "algorithm.minibatch_size=16", "track.mlflow=false"])
    assert not any("little work" in warning for warning in plan_run(pixels).warnings)


def test_a_run_of_an_older_distrl_goes_on_by_the_defaults_of_what_its_config_does_not_say(on_cpu: Path) -> None:
    """To the same weights, of course; and what it does not say may still not be changed."""
    checkpoint = newest_checkpoint(on_cpu)
    assert checkpoint is not None
    old = yaml.safe_load(read_checkpoint_config(checkpoint))
    assert old.pop("normalize") == {"obs": False, "reward": False}
    state, policy = read_checkpoint(checkpoint, shards=4), read_model(checkpoint)[0]
    run_dir = on_cpu.with_name("older")
    shutil.copytree(on_cpu, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / checkpoint.name)
    write_checkpoint(run_dir / "checkpoints" / checkpoint.name, state, policy, {}, yaml.safe_dump(old))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(UserError, match=r"normalize.obs \(False there, True here\)"):
        plan_run(
            load_resumed_config(run_dir, [LONGER]).model_copy(update={"normalize": NormalizeSettings(obs=True)}),
            run_dir,
        )
    result = train(load_resumed_config(run_dir, [LONGER]), local=True, resume=run_dir, quiet=True)
    again = train(config_of(CARTPOLE, *SMALL, LONGER, f"run_dir={on_cpu.with_name('again')}"), local=True, quiet=True)
    assert result.data["weights_sha256"] == again.data["weights_sha256"]
