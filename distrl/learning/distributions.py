"""Distributions of actions, the half that learns: torch. The half that acts is `distrl.acting.distributions`.

`bind` makes of a distribution and a batch of its rows [B, K] what can be asked for log_prob, entropy and KL, each [B] and
with gradients. What several questions share (a softmax) is computed once.
"""

from __future__ import annotations

from math import e, log, pi
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from distrl.acting.distributions import (
    FORBIDDEN,
    LOG_STD_RANGE,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
)

NODES = 32  # of the quadrature for the entropy of a squashed Gaussian


class Bound(Protocol):
    def log_prob(self, raw: Tensor) -> Tensor:
        """[B] of raw actions [B] or [B, D]."""

    def entropy(self) -> Tensor:
        """[B]"""

    def kl(self, other: Any) -> Tensor:
        """KL(self || other) [B], of two of one kind."""


def bind(distribution: Distribution, params: Tensor, mask: Tensor | None = None) -> Bound:
    """`params` [B, K], `mask` [B, M] bool."""
    bound: Bound = BOUND[type(distribution)](distribution, params, mask)
    return bound


class BoundCategorical:
    def __init__(self, distribution: Categorical, params: Tensor, mask: Tensor | None) -> None:
        logits = params if mask is None else params.masked_fill(~mask, FORBIDDEN)
        self.start, self.log_probs = distribution.start, logits.log_softmax(dim=1)

    def log_prob(self, raw: Tensor) -> Tensor:
        return self.log_probs.gather(1, (raw.long() - self.start)[:, None]).squeeze(1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(1)

    def kl(self, other: BoundCategorical) -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(1)


class BoundMultiCategorical:
    def __init__(self, distribution: MultiCategorical, params: Tensor, mask: Tensor | None) -> None:
        where, allowed = (torch.tensor(array, device=params.device) for array in distribution.table)  # [D, W]
        if mask is not None:
            allowed = allowed & mask[:, where]
        self.log_probs = params[:, where].masked_fill(~allowed, FORBIDDEN).log_softmax(dim=2)  # [B, D, W]
        self.start = torch.tensor(distribution.start, device=params.device)

    def log_prob(self, raw: Tensor) -> Tensor:
        return self.log_probs.gather(2, (raw.long() - self.start)[..., None]).squeeze(2).sum(1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum((1, 2))

    def kl(self, other: BoundMultiCategorical) -> Tensor:
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum((1, 2))


class BoundBernoulli:
    def __init__(self, distribution: Bernoulli, params: Tensor, mask: Tensor | None) -> None:
        self.logits, self.softplus = params, softplus(params)  # the latter is -log(1 - p)

    def log_prob(self, raw: Tensor) -> Tensor:
        return (self.logits * raw - self.softplus).sum(1)

    def entropy(self) -> Tensor:
        return (self.softplus - self.logits * self.logits.sigmoid()).sum(1)

    def kl(self, other: BoundBernoulli) -> Tensor:
        p = self.logits.sigmoid()
        return (p * (self.logits - other.logits) - self.softplus + other.softplus).sum(1)


class BoundGaussian:
    def __init__(self, distribution: DiagonalGaussian, params: Tensor, mask: Tensor | None) -> None:
        self.mean, log_std = params.chunk(2, dim=1)
        self.log_std = log_std.clamp(*LOG_STD_RANGE) if distribution.state_dependent else log_std
        self.std, self.squash = self.log_std.exp(), distribution.squash

    def log_prob(self, raw: Tensor) -> Tensor:
        raw = raw.float()
        log_prob = -0.5 * ((raw - self.mean) / self.std).square() - self.log_std - 0.5 * log(2 * pi)
        return (log_prob - log_slope(raw) if self.squash else log_prob).sum(1)

    def entropy(self) -> Tensor:
        """Of tanh(u) that of u and E[log_slope(u)]: by Gauss-Hermite quadrature, as no closed form is known."""
        entropy = self.log_std + 0.5 * log(2 * pi * e)
        if self.squash:
            nodes, weights = (self.mean.new_tensor(x) for x in np.polynomial.hermite_e.hermegauss(NODES))
            drawn = self.mean[..., None] + self.std[..., None] * nodes
            entropy = entropy + log_slope(drawn) @ (weights / weights.sum())
        return entropy.sum(1)

    def kl(self, other: BoundGaussian) -> Tensor:
        """The same for u and tanh(u): KL does not change under an invertible map."""
        ratio = (self.std / other.std).square()
        distance = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + distance - 1 - ratio.log()).sum(1)


def log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), in a form that no u overflows."""
    return 2 * (log(2) - u - softplus(-2 * u))


class BoundProduct:
    def __init__(self, distribution: Product, params: Tensor, mask: Tensor | None) -> None:
        self.spans = distribution.spans
        self.parts = [bind(span.part, params[:, span.columns], span.masked(mask)) for span in self.spans]

    def log_prob(self, raw: Tensor) -> Tensor:
        shaped = (raw[:, span.raw].reshape(-1, *span.part.raw[0]) for span in self.spans)
        return total([part.log_prob(own) for part, own in zip(self.parts, shaped, strict=True)])

    def entropy(self) -> Tensor:
        return total([part.entropy() for part in self.parts])

    def kl(self, other: BoundProduct) -> Tensor:
        return total([part.kl(others) for part, others in zip(self.parts, other.parts, strict=True)])


def total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


BOUND: dict[type[Any], Any] = {
    Categorical: BoundCategorical,
    MultiCategorical: BoundMultiCategorical,
    Bernoulli: BoundBernoulli,
    DiagonalGaussian: BoundGaussian,
    Product: BoundProduct,
}
