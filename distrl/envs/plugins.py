"""Packages of environments: imported where an id says so, and kept from telling every process the same."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from distrl.errors import UserError, shown, users_code
from distrl.settings import EnvSettings

# Ids that begin so are registered by importing this module, which these arguments of pip install.
PLUGINS = {
    "ALE/": ("ale_py", "ale-py"),
    r"\w+NoFrameskip-v\d": ("ale_py", "ale-py"),  # as most who trained on Atari before know them
    "MiniGrid-": ("minigrid", "--no-deps minigrid"),  # all that it asks for is there
    "BabyAI-": ("minigrid", "--no-deps minigrid"),
    "MinAtar/": ("minatar.gym", "MinAtar"),
}
# Where an env's import fails for a missing module, this is the package that brings it.
MUJOCO = '"gymnasium[mujoco]"'
PACKAGES = {"Box2D": "box2d", "box2d": "box2d", "mujoco": MUJOCO, "MuJoCo": MUJOCO, "imageio": MUJOCO}
PACKAGES["pygame"] = "pygame"
EXTRAS = {"pymunk": "butterfly", "rlcard": "classic", "chess": "classic"}  # of distrl, which bring such a package
PACKAGES |= {name: f"{name}, or '.[{extra}]' where distrl's source is" for name, extra in EXTRAS.items()}
PACKAGES["OpenSpiel"] = "open_spiel shimmy, or '.[hanabi]' where distrl's source is"


def register(env_id: str) -> None:
    """Import what registers an id with gymnasium, where it is known. Raises `UserError` where that is not installed."""
    for plugin, package in (found for begins, found in PLUGINS.items() if re.match(begins, env_id)):
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # MinAtar's, that it cannot draw
        try:
            module = importlib.import_module(plugin)
        except ModuleNotFoundError as error:
            if not f"{plugin}.".startswith(f"{error.name}."):
                raise
            name = package.split()[-1]
            raise UserError(f"env.id {env_id!r} needs the package {name!r}: pip install {package}") from None
        finally:
            logging.disable(before)
        if plugin == "ale_py":
            module.ALEInterface.setLoggerMode(module.LoggerMode.Error)
        if plugin == "minatar.gym" and not any(known.startswith("MinAtar/") for known in gym.registry):
            module.register_envs()


def if_missing(module: str) -> str:
    """What to do about a module that nothing here provides; '' where something does."""
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        return ""
    return " Install its package, or start distrl in the directory that the module lies in."


def registered_by(env_id: str) -> str | None:
    """The module of an installed package that is to be imported for an id, as its source says; None where none is found."""
    for distribution in distributions():
        needs = [needed for needed in distribution.requires or () if "extra ==" not in needed]
        if not any(re.match(r"gym(nasium)?\b", needed) for needed in needs):
            continue
        for file in distribution.files or ():
            if file.suffix == ".py" and _registers(Path(str(file.locate())), env_id):
                return file.parts[0].removesuffix(".py")
    return None


def _registers(source: Path, env_id: str) -> bool:
    try:
        text = source.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(rf"""register\w*\(\s*(id\s*=\s*)?["']{re.escape(env_id)}["']""", text) is not None


def quieten(spec: EnvSpec) -> None:
    """What MuJoCo warns of is told once in a process, and what its models do that is deprecated never."""
    if not str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        return
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError:  # making the env will tell
        return
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_Once())


class _Once:
    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self.told and "deprecated" not in message:
            print(f"MuJoCo: {message}", file=sys.stderr)
        self.told.add(message)


def lacking(env_id: str, error: Exception, package: str | None = None) -> UserError:
    """That an env's import lacked something, and how that is installed: as it is known here, or else `package`."""
    found = next((package for word, package in PACKAGES.items() if word in str(error)), package)
    remedy = "" if found is None else f" pip install {found}"
    return UserError(f"env.id {env_id!r} needs a package that is not installed: {error}.{remedy}")


@contextmanager
def making(settings: EnvSettings) -> Iterator[None]:
    """What making an env raises is a mistake of the user's."""
    try:
        yield
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        if not isinstance(error, ModuleNotFoundError) and not any(word in str(error) for word in PACKAGES):
            with users_code(f"env.id {settings.id!r} cannot be made"):
                raise
        raise lacking(settings.id, error) from None
    except gym.error.DeprecatedEnv as error:
        raise UserError(f"env.id {settings.id!r} cannot be made: {error}") from None
    except (TypeError, AssertionError, ValueError, KeyError) as error:
        if settings.kwargs:
            raise UserError(f"env.kwargs {shown(settings.kwargs)} do not fit {settings.id!r}: {error}") from None
        with users_code(f"env.id {settings.id!r} cannot be made"):
            raise
    except (Exception, SystemExit):
        with users_code(f"env.id {settings.id!r} cannot be made"):
            raise
