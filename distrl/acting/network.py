"""Feed-forward networks in NumPy: what they are, their first weights, their forward. Needs no torch.

For the small networks of RL a NumPy forward is several times faster per call than eager torch. One form acts in a run,
always this one; the tests hold it against the torch network that learns (distrl.learning.networks).

A batch of one shape gives the same bits wherever it is computed on the same kind of processor with one BLAS thread
(`single_threaded`), so the whole shard is always acted for at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Self

import numpy as np
import threadpoolctl

from distrl.acting.encoders import Encoder, encode
from distrl.descriptions import STRICT, Count, Size, from_json
from distrl.sizes import check_fits
from distrl.types import Array, Arrays


@dataclass(frozen=True)
class NetworkSpec:
    """A feed-forward network: encoders of the parts of an observation, hidden layers on their features, one linear head."""

    __pydantic_config__ = STRICT
    encoders: tuple[Encoder, ...]
    outputs: Count
    hidden: tuple[Count, ...] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"  # or relu; convolutions always use relu
    layer_norm: bool = False  # between a hidden layer and its activation (Ba et al. 2016, arXiv:1607.06450)
    dueling: bool = (
        False  # Q = V + A - mean A; the last hidden layer is there twice (Wang et al. 2016, arXiv:1511.06581)
    )
    free: Size = 0  # further outputs, the same for every observation: parameters themselves

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape by name, in the order in which they lie in the flat vector."""
        shapes: dict[str, tuple[int, ...]] = {"free": (self.free,)} if self.free else {}

        def layer(name: str, *weight: int) -> None:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

        for i, encoder in enumerate(self.encoders):
            shapes |= {f"encoders.{i}.{name}": shape for name, shape in encoder.shapes().items()}
        widths = [sum(encoder.features for encoder in self.encoders), *self.hidden]
        for i, hidden in enumerate(self.hidden):
            layer(f"hidden.{i}", hidden, widths[i])
        if self.layer_norm:
            for i, hidden in enumerate(self.hidden):
                layer(f"norm.{i}", hidden)
        layer("head", self.outputs, widths[-1])
        if self.dueling:
            layer("value_hidden", widths[-1], widths[-2])
            if self.layer_norm:
                layer("value_norm", widths[-1])
            layer("value_head", 1, widths[-1])
        return shapes

    def initial(self, rng: np.random.Generator, head_gain: float) -> Array:
        """First weights, a flat vector [P]: orthogonal (Saxe et al. 2014, arXiv:1312.6120), biases zero.

        The gain is sqrt(2) in the body. In NumPy, so that runners can start while the learner still imports torch.
        """
        parts = []
        for name, shape in self.shapes().items():
            if name == "free" or name.endswith("bias"):
                parts.append(np.zeros(prod(shape)))
                continue
            if len(shape) == 1:  # of a LayerNorm
                parts.append(np.ones(shape))
                continue
            gain = head_gain if name in ("head.weight", "value_head.weight") else 2**0.5
            parts.append(orthogonal(rng, shape[0], prod(shape[1:]), gain).ravel())
        return np.concatenate(parts).astype(np.float32)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes().values())

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError where a value is none that a network can have."""
        spec = from_json(cls, data)
        if not spec.encoders:
            raise ValueError("a network has no encoders")
        if spec.dueling and not spec.hidden:
            raise ValueError("a dueling network has no hidden layer")
        if any(min(size) < 1 for encoder in spec.encoders for size in encoder.sizes()):
            raise ValueError("a convolution is larger than its image")
        if any(kernel % stride for encoder in spec.encoders for _, kernel, stride in encoder.conv):
            raise ValueError("a convolution's kernel is no multiple of its stride")
        check_fits(4 * spec.parameters, f"a network of {spec.parameters:,} parameters of 4 bytes", "It is of no model.")
        return spec


def orthogonal(rng: np.random.Generator, rows: int, columns: int, gain: float) -> Array:
    """A random matrix [rows, columns] of which the rows or the columns are orthogonal and as long as `gain`."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))  # makes the distribution uniform
    matrix: Array = gain * (q if rows >= columns else q.T)
    return matrix


