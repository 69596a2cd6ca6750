"""The configs of the project: each can be run here as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distrl.config import load_config
from distrl.runs.plan import plan_run

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_run(path: Path, tmp_path: Path) -> None:
    """As far as can be known without running it: settings, spaces, sizes, and the memory of the replay."""
    config = load_config(path, [f"run_dir={tmp_path / 'run'}", "track.mlflow=false"])
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    assert plan_run(config).policy.shapes()


def test_there_are_some() -> None:
    """Else the test above would pass for want of any."""
    assert len(CONFIGS) > 10
