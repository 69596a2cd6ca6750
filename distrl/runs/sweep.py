"""What a sweep is: the file, typed and read. `distrl.runs.sweep_check` holds it against the configs that it leads to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from distrl.config import Config, changed_config, parse_override, read_config_file, validated
from distrl.errors import UserError, did_you_mean, reading, shown
from distrl.presets import DIRECTORY
from distrl.runs.sweep_spaces import Overrides, SearchSpace, Space
from distrl.settings import Settings, dotted
from distrl.yaml_format import write_yaml

Seeds = tuple[int, ...]


class SeedSettings(Settings):
    """Which seeds choose a config, and which others say how good it is (Eimer et al. 2023, arXiv:2306.01324)."""

    tune: Seeds = Field(default=(1, 2, 3), min_length=1, description="a trial's score is the mean over these")
    test: Seeds = Field(default=(101, 102, 103, 104, 105), description="of the winner and the base config at the end")

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if both := sorted({*self.tune} & {*self.test}):
            raise ValueError(f"{both} are in tune and in test; a config would be judged by what chose it. Take others")
        for name in ("tune", "test"):
            seeds = getattr(self, name)
            if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
                raise ValueError(f"{name} must be different whole numbers from 0 on, and is {list(seeds)}")
        return self


class BudgetSettings(Settings):
    trials: int | None = Field(default=None, ge=1, description="configs that are tried; null: all of a grid")
    env_steps: int | None = Field(
        default=None, ge=1, description="of one run, as stop.env_steps; null: the base config's"
    )
    seconds: float | None = Field(default=None, gt=0, description="wall-clock of the search; null: no limit")


class TrialSettings(Settings):
    """Where a trial runs; changes the speed alone."""

    runners: int = Field(default=0, ge=0, description="Ray actors of each trial; 0: it is one process on one CPU")
    at_once: int | None = Field(default=None, ge=1, description="trials at once, at most; null: as the CPUs allow")


class PopulationSettings(Settings):
    """Of pbt and pb2: the worst quarter takes over what the best one has learnt, and goes on with changed values."""

    generations: int = Field(default=10, ge=2, description="into which a run is cut; after each the worst take over")
    perturb: float = Field(default=1.2, gt=1, description="of pbt: a value is multiplied or divided by this")
    resample: float = Field(default=0.25, ge=0, le=1, description="of pbt: how often a value is drawn anew instead")


class Sweep(Settings):
    """A whole sweep."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    base: dict[str, Any] = Field(description="a config file, a preset's name, or a config as a mapping")
    set: dict[str, Any] = Field(default={}, description="other values of the base config, by dotted keys")
    search: dict[str, Space] = Field(min_length=1, description="spaces by dotted keys of a config")
    metric: str = Field(default="evaluation/return_mean", description="what a trial's score is")
    budget: BudgetSettings = Field(default=BudgetSettings(), description="how much is tried")
    scheduler: Literal["none", "asha", "halving", "pbt", "pb2"] = Field(
        default="halving", description="who is stopped early: nobody, or all but one in `eta` at each rung"
    )
    searcher: Literal["random", "grid", "optuna"] = Field(default="random", description="who chooses what is tried")
    eta: int = Field(default=2, ge=2, description="one in so many goes on: at each rung, and to each further seed")
    population: PopulationSettings = Field(default=PopulationSettings(), description="of pbt and pb2")
    seeds: SeedSettings = Field(default=SeedSettings(), description="of the runs")
    seed: int = Field(default=1, ge=0, lt=2**63, description="of what is tried")
    trial: TrialSettings = Field(default=TrialSettings(), description="where a trial runs; changes the speed alone")
    sweep_dir: str | None = Field(default=None, description="null: sweeps/NAME")

    def base_config(self) -> Config:
        """The base config as every run begins with it, its own seed and directory aside."""
        return self.config({})

    def config(self, overrides: Overrides, seed: int | None = None) -> Config:
        """The config of a run. Raises `UserError` where there is none such."""
        budget = {} if self.budget.env_steps is None else {"stop.env_steps": self.budget.env_steps}
        seeded = {} if seed is None else {"seed": seed}
        changes = self.set | budget | overrides | seeded | {"run_dir": None}
        config = changed_config(self.base, changes, "the base config")
        return config.on_device("cpu" if config.learner.device == "auto" else config.learner.device)

    @property
    def space(self) -> SearchSpace:
        return SearchSpace(self.search, dotted(self.base_config().model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The sweep, itself a valid input."""
        data = self.model_dump(mode="json", exclude={"search"})
        spaces = {key: space.model_dump(mode="json", exclude_defaults=True) for key, space in self.search.items()}
        return write_yaml({"base": self.base, "search": spaces} | data)


def load_sweep(source: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """A sweep from a file, or the name of one that comes with distrl.

    Args:
        overrides: `key=value`: of the sweep where it has the key (`budget.trials=8`), else of the base config
    Raises:
        UserError: the file, a key or a value is wrong; the message names it, the rule and the remedy
    """
    path = find_sweep(Path(source))
    origin = str(path)
    with reading(f"{shown(origin)} cannot be read as a sweep"):
        data = read_config_file(path)
        for key, value in map(parse_override, overrides):
            _set(data, key, value)
        if isinstance(data.get("base"), str):  # so that a sweep is all that it needs, whatever becomes of the file
            data["base"] = read_config_file(_beside(path, data["base"]))
        return _typed(data, origin)


def _beside(sweep: Path, base: str) -> Path:
    """The base config where it lies: as the shell means it, or beside the sweep's file."""
    beside = sweep.parent / base
    return beside if beside.is_file() and not Path(base).is_file() else Path(base)


def find_sweep(path: Path) -> Path:
    """The file itself, or the one that comes with distrl of that name."""
    ours = DIRECTORY / "sweeps" / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and path.name == str(path) and ours.exists():
        return ours
    if not path.exists():
        known = [file.stem for file in ours.parent.glob("*.yaml")]
        near = did_you_mean(path.name.removesuffix(".yaml"), known) or f" distrl comes with {', '.join(sorted(known))}."
        raise UserError(f"There is no sweep file {str(path)!r}.{near}")
    return path


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """An override of the sweep where its first word is a field of one, else of the base config."""
    section, _, below = key.partition(".")
    if section not in Sweep.model_fields:
        data.setdefault("set", {})[key] = value
    elif section in ("search", "set") and below:  # their keys hold dots
        data.setdefault(section, {})[below] = value
    elif below:
        part = data.setdefault(section, {})
        if not isinstance(part, dict) or "." in below:
            raise UserError(f"The override {key}={value} has no place in a sweep: {section} holds {shown(part)}.")
        part[below] = value
    else:
        data[key] = value


def _typed(data: Mapping[str, Any], origin: str) -> Sweep:
    """Each space by itself, since its key has dots; then the whole."""
    search = data.get("search")
    if not isinstance(search, dict) or not search:
        raise UserError(
            f"{origin}: search is missing; give spaces by dotted keys, such as algorithm.lr: {{loguniform: [1e-4, 1e-2]}}."
        )
    spaces = {}
    for key, space in search.items():
        if not isinstance(space, dict):
            raise UserError(
                f"{origin}: search.{key} is {shown(space)}; it must be a space, such as {{uniform: [0, 1]}} or {{choice: [1, 2]}}."
            )
        spaces[str(key)] = validated(Space, space, ("search", str(key)), origin)
    return validated(Sweep, {**data, "search": spaces}, (), origin)
