"""A shard over an environment's own vector form, whose state lies in arrays: they are the snapshot."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from distrl.envs.make import find_spec
from distrl.envs.multi import is_team
from distrl.errors import EnvError, users_traceback
from distrl.seeding import derive
from distrl.settings import EnvSettings
from distrl.types import Array, Arrays, Snapshot
from distrl.types import Step as Step


class NativeShard:
    """An environment's own vector form, made to reset in the same step.

    Such environments reset in the step after an end. Here the ended columns of the state arrays are overwritten
    at once with those of a second instance, freshly reset with a seed of its own; so no step is a dummy.
    """

    @staticmethod
    def fits(settings: EnvSettings, copies: int) -> bool:
        """Whether there is a vector form, and it keeps its whole state in arrays whose last axis is the env copy."""
        if is_team(settings.id):
            return False
        spec = find_spec(settings.id)
        if settings.report or settings.wrappers:  # vector forms tell nothing in their infos, and nothing is around them
            return False
        if spec.vector_entry_point is None or spec.kwargs.keys() - {"sutton_barto_reward"}:
            return False
        env = _make_native(settings, copies)
        if env.metadata.get("autoreset_mode") != gym.vector.AutoresetMode.NEXT_STEP:
            return False
        env.reset(seed=0)
        arrays = [value for value in vars(env.unwrapped).values() if isinstance(value, np.ndarray)]
        return bool(arrays) and all(array.shape[-1:] == (copies,) for array in arrays)

    def __init__(self, settings: EnvSettings, seed: int, shard: int, copies: int) -> None:
        self.settings, self.seed, self.shard, self.copies = settings, seed, shard, copies
        self.frame_stack, self.replays = 0, False
        self.active: Array | None = None
        self.env, self.donor = _make_native(settings, copies), _make_native(settings, copies)
        self.resets = 1  # how often the donor was asked: the number of the next seed
        self.obs = self._reset(self.env, 0)
        self.names = [name for name, value in vars(self.env.unwrapped).items() if isinstance(value, np.ndarray)]

    def step(self, action: Array) -> Step:
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
            self.obs = obs
            truncated &= ~terminated
            ended = terminated | truncated
            final_obs = obs[ended]
            if len(final_obs):
                fresh = self._reset(self.donor, self.resets)
                self.resets += 1
                source, target = vars(self.donor.unwrapped), vars(self.env.unwrapped)
                for name in self.names:
                    target[name][..., ended] = source[name][..., ended]
                obs[ended] = fresh[ended]
        except Exception as error:
            seed = derive(self.seed, "native episode", self.shard, self.resets)
            raise EnvError(
                self.settings.id, self.shard, self.shard * self.copies, seed, -1, users_traceback(error)
            ) from None
        return Step(obs, reward.astype(np.float64), terminated, truncated, final_obs)

    def arrays(self) -> Arrays:
        arrays = {f"state.{name}": getattr(self.env.unwrapped, name).copy() for name in self.names}
        return arrays | {"obs": self.obs.copy(), "resets": np.array(self.resets)}

    def restore(self, snapshot: Snapshot, timeout_s: float = math.inf) -> Array:
        arrays = snapshot.env
        for name in self.names:
            setattr(self.env.unwrapped, name, arrays[f"state.{name}"].copy())
        self.obs = arrays["obs"].copy()
        self.resets = int(arrays["resets"])
        return np.ones(self.copies, bool)

    def close(self) -> None:
        self.env.close()
        self.donor.close()

    def _reset(self, env: gym.vector.VectorEnv[Any, Any, Any], number: int) -> Array:
        obs: Array = env.reset(seed=derive(self.seed, "native episode", self.shard, number))[0]
        return obs


def _make_native(settings: EnvSettings, copies: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    kwargs = dict(settings.kwargs)
    spec = find_spec(settings.id)
    limit = settings.max_episode_steps or spec.max_episode_steps
    if limit is not None:
        kwargs.setdefault("max_episode_steps", limit)
    return gym.make_vec(spec, copies, vectorization_mode="vector_entry_point", **kwargs)
