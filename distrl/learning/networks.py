"""The torch side of `distrl.acting.network.NetworkSpec` and `distrl.acting.modules.ModuleSpec`: the same layers and order, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from distrl.acting.kinds import AnySpec
from distrl.acting.modules import make_module, seen
from distrl.acting.network import NetworkSpec, unflatten
from distrl.acting.recurrent import RecurrentSpec
from distrl.learning.encoders import TorchEncoder
from distrl.types import Array

Part = Callable[[Tensor], Tensor]  # of a layer: a module, or its activation
IN_PLACE: dict[Part, Part] = {torch.tanh: torch.tanh_, torch.relu: torch.relu_}


class Body(nn.Module):
    """Encoders and hidden layers: flat observations [B, ...] to features [B, hidden[-1]]."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        shapes = spec.shapes()
        self.encoders = nn.ModuleList(TorchEncoder(encoder) for encoder in spec.encoders)
        self.hidden = nn.ModuleList(
            nn.Linear(shapes[f"hidden.{i}.weight"][1], width) for i, width in enumerate(spec.hidden)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(width) for width in spec.hidden if spec.layer_norm)
        self.activation = torch.tanh if spec.activation == "tanh" else torch.relu

    def encode(self, obs: Tensor) -> Tensor:
        encoded = [encoder(obs) for encoder in self.encoders]
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=1)

    def parts(self, layers: int | None = None) -> list[Part]:
        """Of the hidden layers, or of the first so many, in the order in which they are called."""
        found: list[Part] = []
        for i, layer in enumerate(list(self.hidden)[:layers]):
            found += [layer, self.norm[i], self.activation] if self.norm else [layer, self.activation]
        return found

    def forward(self, obs: Tensor, layers: int | None = None) -> Tensor:
        """The outputs of the last hidden layer, or of the first so many."""
        parts = self.parts(layers)
        if not torch.is_grad_enabled():  # which needs what an activation was given
            parts = [IN_PLACE.get(part, part) for part in parts]
        return reduce(lambda x, part: part(x), parts, self.encode(obs))


class OwnBody(nn.Module):
    """A user's module, shown observations as `look` makes them of flat ones [B, ...]: to features [B, F]."""

    def __init__(self, module: nn.Module, look: Callable[[Any], Any]) -> None:
        super().__init__()
        self.module, self.look = module, look

    def forward(self, obs: Any) -> Tensor:
        features: Tensor = self.module(self.look(obs))
        return features


class Network(nn.Module):
    """A body and a linear head, with the weights of a flat vector [P]: observations [B, ...] to [B, outputs + free]."""

    def __init__(self, spec: AnySpec, weights: Array) -> None:
        super().__init__()
        shapes, self.spec = spec.shapes(), spec
        if spec.free:
            self.free = nn.Parameter(torch.zeros(spec.free))
        self.body = make_body(spec)
        self.head = nn.Linear(shapes["head.weight"][1], spec.outputs)
        self.add_layers()
        for parameter, array in zip(self.parameters(), unflatten(weights, shapes).values(), strict=True):
            parameter.data.copy_(torch.tensor(array))

    def add_layers(self) -> None:
        """Those that a kind of network has beside."""

    def forward(self, obs: Tensor) -> Tensor:
        return self.outputs(self.body(obs))

    def outputs(self, features: Tensor) -> Tensor:
        """Of the head, and behind them what is free."""
        out: Tensor = self.head(features)
        return torch.cat([out, self.free.expand(out.shape[0], -1)], dim=1) if self.spec.free else out


