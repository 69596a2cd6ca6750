"""What an env's spaces ask for: a network or a coding that sees its observations, a distribution of actions; else a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from pydantic import Field

from distrl.acting.codings import Bins, Coding, Discrete, Tiles, input_components
from distrl.acting.codings import Product as Digits
from distrl.acting.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
)
from distrl.acting.encoders import Convolution, Encoder
from distrl.acting.kinds import AnySpec
from distrl.acting.network import NetworkSpec
from distrl.acting.policies import StochasticPolicy
from distrl.errors import UserError
from distrl.layouts import Part, space_text
from distrl.settings import AlgorithmSettings, Positive
from distrl.settings import Settings as Base
from distrl.sizes import check_fits
from distrl.types import Array, EnvInfo

Body = Literal["auto", "mlp", "cnn", "small_cnn", "grid"]
Activation = Literal["tanh", "relu"]
CONVOLUTIONS: dict[str, tuple[Convolution, ...]] = {  # channels, kernel, stride of each layer
    "mlp": (),
    "cnn": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Mnih et al. 2015, Nature 518
    "small_cnn": ((16, 8, 4), (32, 4, 2)),  # Mnih et al. 2013, arXiv:1312.5602
    "grid": ((16, 3, 1), (32, 3, 1)),
}
BYTES_LEARNT = 16  # of a parameter where it is learnt: itself, its gradient, two moments
LEAST_SIDE = {"cnn": 36, "small_cnn": 36, "grid": 5}  # of an image, in pixels
SYMBOLS = 16  # images with no longer side are maps of symbols, of which the bytes are taken as they are
UNBOUNDED = 1e30  # a bound beyond it is none
MOST_INPUTS = 32  # of a table; with more it meets no state twice
NETWORKS = "Set algorithm.name=ppo or a2c, which take observations of every kind."


def discrete_actions(
    info: EnvInfo, algorithm: str, remedy: str, probs: Sequence[float], key: str
) -> gym.spaces.Discrete:
    """The action space, if it is Discrete and `probs` (of the setting `key`) are one for each action or none at all."""
    action = info.action_space
    if not isinstance(action, gym.spaces.Discrete):
        raise UserError(
            f"{algorithm} here takes Discrete actions; those of {info.id} are {space_text(action)}. {remedy}"
        )
    if probs and len(probs) != action.n:
        raise UserError(f"{key} has {len(probs)} numbers; {info.id} has {action.n} actions.")
    return action


class NetworkSettings(AlgorithmSettings):
    """Base of the settings of an algorithm with networks."""

    hidden: tuple[Positive, ...] = Field(default=(64, 64), description="units of the hidden layers")
    activation: Activation = Field(default="tanh", description="after every hidden layer")
    body: Body = Field(
        default="auto",
        description="of images; auto: cnn, or grid for small ones; the rest of an observation needs none",
    )
    layer_norm: bool = Field(default=False, description="between a hidden layer and its activation")

    network: str | None = Field(
        default=None,
        description="a torch.nn.Module of one's own from observations to features, in the place of hidden, activation, body and "
        "layer_norm: my_package.nets:MyNet",
    )

    @property
    def of_network(self) -> dict[str, Any]:
        """For `network_spec` and `stochastic_policy`."""
        if self.network is not None:
            return {"network": self.network}
        return {"body": self.body, "hidden": self.hidden, "activation": self.activation, "layer_norm": self.layer_norm}


def network_spec(
    info: EnvInfo, outputs: int, body: Body = "auto", network: str | None = None, **options: Any
) -> AnySpec:
    """A network for all parts of the observations, or the user's own `network`. `options`: of the spec."""
    if network is not None:
        from distrl.acting.modules import module_spec  # here: only a network of one's own needs torch to act

        return module_spec(network, info.obs_layout, outputs, options.get("free", 0))
    parts = info.obs_layout.parts
    encoders = tuple(encoder_of(part, body) for part in parts)
    if body not in ("auto", "mlp") and not any(encoder.conv for encoder in encoders):
        seen = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise UserError(
            f"algorithm.body is {body!r}, which takes images [C, H, W] or [H, W, C] with sides of at least {LEAST_SIDE[body]} "
            f"pixels; observations of {info.id} are {seen}. Set algorithm.body=auto, or take an env that renders what it "
            "observes, such as distrl/FlappyBirdPixels-v0."
        )
    spec = NetworkSpec(encoders, outputs, **options)
    check_fits(
        BYTES_LEARNT * spec.parameters,
        f"algorithm.hidden={list(spec.hidden)} makes a network of {spec.parameters:,} parameters, {BYTES_LEARNT} bytes each with "
        "gradient and moments",
        "Set algorithm.hidden to smaller layers.",
    )
    return spec


