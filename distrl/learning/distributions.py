"""Distributions of actions, the half that learns: torch. The half that acts is `distrl.acting.distributions`.

`bind` makes of a distribution and a batch of its rows [B, K] what can be asked for log_prob, entropy and KL, each [B], and
for the gradient by the rows of what is made of the former two. What several questions share (a softmax) is computed once.
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

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        """[B, K] of a loss by `params`, given those by log_prob(raw) [B] and by the entropy of each sample, the same for all."""


def bind(distribution: Distribution, params: Tensor, mask: Tensor | None = None) -> Bound:
    """`params` [B, K], `mask` [B, M] bool."""
    bound: Bound = BOUND[type(distribution)](distribution, params, mask)
    return bound


class BoundCategorical:
    def __init__(self, distribution: Categorical, params: Tensor, mask: Tensor | None) -> None:
        logits = params if mask is None else params.masked_fill(~mask, FORBIDDEN)
        # [A, B]: torch is ten times faster down the columns than along short rows.
        self.start, self.log_probs = distribution.start, logits.t().log_softmax(dim=0)
        self.probs = self.log_probs.exp()
        self.entropies = -(self.probs * self.log_probs).sum(0)

    def index(self, raw: Tensor) -> Tensor:
        chosen = raw.long()
        return (chosen - self.start if self.start else chosen)[None]

    def log_prob(self, raw: Tensor) -> Tensor:
        return self.log_probs.gather(0, self.index(raw)).squeeze(0)

    def entropy(self) -> Tensor:
        return self.entropies

    def kl(self, other: BoundCategorical) -> Tensor:
        return (self.probs * (self.log_probs - other.log_probs)).sum(0)

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        """d log pi(a) / d logit_i = 1[i = a] - p_i,   d H / d logit_i = -p_i (log p_i + H)"""
        g = self.probs * ((self.log_probs + self.entropies) * -by_entropy - by_log_prob)
        return g.scatter_add_(0, self.index(raw), by_log_prob[None]).t()


class BoundMultiCategorical:
    def __init__(self, distribution: MultiCategorical, params: Tensor, mask: Tensor | None) -> None:
        where, allowed = (torch.tensor(array, device=params.device) for array in distribution.table)  # [D, W]
        if mask is not None:
            allowed = allowed & mask[:, where]
        self.log_probs = params[:, where].masked_fill(~allowed, FORBIDDEN).log_softmax(dim=2)  # [B, D, W]
        self.probs = self.log_probs.exp()
        self.where, self.start = where.flatten(), torch.tensor(distribution.start, device=params.device)
        self.columns = params.shape[1]

    def index(self, raw: Tensor) -> Tensor:
        return (raw.long() - self.start)[..., None]

    def log_prob(self, raw: Tensor) -> Tensor:
        return self.log_probs.gather(2, self.index(raw)).squeeze(2).sum(1)

    def entropy(self) -> Tensor:
        return -(self.probs * self.log_probs).sum((1, 2))

    def kl(self, other: BoundMultiCategorical) -> Tensor:
        return (self.probs * (self.log_probs - other.log_probs)).sum((1, 2))

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        """Of each choice that of a categorical one; columns that only fill up the table are 0 there."""
        entropy, each = -(self.probs * self.log_probs).sum(2, keepdim=True), by_log_prob[:, None, None]
        g = self.probs * ((self.log_probs + entropy) * -by_entropy - each)
        g.scatter_add_(2, self.index(raw), each.expand(-1, g.shape[1], 1))
        return g.new_zeros(len(g), self.columns).index_add_(1, self.where, g.flatten(1))


class BoundBernoulli:
    def __init__(self, distribution: Bernoulli, params: Tensor, mask: Tensor | None) -> None:
        self.logits, self.softplus = params, softplus(params)  # the latter is -log(1 - p)

    def log_prob(self, raw: Tensor) -> Tensor:
        return (self.logits * raw.float() - self.softplus).sum(1)

    def entropy(self) -> Tensor:
        return (self.softplus - self.logits * self.logits.sigmoid()).sum(1)

    def kl(self, other: BoundBernoulli) -> Tensor:
        p = self.logits.sigmoid()
        return (p * (self.logits - other.logits) - self.softplus + other.softplus).sum(1)

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        """d log pi(a) / d logit = a - p,   d H / d logit = -logit p (1 - p)"""
        p = self.logits.sigmoid()
        return (raw.float() - p) * by_log_prob[:, None] - self.logits * p * (1 - p) * by_entropy


class BoundGaussian:
    def __init__(self, distribution: DiagonalGaussian, params: Tensor, mask: Tensor | None) -> None:
        self.mean, log_std = params.chunk(2, dim=1)
        self.log_std = log_std.clamp(*LOG_STD_RANGE) if distribution.state_dependent else log_std
        self.std, self.squash = self.log_std.exp(), distribution.squash
        self.free = (self.log_std == log_std).float() if distribution.state_dependent else None  # where it is no bound

    def log_prob(self, raw: Tensor) -> Tensor:
        """-z^2 / 2 - log std - log(2 pi) / 2, summed over components;   z = (u - mean) / std"""
        z = self.standard(raw)
        minus = torch.addcmul(self.log_std, z, z, value=0.5)
        if self.squash:
            minus = minus + log_slope(raw.float())
        return -0.5 * log(2 * pi) * z.shape[1] - minus.sum(1)

    def standard(self, raw: Tensor) -> Tensor:
        return (raw.float() - self.mean) / self.std

    def entropy(self) -> Tensor:
        """Of tanh(u) that of u and E[log_slope(u)]: by Gauss-Hermite quadrature, as no closed form is known."""
        entropy = self.log_std + 0.5 * log(2 * pi * e)
        if self.squash:
            _, weights, drawn = self.drawn()
            entropy = entropy + log_slope(drawn) @ weights
        return entropy.sum(1)

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes [M] of a standard Gaussian, their weights [M], and u [B, D, M] at them."""
        nodes, weights = (self.mean.new_tensor(x) for x in np.polynomial.hermite_e.hermegauss(NODES))
        return nodes, weights / weights.sum(), self.mean[..., None] + self.std[..., None] * nodes

    def kl(self, other: BoundGaussian) -> Tensor:
        """The same for u and tanh(u): KL does not change under an invertible map."""
        ratio = (self.std / other.std).square()
        distance = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + distance - 1 - ratio.log()).sum(1)

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        """d log pi / d mean = z / std,   d log pi / d log std = z^2 - 1,   d H / d log std = 1;   z = (u - mean) / std

        Squashed, H has E[d log_slope(u) / du du / d mean] beside, and likewise of log std; see `entropy`.
        """
        z, each = self.standard(raw), by_log_prob[:, None]
        weighed = z * each
        by_mean, by_log_std = weighed / self.std, torch.addcmul(by_entropy - each, z, weighed)
        if self.squash:
            nodes, weights, drawn = self.drawn()
            slope = -2 * drawn.tanh()
            by_mean = by_mean + by_entropy * (slope @ weights)
            by_log_std = by_log_std + by_entropy * (slope @ (weights * nodes)) * self.std
        return torch.cat([by_mean, by_log_std if self.free is None else by_log_std * self.free], dim=1)


