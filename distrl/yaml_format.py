"""YAML as distrl reads and writes it: what is written reads back the same, and nothing is read that is said twice."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e6 and 3e-4 as numbers, as YAML 1.2 and people do, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes texts that the loader would take for numbers in quotes."""


for _form in (_Loader, _Dumper):
    _form.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def read_yaml(text: str) -> Any:
    """What a text says. Raises `ValueError`, with the reason and the place, where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_value(text: str) -> Any:
    """A value of the command line: YAML, or the text itself where it is none."""
    try:
        return read_yaml(text)
    except ValueError:
        return text


def write_yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