def stochastic_policy(info: EnvInfo, distribution: Distribution, **options: Any) -> StochasticPolicy:
    """What sees an env's observations by a network and draws its actions. `options`: of `network_spec`."""
    spec = network_spec(info, distribution.outputs, free=distribution.free, **options)
    return StochasticPolicy(spec, distribution, info.obs_layout, info.action_layout)


def encoder_of(part: Part, body: Body) -> Encoder:
    """What suits a part of an observation."""
    scale = 1 / 255 if part.dtype == "uint8" else 1.0
    if part.kind != "box" or len(part.shape) != 3 or (body == "auto" and part.dtype not in ("uint8", "bool")):
        return Encoder(part, scale=scale)
    last = part.shape[-1] < part.shape[0]  # there are fewer channels than pixels in a row
    sides = part.shape[:2] if last else part.shape[1:]
    chosen = ("cnn" if min(sides) >= LEAST_SIDE["cnn"] else "grid") if body == "auto" else body
    if chosen == "mlp" or min(sides) < LEAST_SIDE[chosen]:
        return Encoder(part, scale=scale)
    return Encoder(part, CONVOLUTIONS[chosen], last, 1.0 if max(sides) <= SYMBOLS else scale)


def action_distribution(
    info: EnvInfo,
    probs: Sequence[float] | None = None,
    log_std_init: float = 0.0,
    state_dependent_std: bool = False,
    squash: bool = False,
) -> Distribution:
    """A distribution of actions of any space. The settings are those of `algorithm`, and of the kinds that have them."""
    plain = info.action_layout.plain
    if probs is not None:
        if not isinstance(info.action_space, gym.spaces.Discrete):
            raise UserError(
                f"algorithm.action_probs is of Discrete actions; those of {info.id} are {space_text(info.action_space)}. Leave it out."
            )
        if len(probs) != info.action_space.n:
            raise UserError(
                f"algorithm.action_probs has {len(probs)} numbers; {info.id} has {info.action_space.n} actions."
            )
        return Categorical(int(info.action_space.n), int(info.action_space.start), tuple(probs))
    gaussian = {"log_std_init": log_std_init, "state_dependent": state_dependent_std, "squash": squash}
    found = [_distribution(info, space, gaussian) for space in _leaves(info.action_space)]
    return found[0] if plain else Product(tuple(found))


def _leaves(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for below in space.spaces.values() for leaf in _leaves(below)]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for below in space.spaces for leaf in _leaves(below)]
    return [space]


def _distribution(info: EnvInfo, space: gym.Space[Any], gaussian: dict[str, Any]) -> Distribution:
    match space:
        case gym.spaces.Discrete():
            return Categorical(int(space.n), int(space.start))
        case gym.spaces.MultiDiscrete():
            n, start = tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist())
            return MultiCategorical(n, start, space.shape, str(space.dtype))
        case gym.spaces.MultiBinary():
            return Bernoulli(space.shape)
    assert isinstance(space, gym.spaces.Box)
    low, high = _bounds(space.low), _bounds(space.high)
    if gaussian["squash"] and None in (*low, *high):
        raise UserError(
            f"algorithm.squash maps to bounds, and actions of {info.id} are {space_text(space)}, without some. Set algorithm.squash=false."
        )
    return DiagonalGaussian(space.shape, low, high, str(space.dtype), **gaussian)


def _bounds(bound: Array) -> tuple[float | None, ...]:
    return tuple(x if abs(x) < UNBOUNDED else None for x in bound.ravel().astype(np.float64).tolist())


# --- tables ---------------------------------------------------------------------------------------------------------


class CodingSettings(Base):
    """How an observation becomes a state. Discrete ones, and arrays, tuples and dicts of them, need no settings."""

    kind: Literal["auto", "bins", "tiles"] = Field(default="auto", description="of Box observations: bins or tiles")
    n: tuple[Positive, ...] = Field(default=(), description="bins, or tiles of a tiling, of every input")
    inputs: tuple[str, ...] = Field(
        default=(), description="components, such as '3', or differences of two, such as '5-3'; empty: all components"
    )
    low: tuple[float, ...] = Field(default=(), description="clip range of every input; empty: that of the space")
    high: tuple[float, ...] = Field(default=(), description="as low")
    tilings: int = Field(default=8, ge=1, description="of tiles: how many, each shifted against the others")
    memory: int | None = Field(default=None, ge=1, description="rows that tiles are hashed to; null: one for each")


