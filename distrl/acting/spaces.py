"""The network that an env's spaces ask for, and the refusal of spaces that an algorithm cannot take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from distrl.acting.network import NetworkSpec
from distrl.errors import UserError
from distrl.types import EnvInfo

Body = Literal["auto", "mlp", "cnn", "small_cnn"]
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {  # channels, kernel, stride of each layer
    "mlp": (),
    "cnn": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Mnih et al. 2015, Nature 518
    "small_cnn": ((16, 8, 4), (32, 4, 2)),  # Mnih et al. 2013, arXiv:1312.5602
}


def discrete_actions(
    info: EnvInfo, algorithm: str, remedy: str, probs: Sequence[float], key: str
) -> gym.spaces.Discrete:
    """The action space, if it is Discrete and `probs` (of the setting `key`) are one for each action or none at all."""
    action = info.action_space
    if not isinstance(action, gym.spaces.Discrete):
        raise UserError(f"{algorithm} here takes Discrete actions; those of {info.id} are {action}. {remedy}")
    if probs and len(probs) != action.n:
        raise UserError(f"{key} has {len(probs)} numbers; {info.id} has {action.n} actions.")
    return action


def network_spec(info: EnvInfo, algorithm: str, body: Body, outputs: int, **options: Any) -> NetworkSpec:
    """A network for the observations, which must be a Box. `body` auto: convolutions for images [C, H, W] of bytes."""
    obs = info.observation_space
    if not isinstance(obs, gym.spaces.Box):
        raise UserError(
            f"{algorithm} here takes Box observations; those of {info.id} are {obs}. Flatten or one-hot them with a "
            "gymnasium wrapper."
        )
    image = len(obs.shape) == 3 and obs.dtype == np.uint8
    chosen = ("cnn" if image else "mlp") if body == "auto" else body
    if chosen != "mlp" and not (image and min(obs.shape[1:]) >= 36):
        raise UserError(
            f"algorithm.body is {chosen!r}, which takes images of bytes [C, H, W] with sides of at least 36 pixels; "
            f"observations of {info.id} are {obs.dtype} {list(obs.shape)}. Set algorithm.body=mlp, or take an env that "
            "renders what it observes, such as distrl/FlappyBirdPixels-v0."
        )
    scale = 1 / 255 if obs.dtype == np.uint8 else 1.0
    return NetworkSpec(obs.shape, outputs, conv=CONVOLUTIONS[chosen], scale=scale, **options)
