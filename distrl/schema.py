"""Every setting there is, with its rule, default and meaning: as JSON schema for editors, and as rows for people.

Both are made of the types that check a config, so that they cannot say anything else.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import Field, create_model
from pydantic.json_schema import GenerateJsonSchema

from distrl.registry import ALGORITHMS, algorithm_module
from distrl.settings import Config

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """For algorithms of anybody's own: what JSON schema has no words for may be anything."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Of defaults that JSON cannot hold, which are told as they can be."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}


@dataclass(frozen=True)
class Setting:
    """One key of a config, as people read it."""

    key: str  # dotted
    default: str  # as YAML
    rule: str  # what it takes
    meaning: str
    section: bool  # it holds keys, and that is all there is to it
    inside: bool  # of something that is mostly given whole, such as a schedule


def json_schema(algorithm: str | None = None) -> Schema:
    """The JSON schema of a whole config with an algorithm; None: with any that has a name.

    Raises:
        UserError: there is no such algorithm
    """
    names = list(ALGORITHMS.names()) if algorithm is None else [algorithm]
    found: list[Any] = [algorithm_module(name).Settings for name in names]
    parts = reduce(operator.or_, found)
    about = Config.model_fields["algorithm"].description
    whole = create_model("Config", __base__=Config, algorithm=(parts, Field(description=about)))
    schema = whole.model_json_schema(schema_generator=_Generator)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"description": "A whole run."}


def settings(algorithm: str) -> list[Setting]:
    """Every setting of a run with an algorithm, parts behind what they are part of. Raises `UserError` as `json_schema`."""
    schema = json_schema(algorithm)
    return list(_settings(schema, schema["$defs"], "", False))


def _settings(node: Schema, known: Mapping[str, Schema], prefix: str, inside: bool) -> Iterator[Setting]:
    for name, property in node["properties"].items():
        forms = _forms(property, known)
        objects = [form for form in forms if "properties" in form]
        key, required = f"{prefix}{name}", name in node.get("required", [])
        section = len(forms) == len(objects) == 1
        default = "required" if required else _value(_shortest(property.get("default"), forms))
        rule = " | ".join(dict.fromkeys(_rule(form, known) for form in forms))
        meaning = property.get("description") or next(
            (form["description"] for form in forms if "description" in form), ""
        )
        yield Setting(key, default, rule, meaning, section, inside)
        whole = any(form.get("type") == "number" for form in forms)
        for form in objects:
            yield from _settings(form, known, f"{key}.", inside or whole)


def _forms(schema: Schema, known: Mapping[str, Schema]) -> list[Schema]:
    """What a value may be, of which each is one thing."""
    if "$ref" in schema:
        return _forms(known[schema["$ref"].rpartition("/")[2]], known)
    return [part for form in schema["anyOf"] for part in _forms(form, known)] if "anyOf" in schema else [schema]


def _shortest(value: Any, forms: list[Schema]) -> Any:
    """A default without what is the default of its parts; a number where it may be one."""
    if not isinstance(value, dict):
        return value
    parts: Schema = next((form["properties"] for form in forms if "properties" in form), {})
    short = {k: v for k, v in value.items() if "default" not in parts.get(k, {}) or parts[k]["default"] != v}
    number = list(short) == ["start"] and any(form.get("type") == "number" for form in forms)
    return short["start"] if number else short


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


def _rule(form: Schema, known: Mapping[str, Schema]) -> str:
    """What one form takes, in words."""
    if "enum" in form or "const" in form:
        return " | ".join(map(_value, form.get("enum", [form.get("const")])))
    kind = str(form.get("type", "anything"))
    if kind == "array":
        items = " | ".join(dict.fromkeys(_rule(part, known) for part in _forms(form.get("items", {}), known)))
        return f"list of {items or 'anything'}"
    if "properties" in form:
        return f"{{{', '.join(form['properties'])}}}"
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true | false",
        "string": "text",
        "object": "mapping",
    }
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_value(form[name])}" for name, sign in signs.items() if name in form]
    return " ".join([words.get(kind, kind), " and ".join(bounds)]).strip()
