"""Configs that come with distrl, by name and by what they are for: an algorithm on an environment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distrl.errors import UserError, did_you_mean
from distrl.yaml_format import read_yaml

_PACKAGE = Path(__file__).parent
DIRECTORY = _PACKAGE / "presets"  # of an installed distrl
if not DIRECTORY.is_dir():
    DIRECTORY = _PACKAGE.parent / "configs"  # of a checkout


@dataclass(frozen=True)
class Preset:
    """A config that comes with distrl, and what it reached."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = read_yaml(self.path.read_text(encoding="utf-8"))
        return data

    @property
    def env_id(self) -> str:
        return str(self.data["env"]["id"])

    @property
    def env_kwargs(self) -> dict[str, Any]:
        return dict(self.data["env"].get("kwargs", {}))

    @property
    def algorithm(self) -> str:
        return str(self.data["algorithm"]["name"])

    @property
    def score(self) -> str:
        """What it reached, for people; '' where it was not measured."""
        known = scores().get(self.name)
        if known is None:
            return ""
        values = list(known["seeds"].values())
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        digits = 1 if abs(mean) >= 10 else 4
        return (
            f"{known['what']} {mean:.{digits}f} ± {deviation:.{digits}f} ({len(values)} seed{'s' * (len(values) != 1)})"
        )


def presets() -> list[Preset]:
    """All of them, by name."""
    return [Preset(path) for path in sorted(DIRECTORY.glob("*.yaml"))]


def scores() -> dict[str, Any]:
    """What each preset reached, as `scripts/scores.py` wrote it down."""
    data: dict[str, Any] = json.loads((DIRECTORY / "scores.json").read_text(encoding="utf-8"))
    return data


def find_preset(name: str) -> Preset | None:
    return next((preset for preset in presets() if preset.name == name), None)


def presets_for(env_id: str, algorithm: str | None) -> list[Preset]:
    """The presets of an env and an algorithm, or of any, in the order of `PREFERRED`; the shortest names, the plainest, first."""
    fitting = [p for p in presets() if p.env_id == env_id and algorithm in (None, p.algorithm)]
    rank = {name: i for i, name in enumerate(PREFERRED)}
    return sorted(fitting, key=lambda p: (rank.get(p.algorithm, len(rank)), len(p.name), p.name))


PREFERRED = ("ppo", "dqn", "a2c", "q")


def unknown_preset(name: str) -> UserError:
    """There is neither a file nor a preset of that name."""
    near = did_you_mean(name.removesuffix(".yaml"), [p.name for p in presets()])
    return UserError(f"There is no config file and no preset {name!r}.{near} 'distrl presets' lists them.")
