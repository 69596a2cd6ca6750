"""How each part of an observation becomes features that hidden layers take, in NumPy. The torch half: `distrl.learning.encoders`.

numbers                        as they are, flattened; bytes scaled
Discrete, MultiDiscrete        one-hot, which a layer behind it makes an embedding of
images [C, H, W] or [H, W, C]  convolutions
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod

import numpy as np

from distrl.descriptions import STRICT, Count
from distrl.layouts import Part
from distrl.types import Array, Arrays

Convolution = tuple[Count, Count, Count]  # channels, kernel, stride
AT_ONCE = 16  # images: more of them, cut up, are too large for a processor's caches


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

    def layers(self, parameters: Arrays) -> Arrays:
        """The parameters as `encode` takes them."""
        last = [self.channels_last, *(True for _ in self.conv[1:])]
        return parameters | {
            f"conv.{i}.weight": shifted(parameters[f"conv.{i}.weight"], stride, last[i])
            for i, (_, _, stride) in enumerate(self.conv)
        }


def one_hot(index: Array, n: tuple[int, ...]) -> Array:
    """[N, sum(n)] float32 of indices [N] or [N, D] of D digits, each from 0 to n[d] - 1."""
    places = index.reshape(len(index), -1) + np.cumsum([0, *n[:-1]])
    x = np.zeros((len(index), sum(n)), np.float32)
    x[np.arange(len(index))[:, None], places] = 1
    return x


def encode(encoder: Encoder, obs: Array, layers: Arrays) -> Array:
    """Features [N, F] float32 of flat observations [N, size].

    Args:
        layers: the parameters by name; weights of convolutions as `shifted` makes them
    """
    part = encoder.part
    x = part.of(obs)
    if part.kind == "discrete":
        return one_hot(x - np.array(part.start).reshape(part.shape), part.n)
    if not encoder.conv:
        return scaled(x, encoder.scale).reshape(len(x), -1)
    parts = [convolved(encoder, x[i : i + AT_ONCE], layers) for i in range(0, max(1, len(x)), AT_ONCE)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def convolved(encoder: Encoder, x: Array, layers: Arrays) -> Array:
    """What the convolutions make of images [N, ...], [N, F]."""
    last, images = encoder.channels_last, len(x)
    for i, ((_, kernel, stride), (channels, rows, columns)) in enumerate(
        zip(encoder.conv, encoder.sizes()[1:], strict=True)
    ):
        more = kernel // stride - 1  # squares on which a kernel lies, beyond the first
        size = rows + more, columns + more
        squares = cut_up(x, stride, *size, last)
        if i == 0:
            squares = scaled(squares, encoder.scale)
        x = convolve(squares, layers[f"conv.{i}.weight"], size[1])
        x += layers[f"conv.{i}.bias"]
        x = np.maximum(x, 0, out=x).reshape(images, *size, channels)[:, :rows, :columns]
        last = True
    return np.moveaxis(x, -1, 1).reshape(len(x), -1)


def scaled(x: Array, scale: float) -> Array:
    """As float32, times the scale; x itself is left as it is."""
    x = x.astype(np.float32)
    if scale != 1.0:
        x *= np.float32(scale)
    return x


def shifted(weight: Array, stride: int, channels_last: bool) -> Array:
    """The weight of a convolution as `convolve` takes it, [(kernel / stride)^2, stride * stride * C, channels].

    Args:
        weight: [channels, C, kernel, kernel], as torch has it
        channels_last: of the images that are cut up
    """
    channels, inputs, kernel, _ = weight.shape
    side = kernel // stride
    parts = weight.reshape(channels, inputs, side, stride, side, stride)
    order = (2, 4, 3, 5, 1, 0) if channels_last else (2, 4, 1, 3, 5, 0)
    return parts.transpose(order).reshape(side * side, -1, channels)


def cut_up(x: Array, stride: int, rows: int, columns: int, channels_last: bool) -> Array:
    """[N * rows * columns, stride * stride * C]: images as squares of pixels, one beside the other, row by row."""
    if channels_last:  # [N, H, W, C]
        x = x[:, : rows * stride, : columns * stride]
        x = x.reshape(len(x), rows, stride, columns, -1).swapaxes(2, 3)
    else:  # [N, C, H, W]; pixels that lie side by side are copied as one value, which is four times as fast
        x, dtype = x[:, :, : rows * stride, : columns * stride], x.dtype
        x = x.reshape(len(x), -1, rows, stride, columns * stride).view(f"V{stride * dtype.itemsize}")
        x = np.ascontiguousarray(x.transpose(0, 2, 4, 1, 3)).view(dtype)
    return x.reshape(len(x) * rows * columns, -1)


def convolve(squares: Array, weight: Array, columns: int) -> Array:
    """[M, channels]: at each of M squares, what a kernel gives whose first square it is.

    A kernel of side * side squares is a matrix for each, so that the convolution is a sum of matrix products, each with the
    squares so many places further on:  y[p] = sum over i, j of  x[p + i * columns + j] W[i * side + j].
    Where a kernel would reach beyond its image, y is of no meaning.

    Args:
        squares: [M, F], all of several images of so many columns
        weight: [side * side, F, channels]
    """
    y: Array = squares @ weight[0]
    side = isqrt(len(weight))
    for k in range(1, len(weight)):
        further = k // side * columns + k % side
        y[:-further] += squares[further:] @ weight[k]
    return y
