"""The torch side of `distrl.acting.policies.NetworkSpec`: the same layers, names and order, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distrl.acting.network import NetworkSpec, unflatten
from distrl.types import Array


class Body(nn.Module):
    """Convolutions and hidden layers: observations [B, *obs_shape] to features [B, hidden[-1]]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        shapes = spec.shapes()
        self.conv = nn.ModuleList(
            nn.Conv2d(shapes[f"conv.{i}.weight"][1], channels, kernel, stride)
            for i, (channels, kernel, stride) in enumerate(spec.conv)
        )
        self.hidden = nn.ModuleList(
            nn.Linear(shapes[f"hidden.{i}.weight"][1], width) for i, width in enumerate(spec.hidden)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(width) for width in spec.hidden if spec.layer_norm)
        self.activation = torch.tanh if spec.activation == "tanh" else torch.relu

    def features(self, obs: Tensor, layers: int | None = None) -> Tensor:
        """The outputs of the last hidden layer, or of the first so many."""
        x = obs.float() * self.spec.scale if self.spec.scale != 1.0 else obs.float()
        for layer in self.conv:
            x = torch.relu(layer(x))
        x = x.flatten(1)
        for i in range(len(self.hidden) if layers is None else layers):
            x = self.hidden[i](x)
            x = self.activation(self.norm[i](x) if self.norm else x)
        return x


class Network(Body):
    """A body and a linear head, with the weights of a flat vector [P]: [B, *obs_shape] to [B, outputs].

    With `spec.dueling`: Q = V + A - mean A, each with a last hidden layer of its own (Wang et al. 2016, arXiv:1511.06581,
    equation 9).
    """

    def __init__(self, spec: NetworkSpec, weights: Array) -> None:
        super().__init__(spec)
        shapes = spec.shapes()
        self.head = nn.Linear(shapes["head.weight"][1], spec.outputs)
        if spec.dueling:
            width, before = shapes["value_hidden.weight"]
            self.value_hidden = nn.Linear(before, width)
            self.value_norm = nn.LayerNorm(width) if spec.layer_norm else nn.Identity()
            self.value_head = nn.Linear(width, 1)
        arrays = unflatten(weights, shapes)
        self.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})

    def forward(self, obs: Tensor) -> Tensor:
        if self.spec.dueling:
            return self.duel(self.features(obs, len(self.hidden) - 1))
        out: Tensor = self.head(self.features(obs))
        return out

    def duel(self, shared: Tensor) -> Tensor:
        features = self.hidden[-1](shared)
        features = self.activation(self.norm[-1](features) if self.norm else features)
        advantage = self.head(features)
        value = self.value_head(self.activation(self.value_norm(self.value_hidden(shared))))
        out: Tensor = value + advantage - advantage.mean(1, keepdim=True)
        return out
