"""Names of algorithms, and the modules that hold them, imported when a config asks for one."""

from __future__ import annotations

import importlib
from typing import Any

from distrl.errors import UserError, did_you_mean

# The registry: an algorithm's name and the module that holds its `Settings`, `make_policy` and `make`.
ALGORITHMS = {
    "ppo": "distrl.algorithms.ppo",
    "dqn": "distrl.algorithms.dqn",
    "q": "distrl.algorithms.tabular_q",
}


def algorithm_module(name: str) -> Any:
    """The module of an algorithm, imported. Raises `UserError` for a name that is not in the registry."""
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise UserError(
            f"algorithm.name is {name!r}; it must be one of {', '.join(ALGORITHMS)}.{did_you_mean(name, ALGORITHMS) if isinstance(name, str) else ''}"
        )
    return importlib.import_module(ALGORITHMS[name])