def make_coding(settings: CodingSettings, info: EnvInfo) -> Coding:
    """How observations of an env become states. Raises `UserError` where the settings do not say it."""
    space = _state_space(info)
    if not isinstance(space, gym.spaces.Box):
        if settings.kind != "auto":
            raise UserError(
                f"algorithm.coding.kind is {settings.kind!r}, which is for Box observations; those of {info.id} are {space_text(space)}. "
                "Leave algorithm.coding out."
            )
        if space.shape is not None and len(space.shape) > 1:
            raise UserError(
                f"A table takes arrays of one axis; observations of {info.id} have shape {list(space.shape)}. {_as_one_array(info)}"
            )
        if isinstance(space, gym.spaces.Discrete):
            return Discrete(int(space.n), int(space.start))
        if isinstance(space, gym.spaces.MultiDiscrete):
            return Digits(tuple(space.nvec.ravel().tolist()), tuple(space.start.ravel().tolist()))
        if isinstance(space, gym.spaces.MultiBinary):
            size = int(np.prod(space.shape))
            return Digits((2,) * size, (0,) * size)
        raise UserError(
            f"A table takes discrete or Box observations; those of {info.id} are {space_text(space)}. {_as_one_array(info)}"
        )
    if len(space.shape) != 1:
        raise UserError(
            f"A table takes Box observations of one axis; those of {info.id} are {space_text(space)}. {_as_one_array(info)}"
        )
    if settings.kind == "auto":
        if (size := space.shape[0]) > MOST_INPUTS:
            raise UserError(
                f"Observations of {info.id} are {space_text(space)}: a table of {size:,} inputs would meet no state twice. {NETWORKS}"
            )
        each = 10 if size <= 4 else 3
        raise UserError(
            f"Observations of {info.id} are {space_text(space)}: a table needs to know how to cut them up. Set algorithm.coding, "
            f"such as {{kind: bins, n: {[each] * size}}} or {{kind: tiles, n: {[each] * size}, tilings: 8}}."
        )
    inputs = settings.inputs or tuple(map(str, range(space.shape[0])))
    low, high = _ranges(settings, space, inputs, info.id)
    if len(settings.n) != len(inputs):
        raise UserError(
            f"algorithm.coding.n is {list(settings.n)}: {len(settings.n)} counts for {len(inputs)} inputs of {info.id}. Give one for each."
        )
    if settings.kind == "bins":
        return Bins(settings.n, low, high, inputs)
    return Tiles(settings.n, low, high, inputs, settings.tilings, settings.memory)


def _as_one_array(info: EnvInfo) -> str:
    """What to do where observations are more than one array of one axis."""
    if sum(prod(part.shape) for part in info.obs_layout.parts) > MOST_INPUTS:
        return NETWORKS
    return "Set env.wrappers=[flatten], and cut up what that gives by algorithm.coding."


def _state_space(info: EnvInfo) -> gym.Space[Any]:
    """The space of what `Layout.state` gives."""
    space: gym.Space[Any] = info.observation_space
    parts = info.obs_layout.parts
    if len(parts) == 1:
        for key in parts[0].path:
            space = space[key]  # type: ignore[index]
    elif all(digits := [_digits(space, part) for part in parts]):
        n, start = (np.concatenate(columns) for columns in zip(*digits, strict=True))
        space = gym.spaces.MultiDiscrete(n, start=start)
    return space


def _digits(space: gym.Space[Any], part: Part) -> tuple[Array, Array] | tuple[()]:
    """How many values each number of a part has, and the first of them; () where that are not few whole numbers."""
    if part.kind == "discrete":
        return np.array(part.n), np.array(part.start)
    size = prod(part.shape)
    if part.kind == "binary":
        return np.full(size, 2), np.zeros(size, np.int64)
    for key in part.path:
        space = space[key]  # type: ignore[index]
    assert isinstance(space, gym.spaces.Box)
    if part.dtype != "int8" or part.dtype != str(space.dtype):  # such as the squares of a board
        return ()
    low = space.low.ravel().astype(np.int64)
    return space.high.ravel() - low + 1, low


def _ranges(
    settings: CodingSettings, space: gym.spaces.Box, inputs: tuple[str, ...], env_id: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = [], []
    for name in inputs:
        try:
            components = input_components(name)
            lows, highs = [float(space.low[i]) for i in components], [float(space.high[i]) for i in components]
        except (ValueError, IndexError):
            raise UserError(
                f"algorithm.coding.inputs has {name!r}; an input is a component of the {space.shape[0]} of {env_id}, "
                "such as '0', or a difference of two, such as '1-0'."
            ) from None
        low.append(lows[0] - sum(highs[1:]))
        high.append(highs[0] - sum(lows[1:]))
    for name, given, own in (("low", settings.low, low), ("high", settings.high, high)):
        if given and len(given) != len(inputs):
            raise UserError(
                f"algorithm.coding.{name} has {len(given)} numbers for {len(inputs)} inputs. Give one for each."
            )
        own[:] = given or own
    for name, bottom, top in zip(inputs, low, high, strict=True):
        if not (abs(bottom) < 1e30 and abs(top) < 1e30):
            raise UserError(
                f"Input {name!r} of {env_id} has no bounds of its own ({bottom:g} to {top:g}). Give clip ranges for all inputs: "
                "algorithm.coding.low and algorithm.coding.high."
            )
        if bottom >= top:
            raise UserError(f"algorithm.coding: input {name!r} has low {bottom:g}, which is not below high {top:g}.")
    return tuple(low), tuple(high)
