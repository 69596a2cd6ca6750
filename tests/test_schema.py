"""Every setting is told as it is: held against the validation itself, by another library's reading of the schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from processes import distrl
from pydantic import BaseModel, Field

from distrl.config import load_config
from distrl.errors import UserError
from distrl.presets import presets
from distrl.registry import ALGORITHMS, algorithm_module
from distrl.schema import Setting, json_schema, settings
from distrl.settings import AlgorithmSettings, Config, dotted
from distrl.yaml_format import read_yaml


def by_key(algorithm: str) -> dict[str, Setting]:
    return {setting.key: setting for setting in settings(algorithm)}


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for below in model.__subclasses__():
        yield from models(below)


def test_every_setting_says_what_it_means() -> None:
    for name in ALGORITHMS.built_in:
        algorithm_module(name)
        assert [s.key for s in settings(name) if len(s.meaning) < 5] == []
    fields = [
        (m, n, f)
        for m in models(Config.__base__)
        if m.__module__.startswith("distrl.")
        for n, f in m.model_fields.items()
    ]
    assert len(fields) > 100
    assert [f"{m.__module__}.{m.__name__}.{n}" for m, n, f in fields if not f.description] == []


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_the_settings_are_those_of_a_resolved_config_and_so_are_their_defaults(name: str) -> None:
    base = {"env": {"id": "CartPole-v1"}, "algorithm": {"name": name}}
    config, told = load_config(base), by_key(name)
    resolved = dotted(config.model_dump(mode="json"))
    assert resolved.keys() <= told.keys()
    absent = tuple(f"{key}." for key, value in resolved.items() if value is None)
    tried = [
        s for s in told.values() if not (s.section or s.inside or s.default == "required" or s.key.startswith(absent))
    ]
    assert len(tried) > 40
    for setting in tried:
        if setting.key != "replay":  # null, and there none the less where it is needed
            assert load_config(base, [f"{setting.key}={setting.default}"]) == config, setting.key


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_the_schema_takes_what_is_taken(preset: Any) -> None:
    """Presets as they are written, and resolved, by the schema of their algorithm and by that of all."""
    for schema in (json_schema(preset.algorithm), json_schema()):
        check = jsonschema.Draft202012Validator(schema)
        check.check_schema(schema)
        check.validate(preset.data)
        check.validate(read_yaml(load_config(preset.path).to_yaml()))


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.lrr=1", "algorithm.gamma=1.5", "algorithm.hidden=[0]", "rollout.steps=0", "rollout.step=1", "seed=-1",
        "schedule.kind=fast", "stop.return_mean=soon", "algorithm.lr=fast", "algorithm.lr={end: 1}", "env.wrappers=[1]",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_refused(override: str) -> None:
    base = {"env": {"id": "CartPole-v1", "wrappers": ["flatten"]}, "algorithm": {"name": "ppo", "lr": 1e-3}}
    check = jsonschema.Draft202012Validator(json_schema("ppo"))
    check.validate(base)
    with pytest.raises(UserError):
        load_config(base, [override])
    key, _, text = override.partition("=")
    *parents, leaf = key.split(".")
    part: Any = base
    for parent in parents:
        part = part.setdefault(parent, {})
    part[leaf] = read_yaml(text)
    assert not check.is_valid(base)


class Odd:
    """What JSON schema has no words for."""


def test_editors_complete_what_is_shipped(tmp_path: Path) -> None:
    """By their first lines, which name a schema of the algorithm that install.sh writes."""
    root = Path(__file__).parent.parent
    [loop] = re.findall(r"(mkdir -p configs/.*?\ndone\n)", (root / "scripts/install.sh").read_text(), re.DOTALL)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/distrl"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m distrl "$@"\n')
    command.chmod(0o755)
    subprocess.run(["bash", "-euo", "pipefail", "-c", loop], cwd=tmp_path, check=True)
    for file in sorted((root / "configs").glob("*.yaml")):
        first, content = file.read_text().splitlines()[0], read_yaml(file.read_text())
        schema = tmp_path / "configs" / first.removeprefix("# yaml-language-server: $schema=")
        jsonschema.validate(content, json.loads(schema.read_text()))
        assert schema.stem == content["algorithm"]["name"]


def test_settings_of_anybodys_own_are_told_as_far_as_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(AlgorithmSettings, arbitrary_types_allowed=True):
        odd: Odd | None = Field(default=Odd(), description="odd")
        call: Callable[[int], int] | None = None

    monkeypatch.setitem(
        sys.modules, "own_algorithm", SimpleNamespace(**vars(algorithm_module("q")) | {"Settings": Own})
    )
    told = by_key("own_algorithm")
    assert (told["algorithm.odd"].rule, told["algorithm.odd"].meaning) == ("anything | null", "odd")
    with pytest.raises(UserError, match="SB3's n_envs is rollout"):
        load_config({"env": {"id": "CartPole-v1"}, "algorithm": {"name": "own_algorithm", "n_envs": 1}})


def test_rules_are_read_as_they_are_meant() -> None:
    told = by_key("dqn")
    assert told["schedule.kind"].rule == "lockstep | async"
    assert told["replay.alpha"].rule == "number >= 0 and <= 1"
    assert told["stop.return_mean"].rule == "number | auto | null"
    assert told["env.wrappers"].rule == "list of text | {name, kwargs}"
    assert told["algorithm.epsilon"].default == "{start: 1, end: 0.05, over: 10000}"
    assert told["algorithm.lr"].default == "0.001"
    assert told["env.id"].default == "required"


def test_the_command_shows_all_of_an_algorithm_one_setting_a_line(tmp_path: Path) -> None:
    shown = distrl("config", "ppo", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    wanted = {s.key for s in settings("ppo") if not s.section and not s.inside}
    assert {line.split()[0] for line in lines[2:]} == wanted and len(lines) == len(wanted) + 2
    [lag] = [line for line in lines if line.startswith("schedule.lag ")]
    assert lag.split()[1:5] == ["1", "0", "|", "1"] and lag.rstrip().endswith("both at once, one version late")


def test_the_command_shows_one_setting_or_a_schema_and_understands_a_typo(tmp_path: Path) -> None:
    one = distrl("config", "ppo", "algorithm.clip", cwd=tmp_path).stdout
    assert "epsilon of the clipped surrogate" in one and "algorithm.clip.start" in one and "gamma" not in one
    everywhere = distrl("config", "algorithm.gamma", cwd=tmp_path).stdout
    assert [everywhere.count(f"algorithm.name={name}") for name in ALGORITHMS.built_in] == [1] * len(
        ALGORITHMS.built_in
    )
    assert json.loads(distrl("config", "q", "--schema", cwd=tmp_path).stdout) == json_schema("q")
    for arguments in (("ppo", "algorithm.gama"), ("algorithm.gama",)):
        refused = distrl("config", *arguments, cwd=tmp_path)
        assert refused.returncode == 2 and "Did you mean 'algorithm.gamma'?" in refused.stderr
    named = distrl("config", "ppo", "learning_rate", cwd=tmp_path)
    assert named.returncode == 2 and "SB3's learning_rate is algorithm.lr." in named.stderr
    unknown = distrl("config", "ppa", cwd=tmp_path)
    assert unknown.returncode == 2 and "Did you mean 'ppo'?" in unknown.stderr
