"""distrl: reinforcement learning with Ray; the same run gives the same weights on a laptop and on a cluster.

>>> from distrl import load_config, load_policy, train
>>> result = train(load_config("configs/ppo_cartpole.yaml"))
>>> action = load_policy(result.run_dir).act(obs)
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from distrl.config import Config, load_config
    from distrl.errors import Diverged, EnvError, UserError
    from distrl.models.player import Player, load_policy
    from distrl.runs.result import Result
    from distrl.runs.run import train

    __version__: str

__all__ = ["Config", "Diverged", "EnvError", "Player", "Result", "UserError", "load_config", "load_policy", "train"]

WINDOWS = "distrl runs on Linux and macOS. On Windows, install it within WSL: https://learn.microsoft.com/windows/wsl"

# When this interpreter started, unix time: so far it has done nothing but start. The process may be older, a shell's that
# became Python by `exec`.
STARTED = time.time() - time.process_time()


def _register(loading: Callable[[ModuleType], None] | None = None, gymnasium: ModuleType | None = None) -> None:
    """So that `gymnasium.make("distrl:distrl/FlappyBirdPixels-v0")` finds it."""
    if loading is not None and gymnasium is not None:
        loading(gymnasium)
    from distrl.envs.flappy import register

    register()


class _Gymnasium:
    """Finds gymnasium as others would, where it is imported after distrl, which it takes much longer than."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "gymnasium":
            return None
        import functools
        import importlib.util

        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_register, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _Gymnasium)

_HOMES = {
    "Config": "config",
    "Diverged": "errors",
    "EnvError": "errors",
    "Player": "models.player",
    "Result": "runs.result",
    "UserError": "errors",
    "load_config": "config",
    "load_policy": "models.player",
    "train": "runs.run",
}


def __getattr__(name: str) -> Any:
    """What is asked for is imported then, so that `import distrl` is quick."""
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("distrl")
    if name in _HOMES:
        if sys.platform == "win32":
            raise ImportError(WINDOWS)
        return getattr(importlib.import_module(f"distrl.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'distrl' has no attribute {name!r}")
