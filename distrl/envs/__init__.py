"""Making gymnasium environments by id, with errors that say what to do. Floor 1: no torch, no ray."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from distrl.config import EnvSettings
from distrl.envs import flappy
from distrl.errors import UserError, did_you_mean

flappy.register()

# Ids that begin so are registered by importing this module, found in this package.
PLUGINS = {
    "ALE/": ("ale_py", "ale-py"),
}
# Where an env's import fails for a missing module, this is the package that brings it.
PACKAGES = {"Box2D": "box2d", "box2d": "box2d", "mujoco": "mujoco", "pygame": "pygame"}


@dataclass(frozen=True)
class EnvInfo:
    """What distrl needs to know of an environment before it makes many copies."""

    id: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    max_episode_steps: int | None
    reward_threshold: float | None
    render_modes: tuple[str, ...]
    render_fps: int
    frame_stack: int = 0  # > 0: observations are stacks of so many frames; see distrl.frames


def find_spec(env_id: str) -> EnvSpec:
    """The registered spec of an id. Raises `UserError` with what is near, or what to install."""
    module, _, name = env_id.rpartition(":")
    if name.startswith(("FlappyBird", "distrl/FlappyBird")):
        try:
            flappy.check_package()
        except (ValueError, ImportError) as error:
            raise UserError(f"env.id {env_id!r}: {error}") from None
    for prefix, (plugin, package) in PLUGINS.items():
        if name.startswith(prefix) and not module:
            try:
                importlib.import_module(plugin)
            except ModuleNotFoundError:
                raise UserError(f"env.id {env_id!r} needs the package {package!r}: pip install {package}") from None
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"env.id {env_id!r} names the module {module!r}, which cannot be imported: {error}."
            ) from None
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        known = did_you_mean(name, gym.registry)
        raise UserError(f"env.id {env_id!r} is not registered with gymnasium.{known or ' ' + str(error)}") from None


def make_env(settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One copy of the environment. Raises `UserError` where the settings are wrong or a package is missing."""
    spec = find_spec(settings.id)
    kwargs = dict(settings.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if settings.max_episode_steps is not None:
        kwargs["max_episode_steps"] = settings.max_episode_steps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's hints on newer versions, repeated for every copy
            return gym.make(spec, disable_env_checker=True, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        package = next((p for word, p in PACKAGES.items() if word in str(error)), None)
        hint = f" pip install {package}" if package else ""
        raise UserError(f"env.id {settings.id!r} needs a package that is not installed: {error}.{hint}") from None
    except gym.error.DeprecatedEnv as error:
        raise UserError(f"env.id {settings.id!r} cannot be made: {error}") from None
    except (TypeError, AssertionError, ValueError, KeyError) as error:
        if not settings.kwargs:
            raise
        raise UserError(f"env.kwargs {settings.kwargs} do not fit {settings.id!r}: {error}") from None


def describe_env(settings: EnvSettings) -> EnvInfo:
    """Make the environment once and read its spaces, limits and threshold."""
    env = make_env(settings)
    try:
        spec = env.spec
        return EnvInfo(
            id=settings.id,
            observation_space=env.observation_space,
            action_space=env.action_space,
            max_episode_steps=None if spec is None else spec.max_episode_steps,
            reward_threshold=None if spec is None else spec.reward_threshold,
            render_modes=tuple(env.metadata.get("render_modes", ())),
            render_fps=int(env.metadata.get("render_fps", 30)),
            frame_stack=int(env.metadata.get("frame_stack", 0)),
        )
    finally:
        env.close()
