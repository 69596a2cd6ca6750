"""YAML as distrl reads and writes it: what is written reads back the same, and nothing is read that is said twice."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

DEEPEST, MOST_VALUES = 100, 100_000  # of what a text may hold: more is no config


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e6 and 3e-4 as numbers, as YAML 1.2 and people do, and refuses a key that is given twice."""

    depth = 0

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"its aliases stand for more than {MOST_VALUES:,} values", problem_mark=node.start_mark
            )
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested too deeply: more than {DEEPEST} levels",
                problem_mark=parent.start_mark,
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Of how many values it is made, with what its aliases stand for; infinitely many where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts))
    return known[id(node)]


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
    except (RecursionError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # from within PyYAML
        raise ValueError(f"it is no YAML that can be read ({type(error).__name__}: {error})") from None


def read_value(text: str) -> Any:
    """A value of the command line: YAML, or the text itself where it is none."""
    try:
        return read_yaml(text)
    except ValueError:
        return text


def write_yaml(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
