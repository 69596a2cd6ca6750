"""What a run is: typed, validated, YAML in and out, `key=value` overrides. Knows no torch and no Ray.

`load_config` is the one way in. An algorithm's own settings are a model in the algorithm's file, which is imported when
a config asks for it (distrl.registry).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distrl.errors import UserError, did_you_mean, reading, shown
from distrl.presets import find_preset, unknown_preset
from distrl.registry import ALGORITHMS, algorithm_module, wrapper
from distrl.settings import Config, EnvSettings
from distrl.yaml_format import read_value, read_yaml


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file, a preset's name or a mapping, with `dotted.key=value` overrides on top.

    Raises:
        UserError: the file, a key or a value is wrong; the message names it, the rule and the remedy.
    """
    origin = "config" if isinstance(source, Mapping) else str(source)
    with reading(f"{shown(origin)} cannot be read as a config"):
        return _load(source, overrides, origin)


def _load(source: str | Path | Mapping[str, Any], overrides: Sequence[str], origin: str) -> Config:
    data = _copy(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    for override in overrides:
        _apply(data, override)
    config = _typed(data, origin)
    for around in config.env.wrappers:
        wrapper(around.name)
    for part in (config.schedule, config.normalize, config.replay, config.algorithm):
        if part is not None:
            part.check(config)
    if config.init_from is not None:  # whoever reads the config may be elsewhere
        config = config.model_copy(update={"init_from": str(Path(config.init_from).absolute())})
    return config


def env_settings(env_id: str, arguments: Sequence[str], wrappers: Sequence[str] = ()) -> EnvSettings:
    """An env with `key=value` arguments of its own, and wrappers: a name, or YAML of its `WrapperSettings`, each.

    Raises `UserError` where one is wrong.
    """
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        _apply(kwargs, argument)
    data = {"id": env_id, "kwargs": kwargs, "wrappers": [read_value(text) for text in wrappers]}
    return _validated(EnvSettings, data, ("env",), "command line")


def _typed(data: dict[str, Any], origin: str) -> Config:
    """The config that `data` says, each value by its own rule."""
    settings = data.setdefault("algorithm", {})
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if name is None:
        raise UserError(f"{origin}: algorithm.name is missing; it must be one of {', '.join(ALGORITHMS.names())}.")
    algorithm = _validated(algorithm_module(name).Settings, settings, ("algorithm",), origin)
    if algorithm.replayed is not None and data.get("replay") is None:
        data["replay"] = {}
    return _validated(Config, data | {"algorithm": algorithm}, (), origin)


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir() and (path / "config.yaml").exists():
        path = path / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if (preset := find_preset(str(path))) is not None:
            return _read_yaml(preset.path)
        if path.name == str(path):
            raise unknown_preset(path.name) from None
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        raise UserError(f"There is no config file {str(path)!r}.{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The config file {str(path)!r} cannot be read: {error}.") from None
    try:
        data = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, such as 'env: {{id: CartPole-v1}}'.")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"The override {override!r} must have the form key=value, such as seed=3 or env.id=CartPole-v1."
        )
    value = read_value(text)
    *parents, leaf = key.split(".")
    for parent in parents:
        below = data.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(
                f"The override {override!r} looks inside {parent!r}, which holds {shown(below)} and has no keys."
            )
        data = below
    data[leaf] = value


M = typing.TypeVar("M", bound=BaseModel)


def _validated(model: type[M], data: Any, prefix: tuple[str, ...], origin: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines: dict[str, str] = {}  # by key: a field of several types gives an error for each of them
        for item in error.errors():
            key, line = _explain(model, dict(item), prefix)
            lines[key] = f"{lines[key].removesuffix('.')}; or {line.rpartition(': ')[2]}" if key in lines else line
        raise UserError("\n".join(f"{origin}: {line}" for line in lines.values())) from None


def _explain(model: type[BaseModel], item: dict[str, Any], prefix: tuple[str, ...]) -> tuple[str, str]:
    """The key, and one line for one error of pydantic: the key, the value, the rule, the remedy."""
    location = [str(part) for part in item["loc"]]
    fields = _fields(model, location[:-1])
    if item["type"] == "extra_forbidden":
        key = ".".join([*prefix, *location])
        return (
            key,
            f"unknown key {key!r}.{did_you_mean(location[-1], fields) or ' Known here: ' + ', '.join(fields) + '.'}",
        )
    known = [part for i, part in enumerate(location) if part in _fields(model, location[:i])]
    key = ".".join([*prefix, *known]) or "config"
    if item["type"] == "missing" and any(part.isdigit() for part in location):
        return key, f"{key} is missing in {item['input']!r}; give it there."
    if item["type"] == "missing":
        return key, f"{key} is missing; give it in the file or as {key}=VALUE."
    rule = item["msg"].removeprefix("Value error, ")
    if isinstance(item.get("input"), (str, int, float, bool, type(None))):
        return key, f"{key} is {shown(item['input'])}: {rule}."
    return key, f"{key}: {rule}."


def _fields(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    for part in location:
        if part.isdigit():  # a place in a list
            continue
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        below = [a for a in (annotation, *typing.get_args(annotation)) if isinstance(a, type)]  # X, or X | None
        models = [a for a in below if issubclass(a, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
