"""Networks of a user's own, good ones and others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Small(nn.Module):
    """For vectors, with two parameters that lie in no layer."""

    def __init__(self, obs: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(obs.shape[1]))
        self.layers = nn.Sequential(nn.Linear(obs.shape[1], 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.shift = nn.Parameter(torch.zeros(24))

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(obs * self.gain) + self.shift


class Parts(nn.Module):
    """For any Dict or Tuple, one level deep."""

    def __init__(self, obs: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(x.flatten(1).shape[1], 8) for x in self.each(obs))

    def each(self, obs: Any) -> list[Tensor]:
        return list(obs.values()) if isinstance(obs, dict) else list(obs)

    def forward(self, obs: Any) -> Tensor:
        pairs = zip(self.parts, self.each(obs), strict=True)
        return torch.cat([torch.relu(layer(x.flatten(1))) for layer, x in pairs], dim=1)


class Dropping(Small):
    def forward(self, obs: Tensor) -> Tensor:
        return torch.dropout(super().forward(obs), 0.5, self.training)


class Batched(Small):
    def __init__(self, obs: Tensor) -> None:
        super().__init__(obs)
        self.norm = nn.BatchNorm1d(24)

    def forward(self, obs: Tensor) -> Tensor:
        return self.norm(super().forward(obs)) if len(obs) > 1 else super().forward(obs)


class Drawn(Small):
    def __init__(self, obs: Tensor) -> None:
        super().__init__(obs)
        self.register_buffer("projection", torch.randn(24, 24))


class Hidden(Small):
    """What is drawn lies where no process finds that of another."""

    def __init__(self, obs: Tensor) -> None:
        super().__init__(obs)
        self.scale = float(np.random.default_rng().normal())

    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs) * self.scale


class Scalar(Small):
    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs).sum()


class Failing(Small):
    def forward(self, obs: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 do not fit")


class Wide(Small):
    def __init__(self, obs: Tensor) -> None:
        super().__init__(obs)
        self.double()


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()


def function(obs: Tensor) -> Tensor:
    return obs
