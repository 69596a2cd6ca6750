"""distrl: reinforcement learning with Ray; the same run gives the same weights on a laptop and on a cluster.

>>> from distrl import load_config, load_policy, train
>>> result = train(load_config("configs/ppo_cartpole.yaml"))
>>> action = load_policy(result.run_dir).act(obs)
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from distrl.config import load_config
from distrl.errors import Diverged, EnvError, UserError
from distrl.settings import Config

if TYPE_CHECKING:
    from distrl.models.player import Player, load_policy
    from distrl.runs.result import Result
    from distrl.runs.run import train

__version__ = version("distrl")
__all__ = ["Config", "Diverged", "EnvError", "Player", "Result", "UserError", "load_config", "load_policy", "train"]


def __getattr__(name: str) -> Any:
    """`train` and `load_policy` are imported when they are first used, so that `import distrl` is quick."""
    if name in ("train", "Result"):
        from distrl.runs import run

        return getattr(run, name)
    if name in ("load_policy", "Player"):
        from distrl.models import player

        return getattr(player, name)
    raise AttributeError(f"module 'distrl' has no attribute {name!r}")
