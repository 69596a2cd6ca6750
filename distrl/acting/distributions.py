"""Distributions of actions, the half that acts: NumPy. The half that learns is `distrl.learning.distributions`.

A distribution is told by a row of numbers for each state, [N, K]: `outputs` of them come out of a network's head, and
behind them lie `free` ones that are the same in every state (the log-deviation of a Gaussian, as a rule).

The *raw* action is what is sampled and learnt from, one array [N] or [N, D]. What the env gets is made of it by
`env_actions`, one array a part of the action space: the raw one itself where nothing has to be done to it, else a copy
that is scaled, and clipped or squashed.

A mask [N, M] says which choices are allowed; `choices` are the sizes of its groups, in each of which one must be, and
empty where nothing can be masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log, pi, prod
from typing import Any, Protocol

import numpy as np

from distrl.descriptions import STRICT, Count, Dtype, Size, from_json
from distrl.types import Array

FORBIDDEN = -1e30  # the logit of a choice that a mask forbids: finite, so that 0 times it is 0
BELOW_ONE = 1 - 2**-24  # noise beyond it could, rounded, choose what is forbidden
LOG_STD_RANGE = (-20.0, 2.0)  # of a deviation that depends on the state (Haarnoja et al. 2018, arXiv:1812.05905)


class Distribution(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a state."""

    @property
    def free(self) -> int:
        """Numbers behind them that are the same in every state."""

    @property
    def choices(self) -> tuple[int, ...]:
        """Sizes of the groups of a mask."""

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        """Shape, () or (D,), and type of one raw action; noise has the same shape."""

    def initial(self) -> Array:
        """[outputs + free]: the row of an untrained policy, whose head gives nearly nothing."""

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        """Noise for so many steps, [T, N, *raw shape]."""

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Raw actions for rows [N, K], which may be changed, and their log_prob [N]."""

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        """The raw actions that a greedy policy takes."""

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        """What the env gets, [N, *shape] a part of the action space."""


@dataclass(frozen=True)
class Categorical:
    """One of `n` actions, numbered from `start`: pi(a) = softmax(logits)[a]. The raw action [N] is the env's."""

    __pydantic_config__ = STRICT
    n: Count
    start: int = 0
    probs: tuple[float, ...] = ()  # of an untrained policy; empty: all alike
    kind = "categorical"
    free = 0

    @property
    def outputs(self) -> int:
        return self.n

    @property
    def choices(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        return (), "int64"

    def initial(self) -> Array:
        probs: Array = np.array(self.probs or [1.0] * self.n)
        return np.log(probs)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.random((steps, copies))

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        if mask is not None:
            params, noise = np.where(mask, params, np.float32(FORBIDDEN)), np.minimum(noise, BELOW_ONE)
        index, log_prob = pick(params, noise)
        return index + self.start, log_prob

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        best: Array = (params if mask is None else np.where(mask, params, FORBIDDEN)).argmax(axis=1)
        return best + self.start

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        return (raw,)


def pick(logits: Array, noise: Array) -> tuple[Array, Array]:
    """One index of each row of logits [M, A], which are changed, by the inverse of the cumulative distribution.

    Returns:
        the indices [M], and their log_prob [M]
    """
    logits -= logits.max(axis=1, keepdims=True)
    index, total = choose(np.exp(logits), noise)
    log_prob = logits[np.arange(len(index)), index] - np.log(total)
    return index, log_prob


def choose(weights: Array, noise: Array) -> tuple[Array, Array]:
    """One index [M] of each row of weights [M, A], each as often as its weight says; and the sums of the rows [M]."""
    cumulative = np.cumsum(weights, axis=1)
    total = cumulative[:, -1]
    index: Array = (cumulative[:, :-1] <= (noise * total)[:, None]).sum(axis=1)
    return index, total


@dataclass(frozen=True)
class MultiCategorical:
    """D independent choices, of `n[d]` actions from `start[d]` on each. The raw action [N, D] is the env's, but for its shape."""

    __pydantic_config__ = STRICT
    n: tuple[Count, ...]
    start: tuple[int, ...]
    shape: tuple[Size, ...]  # as the env has it, of D components
    dtype: Dtype = "int64"
    kind = "multi_categorical"
    free = 0

    @property
    def outputs(self) -> int:
        return sum(self.n)

    @property
    def choices(self) -> tuple[int, ...]:
        return self.n

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        return (len(self.n),), "int64"

    @cached_property
    def table(self) -> tuple[Array, Array]:
        """Where the logits of each choice lie in a row, [D, W], and which of these W = max n places are really there."""
        first = np.cumsum([0, *self.n[:-1]])
        there = np.arange(max(self.n)) < np.array(self.n)[:, None]
        return np.where(there, first[:, None] + np.arange(max(self.n)), 0), there

    def initial(self) -> Array:
        return np.zeros(self.outputs)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.random((steps, copies, len(self.n)))

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        logits = self._logits(params, mask)
        index, log_prob = pick(logits.reshape(-1, logits.shape[-1]), np.minimum(noise, BELOW_ONE).ravel())
        return index.reshape(noise.shape) + np.array(self.start), log_prob.reshape(noise.shape).sum(axis=1)

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        best: Array = self._logits(params, mask).argmax(axis=2) + np.array(self.start)
        return best

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        return (_shaped(raw, self.shape, self.dtype),)

    def _logits(self, params: Array, mask: Array | None) -> Array:
        """[N, D, W] in memory of its own."""
        where, there = self.table
        allowed = there if mask is None else there & mask[:, where]
        return np.where(allowed, params[:, where], np.float32(FORBIDDEN))


@dataclass(frozen=True)
class Bernoulli:
    """D independent bits, 1 with probability sigmoid(logit). The raw action [N, D] is the env's, but for its shape."""

    __pydantic_config__ = STRICT
    shape: tuple[Size, ...]
    dtype: Dtype = "int8"
    kind = "bernoulli"
    free = 0
    choices = ()

    @property
    def outputs(self) -> int:
        return prod(self.shape)

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        return (self.outputs,), "int8"

    def initial(self) -> Array:
        return np.zeros(self.outputs)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.random((steps, copies, self.outputs))

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        softplus = np.logaddexp(np.float32(0), params)  # -log(1 - p)
        bits = noise < np.exp(params - softplus)
        return bits.astype(np.int8), (params * bits - softplus).sum(axis=1)

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        return (params > 0).astype(np.int8)

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        return (_shaped(raw, self.shape, self.dtype),)


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal numbers u_d with mean mu_d and deviation exp(log_std_d); the raw action is u [N, D], float32.

    Where a component has both bounds, u is counted in halves of its range from the middle, so that -1 and 1 are the
    bounds whatever the env's units; elsewhere in the env's units. What lies outside is clipped for the env, while
    what is learnt from is the number that was drawn. With `squash` the env gets tanh(u) instead, and log_prob is that
    of tanh(u) (Haarnoja et al. 2018, arXiv:1812.05905, appendix C):

        log pi(tanh u) = log N(u) - sum_d log(1 - tanh(u_d)^2)
    """

    __pydantic_config__ = STRICT
    shape: tuple[Size, ...]
    low: tuple[float | None, ...]  # [D] bounds; None where there is none
    high: tuple[float | None, ...]
    dtype: Dtype = "float32"
    log_std_init: float = 0.0
    state_dependent: bool = False  # whether the head gives log_std, too
    squash: bool = False
    kind = "gaussian"
    choices = ()

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def outputs(self) -> int:
        return 2 * self.size if self.state_dependent else self.size

    @property
    def free(self) -> int:
        return 0 if self.state_dependent else self.size

    @cached_property
    def bounds(self) -> tuple[Array, Array, Array, Array]:
        """Middle, half range, low and high of each component [D], in the numbers in which the env's action is computed."""
        both = [low is not None and high is not None for low, high in zip(self.low, self.high, strict=True)]
        low = np.array([-np.inf if x is None else x for x in self.low])
        high = np.array([np.inf if x is None else x for x in self.high])
        with np.errstate(invalid="ignore"):
            middle, half = np.where(both, (low + high) / 2, 0.0), np.where(both, (high - low) / 2, 1.0)
        dtype = np.dtype(self.dtype) if self.dtype.startswith("float") else np.dtype(np.float64)
        return middle.astype(dtype), half.astype(dtype), low.astype(dtype), high.astype(dtype)

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        return (self.size,), "float32"

    def initial(self) -> Array:
        return np.repeat([0.0, self.log_std_init], self.size)

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        return rng.standard_normal((steps, copies, self.size), np.float32)

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        noise = noise.astype(np.float32, copy=False)  # a product's is float64
        log_std = params[:, self.size :]
        if self.state_dependent:
            log_std = log_std.clip(*LOG_STD_RANGE)
        raw = params[:, : self.size] + np.exp(log_std) * noise
        log_prob = ((noise * noise) * np.float32(-0.5) - log_std).sum(axis=1) - np.float32(
            0.5 * log(2 * pi) * self.size
        )
        if self.squash:
            log_prob -= (2 * (log(2) - raw - np.logaddexp(np.float32(0), -2 * raw))).sum(axis=1)
        return raw, log_prob

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        return params[:, : self.size]

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        middle, half, low, high = self.bounds
        x: Array = np.tanh(raw) if self.squash else raw
        x = x.astype(low.dtype)
        x *= half
        x += middle
        np.maximum(x, low, out=x)
        np.minimum(x, high, out=x)
        if low.dtype != self.dtype:
            np.rint(x, out=x)
        return (_shaped(x, self.shape, self.dtype),)


def _shaped(raw: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """[N, *shape] of `dtype`: the array itself where it is so."""
    return (raw if raw.shape[1:] == shape else raw.reshape(-1, *shape)).astype(dtype, copy=False)


@dataclass(frozen=True)
class Product:
    """Independent parts: of Tuple and Dict actions, one for each of their leaves. Raw actions [N, D] side by side."""

    parts: tuple[Distribution, ...]
    kind = "product"

    @property
    def outputs(self) -> int:
        return sum(part.outputs for part in self.parts)

    @property
    def free(self) -> int:
        return sum(part.free for part in self.parts)

    @property
    def choices(self) -> tuple[int, ...]:
        return tuple(n for part in self.parts for n in part.choices)

    @property
    def raw(self) -> tuple[tuple[int, ...], str]:
        return (self.spans[-1].raw.stop,), str(np.result_type(*(part.raw[1] for part in self.parts)))

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Where everything of each part lies."""
        spans = []
        head = free = raw = mask = 0
        free = self.outputs
        for part in self.parts:
            columns = np.concatenate([head + np.arange(part.outputs), free + np.arange(part.free)])
            width, choices = prod(part.raw[0]), sum(part.choices)
            spans.append(Span(part, columns, slice(raw, raw + width), slice(mask, mask + choices)))
            head, free, raw, mask = head + part.outputs, free + part.free, raw + width, mask + choices
        return tuple(spans)

    def initial(self) -> Array:
        row = np.zeros(self.outputs + self.free)
        for span in self.spans:
            row[span.columns] = span.part.initial()
        return row

    def draw(self, rng: np.random.Generator, steps: int, copies: int) -> Array:
        noise = [part.draw(rng, steps, copies).reshape(steps, copies, -1) for part in self.parts]
        return np.concatenate(noise, axis=2)

    def sample(self, params: Array, noise: Array, mask: Array | None = None) -> tuple[Array, Array]:
        raws, log_probs = [], []
        for span in self.spans:
            own = noise[:, span.raw].reshape(-1, *span.part.raw[0])
            raw, log_prob = span.part.sample(params[:, span.columns], own, span.masked(mask))
            raws.append(raw)
            log_probs.append(log_prob)
        return self._joined(raws), sum(log_probs[1:], log_probs[0])

    def mode(self, params: Array, mask: Array | None = None) -> Array:
        return self._joined([span.part.mode(params[:, span.columns], span.masked(mask)) for span in self.spans])

    def env_actions(self, raw: Array) -> tuple[Array, ...]:
        found: list[Array] = []
        for span in self.spans:
            shape, dtype = span.part.raw
            found += span.part.env_actions(raw[:, span.raw].reshape(-1, *shape).astype(dtype))
        return tuple(found)

    def _joined(self, raws: list[Array]) -> Array:
        return np.concatenate([raw.reshape(len(raw), -1) for raw in raws], axis=1).astype(self.raw[1], copy=False)


@dataclass(frozen=True)
class Span:
    """A part of a product: its columns in a row of parameters, in a raw action and in a mask."""

    part: Distribution
    columns: Array
    raw: slice
    mask: slice

    def masked(self, mask: Any) -> Any:
        """Its own columns of a mask, an array or a tensor."""
        return None if mask is None or not self.part.choices else mask[:, self.mask]


KINDS: dict[str, type[Any]] = {c.kind: c for c in (Categorical, MultiCategorical, Bernoulli, DiagonalGaussian)}


def describe(distribution: Distribution) -> dict[str, Any]:
    """What `from_description` needs to make it again, as plain JSON."""
    if isinstance(distribution, Product):
        return {"kind": Product.kind, "parts": [describe(part) for part in distribution.parts]}
    return {"kind": distribution.kind, **asdict(distribution)}  # type: ignore[call-overload]


def from_description(data: Mapping[str, Any]) -> Distribution:
    if data["kind"] == Product.kind:
        return Product(tuple(from_description(part) for part in data["parts"]))
    if data["kind"] not in KINDS:
        raise ValueError(f"a distribution is of kind {data['kind']!r}; it must be one of {', '.join(KINDS)}")
    distribution: Distribution = from_json(
        KINDS[data["kind"]], {name: value for name, value in data.items() if name != "kind"}
    )
    return distribution
