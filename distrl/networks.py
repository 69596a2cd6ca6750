"""The torch side of `distrl.policy.NetworkSpec`: the same layers, names and order, with gradients. Floor 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from distrl.policy import NetworkSpec

L = TypeVar("L", bound=nn.Module)


class Body(nn.Module):
    """Convolutions and hidden layers: observations [B, *obs_shape] to features [B, hidden[-1]]."""

    def __init__(self, spec: NetworkSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.spec = spec
        shapes = spec.shapes()
        self.conv = nn.ModuleList()
        for i, (channels, kernel, stride) in enumerate(spec.conv):
            self.conv.append(nn.Conv2d(shapes[f"conv.{i}.weight"][1], channels, kernel, stride))
        self.hidden = nn.ModuleList(
            nn.Linear(shapes[f"hidden.{i}.weight"][1], width) for i, width in enumerate(spec.hidden)
        )
        for layer in (*self.conv, *self.hidden):
            orthogonal(layer, 2**0.5, generator)
        self.activation = torch.tanh if spec.activation == "tanh" else torch.relu

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.float() * self.spec.scale if self.spec.scale != 1.0 else obs.float()
        for layer in self.conv:
            x = torch.relu(layer(x))
        x = x.flatten(1)
        for layer in self.hidden:
            x = self.activation(layer(x))
        return x


class Network(Body):
    """A body and a linear head: [B, *obs_shape] to [B, outputs]."""

    def __init__(self, spec: NetworkSpec, head_gain: float, generator: torch.Generator) -> None:
        super().__init__(spec, generator)
        self.head = orthogonal(nn.Linear(spec.shapes()["head.weight"][1], spec.outputs), head_gain, generator)

    def forward(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(super().forward(obs))
        return out


def orthogonal(layer: L, gain: float, generator: torch.Generator) -> L:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) and zero biases, drawn from `generator` alone."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class FlatParameters:
    """All parameters of some modules as one vector, and all their gradients as another.

    The modules keep working: their parameters become views. An optimiser step, a gradient norm and a copy for
    the runners are then one operation each instead of one for every small tensor.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]).to(device))
        self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for parameter in parameters:
            span = slice(start, start + parameter.numel())
            parameter.data = self.vector.data[span].view(parameter.shape)
            parameter.grad = self.vector.grad[span].view(parameter.shape)
            start = span.stop

    @property
    def grad(self) -> Tensor:
        assert self.vector.grad is not None
        return self.vector.grad
