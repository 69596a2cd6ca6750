"""What a run is: typed, validated, YAML in and out, `key=value` overrides. Knows no torch and no Ray.

`load_config` is the one way in. An algorithm's own settings are a model in the algorithm's file, which is imported when
a config asks for it (distrl.registry).
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distrl import settings as ground
from distrl.aliases import elsewhere
from distrl.errors import UserError, did_you_mean, reading, shown
from distrl.presets import find_preset, unknown_preset
from distrl.registry import ALGORITHMS, algorithm_module, wrapper
from distrl.schema import settings
from distrl.settings import EnvSettings
from distrl.stores import Store
from distrl.yaml_format import read_value, read_yaml


class Config(ground.Config):
    """A whole run, as `load_config` gives it."""

    def with_(self, **changes: Any) -> Config:
        """A config with other values by dotted keys: `config.with_(seed=3, **{"algorithm.lr": 1e-3})`.

        Raises:
            UserError: a key or a value is wrong, as `load_config` does
        """
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}
        with reading("These changes cannot be read as a config"):
            return _load(self.model_dump(mode="json"), plain.items(), "config")


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file, a preset's name or a mapping, with `dotted.key=value` overrides on top.

    Raises:
        UserError: the file, a key or a value is wrong; the message names it, the rule and the remedy.
    """
    origin = "config" if isinstance(source, Mapping) else str(source)
    with reading(f"{shown(origin)} cannot be read as a config"):
        data = _copy(source) if isinstance(source, Mapping) else read_config_file(Path(source))
        return _load(data, map(parse_override, overrides), origin)


def changed_config(data: Mapping[str, Any], changes: Mapping[str, Any], origin: str) -> Config:
    """The config that `data` says with other values by dotted keys. Raises `UserError` as `load_config` does."""
    with reading(f"{shown(origin)} cannot be read as a config"):
        return _load(_copy(data), changes.items(), origin)


def _load(data: dict[str, Any], changes: Iterable[tuple[str, Any]], origin: str) -> Config:
    """The config that `data` says with other values by dotted keys, checked."""
    before, changes = _copy(data), list(changes)
    for key, value in changes:
        _set(data, key, value)
    _check_left_over(before, data, origin)
    config = _typed(data, origin, [_made(before, key) for key, _ in changes])
    for around in config.env.wrappers:
        wrapper(around.name)
    for part in (config.schedule, config.normalize, config.replay, config.opponents, config.algorithm, config.learner):
        if part is not None:
            part.check(config)
    if config.init_from is not None:  # whoever reads the config may be elsewhere
        config = config.model_copy(update={"init_from": str(Path(config.init_from).absolute())})
    if config.storage is not None:
        config = config.model_copy(update={"storage": str(Store.parse(config.storage))})
    return config


def env_settings(env_id: str, arguments: Sequence[str], wrappers: Sequence[str] = ()) -> EnvSettings:
    """An env with `key=value` arguments of its own, and wrappers: a name, or YAML of its `WrapperSettings`, each.

    Raises `UserError` where one is wrong.
    """
    kwargs: dict[str, Any] = {}
    for argument in arguments:
        _set(kwargs, *parse_override(argument))
    data = {"id": env_id, "kwargs": kwargs, "wrappers": [read_value(text) for text in wrappers]}
    return validated(EnvSettings, data, ("env",), "command line")


def _made(before: Any, key: str) -> str:
    """The place that is new with an override: its key, or what holds that and was not there."""
    parts = key.split(".")
    for count, part in enumerate(parts, 1):
        if not isinstance(before, Mapping) or part not in before:
            return ".".join(parts[:count])
        before = before[part]
    return key


def _typed(data: dict[str, Any], origin: str, changed: Sequence[str]) -> Config:
    """The config that `data` says, each value by its own rule. `changed`: the keys that do not come from `origin`."""
    given = data.setdefault("algorithm", {})
    name = given.get("name") if isinstance(given, Mapping) else None
    if name is None:
        raise UserError(f"{origin}: algorithm.name is missing; it must be one of {', '.join(ALGORITHMS.names())}.")
    algorithm = validated(algorithm_module(name).Settings, given, ("algorithm",), origin, str(name), changed)
    if algorithm.replayed is not None and data.get("replay") is None:
        data["replay"] = {}
    return validated(Config, data | {"algorithm": algorithm}, (), origin, str(name), changed)


def _algorithm(data: Mapping[str, Any]) -> Mapping[str, Any]:
    given = data.get("algorithm")
    return given if isinstance(given, Mapping) else {}