def unflatten(vector: Array, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Named views into a flat vector [P]."""
    if vector.shape != (needed := sum(prod(shape) for shape in shapes.values()),):
        raise ValueError(f"a vector of {vector.shape} for a network of {needed} parameters")
    arrays: Arrays = {}
    start = 0
    for name, shape in shapes.items():
        arrays[name] = vector[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return arrays


class Network:
    """The NumPy forward of a `NetworkSpec`."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.vector = np.zeros(spec.parameters, np.float32)
        self._layers: Arrays = {}
        self._encoders: list[tuple[Encoder, Arrays]] = []

    def load(self, vector: Array) -> None:
        self.vector = vector
        arrays = unflatten(vector, self.spec.shapes())
        # Each weight as a contiguous [inputs, outputs] matrix: rows of a batch times columns of weights.
        self._layers = {
            name: np.ascontiguousarray(array.reshape(len(array), -1).T) if array.ndim > 1 else array
            for name, array in arrays.items()
        }
        self._encoders = [
            (encoder, encoder.layers({name: arrays[f"encoders.{i}.{name}"] for name in encoder.shapes()}))
            for i, encoder in enumerate(self.spec.encoders)
        ]

    def __call__(self, obs: Array) -> Array:
        """Outputs [N, outputs + free], float32, for flat observations [N, ...]."""
        before, features = self.features(obs)
        if not self.spec.dueling:
            return self.outputs(features)
        out = self._linear("head", features)
        value = self._linear("value_head", self._hidden("value_hidden", "value_norm", before))
        out += value - out.mean(axis=1, keepdims=True)
        return out

    def features(self, obs: Array) -> tuple[Array, Array]:
        """What the last hidden layer is given and what it gives, [N, F] each."""
        obs = np.ascontiguousarray(
            obs
        )  # the order in memory may be part of the arithmetic, and differs after a rebuild
        encoded = [encode(encoder, obs, layers) for encoder, layers in self._encoders]
        before = x = encoded[0] if len(encoded) == 1 else np.concatenate(encoded, axis=1)
        for i in range(len(self.spec.hidden)):
            before, x = x, self._hidden(f"hidden.{i}", f"norm.{i}", x)
        return before, x

    def outputs(self, features: Array) -> Array:
        """Of the head, and behind them what is free."""
        out = self._linear("head", features)
        if self.spec.free:
            out = np.concatenate([out, np.broadcast_to(self._layers["free"], (len(out), self.spec.free))], axis=1)
        return out

    def _hidden(self, name: str, norm: str, x: Array) -> Array:
        x = self._linear(name, x)
        if self.spec.layer_norm:
            x -= x.mean(axis=1, keepdims=True)
            x /= np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(1e-5))
            x *= self._layers[f"{norm}.weight"]
            x += self._layers[f"{norm}.bias"]
        y: Array = np.tanh(x, out=x) if self.spec.activation == "tanh" else np.maximum(x, 0, out=x)
        return y

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self._layers[f"{name}.weight"]
        y += self._layers[f"{name}.bias"]
        return y


def flatten(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> Array:
    """The flat vector [P] of named arrays; refuses missing, foreign and misshapen ones with ValueError."""
    found = {name: array.shape for name, array in arrays.items()}
    if found != dict(shapes):
        raise ValueError(f"arrays of shapes {found} where {dict(shapes)} are needed")
    return np.concatenate([arrays[name].ravel() for name in shapes])


def single_threaded() -> None:
    """One NumPy thread in this process: faster for small matrices, and part of the arithmetic. Leaves torch alone."""
    threadpoolctl.ThreadpoolController().select(internal_api="openblas").limit(limits=1)
