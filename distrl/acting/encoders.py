"""How each part of an observation becomes features that hidden layers take, in NumPy. The torch half: `distrl.learning.encoders`.

numbers                        as they are, flattened; bytes scaled
Discrete, MultiDiscrete        one-hot, which a layer behind it makes an embedding of
images [C, H, W] or [H, W, C]  convolutions
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from distrl.descriptions import STRICT, Count
from distrl.layouts import Part
from distrl.types import Array, Arrays

Convolution = tuple[Count, Count, Count]  # channels, kernel, stride


@dataclass(frozen=True)
class Encoder:
    """Of one part; discrete ones are one-hot, whatever the rest says."""

    __pydantic_config__ = STRICT
    part: Part
    conv: tuple[Convolution, ...] = ()
    channels_last: bool = False  # of an image
    scale: float = 1.0  # numbers are multiplied by it: 1/255 for bytes

    @property
    def image(self) -> tuple[int, int, int]:
        """[C, H, W]"""
        a, b, c = self.part.shape
        return (c, a, b) if self.channels_last else (a, b, c)

    def sizes(self) -> list[tuple[int, int, int]]:
        """[C, H, W] of the image and behind each convolution."""
        sizes = [self.image] if self.conv else []
        for channels, kernel, stride in self.conv:
            _, height, width = sizes[-1]
            sizes.append((channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1))
        return sizes

    @property
    def features(self) -> int:
        if self.conv:
            return prod(self.sizes()[-1])
        return sum(self.part.n) if self.part.kind == "discrete" else prod(self.part.shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, ((channels, kernel, _), size) in enumerate(zip(self.conv, self.sizes()[:-1], strict=True)):
            shapes[f"conv.{i}.weight"], shapes[f"conv.{i}.bias"] = (channels, size[0], kernel, kernel), (channels,)
        return shapes


def one_hot(index: Array, n: tuple[int, ...]) -> Array:
    """[N, sum(n)] float32 of indices [N] or [N, D] of D digits, each from 0 to n[d] - 1."""
    places = index.reshape(len(index), -1) + np.cumsum([0, *n[:-1]])
    x = np.zeros((len(index), sum(n)), np.float32)
    x[np.arange(len(index))[:, None], places] = 1
    return x


def encode(encoder: Encoder, obs: Array, layers: Arrays) -> Array:
    """Features [N, F] float32 of flat observations [N, size].

    Args:
        layers: the parameters by name; weights of convolutions as [inputs * kernel * kernel, channels]
    """
    part = encoder.part
    x = part.of(obs)
    if part.kind == "discrete":
        return one_hot(x - np.array(part.start).reshape(part.shape), part.n)
    x = x.astype(np.float32)
    if encoder.scale != 1.0:
        x *= np.float32(encoder.scale)
    if encoder.conv:
        if not encoder.channels_last:
            x = np.moveaxis(x, 1, -1)  # [N, H, W, C]
        for i, (channels, kernel, stride) in enumerate(encoder.conv):
            patches = sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
            n, height, width = patches.shape[:3]
            x = patches.reshape(n * height * width, -1) @ layers[f"conv.{i}.weight"]
            x += layers[f"conv.{i}.bias"]
            x = np.maximum(x, 0, out=x).reshape(n, height, width, channels)
        x = np.moveaxis(x, -1, 1)
    return x.reshape(len(x), -1)
