"""Making environments by id, with errors that say what to do."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from distrl.envs import flappy, flappy_id, plugins
from distrl.envs.multi import by_family, describe_team, is_team, make_team
from distrl.envs.wrappers import MADE_WITH, ForgetAction, keeps_return, longest_episode, wrap
from distrl.errors import UserError, did_you_mean, shown, users_code
from distrl.layouts import MASK, action_layout, choices_of
from distrl.settings import EnvSettings
from distrl.types import EnvInfo

flappy_id.register()


def find_spec(env_id: str) -> EnvSpec:
    """The registered spec of an id. Raises `UserError` with what is near, or what to install."""
    module, _, name = env_id.rpartition(":")
    if name.startswith(("FlappyBird", "distrl/FlappyBird")):
        try:
            flappy.check_package()
        except (ValueError, ImportError) as error:
            raise UserError(f"env.id {env_id!r}: {error}") from None
    if not module:
        plugins.register(name)
    else:
        if not all(part.isidentifier() for part in module.split(".")):
            raise UserError(
                f"env.id {shown(env_id)} names the module {shown(module)}, which is no name of one. Before the colon, give a "
                "module that can be imported, such as my_package.envs:MyEnv-v0."
            )
        remedy = plugins.if_missing(module)
        with users_code(f"env.id {env_id!r} names the module {module!r}, which cannot be imported", remedy):
            importlib.import_module(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gym.spec(name)
    except gym.error.Error as error:
        if not module and (package := plugins.registered_by(name)) is not None:
            raise UserError(
                f"env.id {shown(env_id)} is registered by importing {package}: write env.id={package}:{name}."
            ) from None
        if (team := by_family(env_id.rpartition("/")[2])) is not None:
            raise UserError(f"env.id {shown(env_id)} is of several agents: write env.id={team}.") from None
        own = [word for word in vars(sys.modules[module]) if not word.startswith("_")] if module else []
        known = did_you_mean(name, [*own, *gym.registry])
        why = known or f" {error}"
        raise UserError(f"env.id {shown(env_id)} is not registered with gymnasium.{why}") from None


def make_env(settings: EnvSettings, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One copy of the environment. Raises `UserError` where the settings are wrong or a package is missing."""
    if is_team(settings.id):
        return make_team(settings, render_mode)
    spec = replace(find_spec(settings.id), order_enforce=False)  # a wrapper that costs time at every step
    kwargs: dict[str, Any] = {}
    for around in settings.wrappers:
        kwargs |= {name: part for name, part in MADE_WITH.get(around.name, {}).items() if name in spec.kwargs}
    kwargs |= settings.kwargs
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if settings.max_episode_steps is not None:
        kwargs["max_episode_steps"] = settings.max_episode_steps
    plugins.quieten(spec)
    with plugins.making(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's hints on newer versions, repeated for every copy
        env = gym.make(spec, disable_env_checker=True, **kwargs)
    if settings.id.startswith("MinAtar/"):
        env = ForgetAction(env)
    return wrap(env, settings)


def describe_env(settings: EnvSettings) -> EnvInfo:
    """Make the environment once and read its spaces, limits and threshold."""
    if is_team(settings.id):
        return describe_team(settings)
    env = make_env(settings)
    with closed_after(env, settings.id), users_code(f"{settings.id!r} is no environment of gymnasium"):
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name), gym.Space):
                raise UserError(
                    f"env.id {settings.id!r}: its {name} is {shown(getattr(env, name))}, no gymnasium.Space."
                )
        spec, in_info = find_spec(settings.id), _mask_in_info(env)
        return EnvInfo(
            id=settings.id,
            observation_space=env.observation_space,
            action_space=env.action_space,
            max_episode_steps=longest_episode(env),
            reward_threshold=spec.reward_threshold if not settings.wrappers or keeps_return(env) else None,
            render_modes=tuple(env.metadata.get("render_modes", ())),
            render_fps=int(env.metadata.get("render_fps", 30)),
            frame_stack=0 if in_info else int(env.metadata.get("frame_stack", 0)),
            action_mask=None if settings.wrappers else _action_mask(env),  # wrappers may number states anew
            mask_in_info=in_info,
        )


def close_env(env: gym.Env[Any, Any], env_id: str) -> None:
    """Close an env copy. Raises `UserError` where it cannot be."""
    with users_code(f"env.id {env_id!r} cannot be closed", " Mend its close(), or leave that out."):
        env.close()


@contextmanager
def closed_after(env: gym.Env[Any, Any], env_id: str) -> Iterator[None]:
    """Close an env copy after a block. What the block raises matters more than what closing raises."""
    try:
        yield
    except BaseException:
        with suppress(UserError):
            close_env(env, env_id)
        raise
    close_env(env, env_id)


def _action_mask(env: gym.Env[Any, Any]) -> NDArray[np.bool_] | None:
    """The masks of all states, where they are a function of a discrete state (`env.unwrapped.action_mask`, as Taxi's)."""
    space, mask = env.observation_space, getattr(env.unwrapped, "action_mask", None)
    if not (isinstance(space, gym.spaces.Discrete) and callable(mask)):
        return None
    masks = np.array([mask(state) for state in range(int(space.start), int(space.start + space.n))], bool)
    masks[~masks.any(axis=1)] = True
    return masks


def _mask_in_info(env: gym.Env[Any, Any]) -> bool:
    """Whether the info of a reset names the allowed actions."""
    try:
        return bool(choices_of(action_layout(env.action_space))) and MASK in env.reset(seed=0)[1]
    except Exception:  # it will come again where a shard is made, which tells of it with all that helps
        return False