def _check_left_over(before: Mapping[str, Any], data: Mapping[str, Any], origin: str) -> None:
    """Raise `UserError` where an override of `algorithm.name` left what only the algorithm before has; names all of it."""
    given, left = _algorithm(before), _algorithm(data)
    old, new = given.get("name"), left.get("name")
    if old is None or new is None or old == new:
        return
    known = algorithm_module(new).Settings
    foreign = [f"algorithm.{key}" for key in given if key in left and key not in known.model_fields]
    other = known(name=str(new))
    parts = {"replay": other.replayed is None, "normalize": other.discount is None, "schedule": not other.any_age}
    unfit = [part for part, amiss in parts.items() if amiss and _is_used(part, before.get(part)) and part in data]
    unfit = [part for part in unfit if _is_used(part, data[part])]
    if foreign or unfit:
        remedy = " ".join(
            [
                f"'algorithm={{name: {new}}}'",
                *(f"{part}=null" if part == "replay" else f"{part}={{}}" for part in unfit),
            ]
        )
        env = data.get("env", {}).get("id") if isinstance(data.get("env"), Mapping) else None
        raise UserError(
            f"{origin} is a config of {old}, and {new} has no {', '.join([*foreign, *unfit])}. Begin with what suits {new}, "
            f"--env {env or 'ID'} --algo {new}, or with its defaults in this config: {remedy}."
        )


def _is_used(part: str, value: Any) -> bool:
    """Whether a part of a config asks for what not every algorithm has."""
    if not isinstance(value, Mapping):
        return False
    on = {"replay": True, "normalize": any(value.values()), "schedule": value.get("kind") == "async"}
    return bool(on[part])


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def read_config_file(path: Path) -> dict[str, Any]:
    """What a YAML file, a run directory's config or a preset says, unchecked. Raises `UserError` where there is none."""
    if path.is_dir() and (path / "config.yaml").exists():
        path = path / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if (preset := find_preset(str(path))) is not None:
            return read_config_file(preset.path)
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


def parse_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of `key=value`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(
            f"The override {override!r} must have the form key=value, such as seed=3 or env.id=CartPole-v1."
        )
    return key, read_value(text)


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    told = f"{key}={value}"
    for parent in parents:
        below = data.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(
                f"The override {shown(told)} looks inside {parent!r}, which holds {shown(below)} and has no keys."
            )
        data = below
    data[leaf] = value


M = typing.TypeVar("M", bound=BaseModel)


def validated(
    model: type[M],
    data: Any,
    prefix: tuple[str, ...],
    origin: str,
    algorithm: str | None = None,
    changed: Sequence[str] = (),
) -> M:
    """`data` as a model, which is that of the keys below `prefix` in a run with the algorithm, or of no run.

    Args:
        origin: where it is from
        changed: the keys of it that are not from there, but overrides

    Raises:
        UserError: a key or a value is wrong
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines: dict[str, str] = {}  # by key: a field of several types gives an error for each of them
        for item in error.errors():
            key, line = _explain(model, dict(item), prefix, algorithm)
            lines[key] = f"{lines[key].removesuffix('.')}; or {line.rpartition(': ')[2]}" if key in lines else line
        told = [f"{'override' if _below(key, changed) else origin}: {line}" for key, line in lines.items()]
        raise UserError("\n".join(told)) from None


def _below(key: str, places: Sequence[str]) -> bool:
    """Whether a key is one of some places, or in one."""
    return any(f"{key}.".startswith(f"{place}.") for place in places)


def _explain(
    model: type[BaseModel], item: dict[str, Any], prefix: tuple[str, ...], algorithm: str | None
) -> tuple[str, str]:
    """The key, and one line for one error of pydantic: the key, the value, the rule, the remedy."""
    location = [str(part) for part in item["loc"]]
    fields = _fields(model, location[:-1])
    if item["type"] == "extra_forbidden":
        key, leaf = ".".join([*prefix, *location]), location[-1]
        known = "" if algorithm is None else elsewhere(leaf, algorithm, [s.key for s in settings(algorithm)])
        hint = known or did_you_mean(leaf, fields) or f" Known here: {', '.join(fields)}."
        return key, f"unknown key {key!r}.{hint}"
    parts = [part for i, part in enumerate(location) if part in _fields(model, location[:i])]
    key = ".".join([*prefix, *parts]) or "config"
    if item["type"] == "missing" and any(part.isdigit() for part in location):
        return key, f"{key} is missing in {item['input']!r}; give it there."
    if item["type"] == "missing":
        return key, f"{key} is missing; give it in the file or as {key}=VALUE."
    rule = _rule(item["type"], key, _model(model, location)) or item["msg"].removeprefix("Value error, ")
    if isinstance(item.get("input"), (str, int, float, bool, type(None))):
        return key, f"{key} is {shown(item['input'])}: {rule}."
    return key, f"{key}: {rule}."


def _rule(kind: str, key: str, below: type[BaseModel] | None) -> str:
    """What is due, where pydantic says it in words of Python; '' where it does not."""
    if kind in ("bool_parsing", "bool_type"):
        return "true or false is due"
    if kind == "tuple_type":
        return f"a list is due; give it in brackets, {key}=[...]"
    if kind == "model_type" and below is not None:
        first = [(name, field) for name, field in below.model_fields.items()][:2]
        told = ", ".join(f"{name}: {'...' if field.is_required() else field.default}" for name, field in first)
        return f"it has keys of its own; give them, such as {key}={{{told}}}"
    return ""


def _fields(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    below = _model(model, location)
    return [] if below is None else list(below.model_fields)


def _model(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    """What holds the keys below a place."""
    for part in location:
        if part.isdigit():  # a place in a list
            continue
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        below = [a for a in (annotation, *typing.get_args(annotation)) if isinstance(a, type)]  # X, or X | None
        models = [a for a in below if issubclass(a, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model