class DuelingNetwork(Network):
    """Q = V + A - mean A, each with a last hidden layer of its own (Wang et al. 2016, arXiv:1511.06581, equation 9)."""

    def add_layers(self) -> None:
        width, before = self.spec.shapes()["value_hidden.weight"]
        self.value_hidden = nn.Linear(before, width)
        self.value_norm = nn.LayerNorm(width) if len(cast(Body, self.body).norm) else nn.Identity()
        self.value_head = nn.Linear(width, 1)

    def forward(self, obs: Tensor) -> Tensor:
        body = cast(Body, self.body)
        shared = body(obs, len(body.hidden) - 1)
        features = body.hidden[-1](shared)
        features = body.activation(body.norm[-1](features) if body.norm else features)
        advantage = self.head(features)
        value = self.value_head(body.activation(self.value_norm(self.value_hidden(shared))))
        out: Tensor = value + advantage - advantage.mean(1, keepdim=True)
        return out


def gru(given: Tensor, kept: Tensor, memory: Tensor) -> Tensor:
    """As `distrl.acting.recurrent.gru`."""
    size = memory.shape[1]
    reset, update = torch.sigmoid(given[:, : 2 * size] + kept[:, : 2 * size]).chunk(2, dim=1)
    new = torch.tanh(given[:, 2 * size :] + reset * kept[:, 2 * size :])
    return new + update * (memory - new)


def lstm(given: Tensor, kept: Tensor, memory: Tensor) -> Tensor:
    """As `distrl.acting.recurrent.lstm`."""
    put, forget, new, show = (given + kept).chunk(4, dim=1)
    cell = torch.sigmoid(forget) * memory[:, new.shape[1] :] + torch.sigmoid(put) * torch.tanh(new)
    return torch.cat([torch.sigmoid(show) * torch.tanh(cell), cell], dim=1)


class Memory(nn.Module):
    """A GRU or an LSTM over sequences within which episodes begin."""

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        gates, features = spec.shapes()["memory.input.weight"]
        self.spec, self.cell = spec, lstm if spec.cell == "lstm" else gru
        self.input, self.hidden = nn.Linear(features, gates), nn.Linear(spec.memory, gates)

    def forward(self, features: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """What is remembered after each of T steps of N sequences, [T, N, M].

        Args:
            features: [T, N, F]
            memory: [N, M], before the first step
            begins: [T, N] bool; nothing is remembered before these steps
        """
        kept, steps = (~begins).unsqueeze(2).to(memory.dtype), []
        for given, keep in zip(self.input(features), kept, strict=True):
            memory = self.step(given, memory * keep)
            steps.append(memory)
        return torch.stack(steps)

    def step(self, given: Tensor, memory: Tensor) -> Tensor:
        """What is remembered after a step, [N, M]. `given`: [N, G], what `input` makes of its features."""
        return self.cell(given, self.hidden(memory[:, : self.spec.memory]), memory)


class RecurrentNetwork(Network):
    """Its head sees what a `Memory` shows. Called for observations alone, it takes each as an episode's first."""

    spec: RecurrentSpec

    def add_layers(self) -> None:
        self.memory = Memory(self.spec)

    def forward(self, obs: Tensor) -> Tensor:
        return self.step(obs, torch.zeros(len(obs), self.spec.remembered, device=obs.device))[0]

    def step(self, obs: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [N, outputs + free] for observations, and what is remembered after them, [N, M]."""
        memory = self.memory.step(self.memory.input(self.body(obs)), memory)
        return self.outputs(self.shown(memory)), memory

    def shown(self, memory: Tensor) -> Tensor:
        """What a head sees, [..., H], of what is remembered, [..., M]."""
        return memory[..., : self.spec.memory]


def make_body(spec: AnySpec) -> Body | OwnBody:
    if isinstance(spec, NetworkSpec):
        return Body(spec)
    return OwnBody(make_module(spec.place, spec.layout, 0), partial(seen, spec.layout))


def make_network(spec: AnySpec, weights: Array) -> Network:
    """The kind that the spec says."""
    if isinstance(spec, RecurrentSpec):
        return RecurrentNetwork(spec, weights)
    return (DuelingNetwork if isinstance(spec, NetworkSpec) and spec.dueling else Network)(spec, weights)