def log_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), in a form that no u overflows."""
    return 2 * (log(2) - u - softplus(-2 * u))


class BoundProduct:
    def __init__(self, distribution: Product, params: Tensor, mask: Tensor | None) -> None:
        self.spans, self.columns = distribution.spans, params.shape[1]
        self.parts = [bind(span.part, params[:, span.columns], span.masked(mask)) for span in self.spans]

    def shaped(self, raw: Tensor) -> list[Tensor]:
        return [raw[:, span.raw].reshape(-1, *span.part.raw[0]) for span in self.spans]

    def log_prob(self, raw: Tensor) -> Tensor:
        return total([part.log_prob(own) for part, own in zip(self.parts, self.shaped(raw), strict=True)])

    def entropy(self) -> Tensor:
        return total([part.entropy() for part in self.parts])

    def kl(self, other: BoundProduct) -> Tensor:
        return total([part.kl(others) for part, others in zip(self.parts, other.parts, strict=True)])

    def gradient(self, raw: Tensor, by_log_prob: Tensor, by_entropy: float) -> Tensor:
        g = by_log_prob.new_zeros(len(raw), self.columns)
        for span, part, own in zip(self.spans, self.parts, self.shaped(raw), strict=True):
            g[:, span.columns] = part.gradient(own, by_log_prob, by_entropy)
        return g


def total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


BOUND: dict[type[Any], Any] = {
    Categorical: BoundCategorical,
    MultiCategorical: BoundMultiCategorical,
    Bernoulli: BoundBernoulli,
    DiagonalGaussian: BoundGaussian,
    Product: BoundProduct,
}
