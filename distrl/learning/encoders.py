"""The torch half of `distrl.acting.encoders`: parts of flat observations, masks and features, with gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from distrl.acting.encoders import Encoder
from distrl.acting.modules import part_of
from distrl.layouts import Layout


class Masks(nn.Module):
    """Which choices are allowed, [B, M] bool for flat observations [B, size]; None where nothing is masked."""

    table: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.mask, self.states, self.first = layout.mask, bool(layout.states), (*layout.parts[0].start, 0)[0]
        self.register_buffer("table", torch.tensor(layout.table) if self.states else None, persistent=False)

    def forward(self, flat: Tensor) -> Tensor | None:
        if self.mask is not None:
            return part_of(self.mask, flat) != 0
        return self.table[flat - self.first] if self.states else None


class TorchEncoder(nn.Module):
    """Features [B, F] of flat observations [B, size]."""

    places: Tensor  # where the column of the value 0 of each digit would be

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.conv = nn.ModuleList(
            nn.Conv2d(size[0], channels, kernel, stride)
            for size, (channels, kernel, stride) in zip(encoder.sizes(), encoder.conv, strict=False)
        )
        n, start = encoder.part.n, encoder.part.start
        places = torch.tensor([first - at for first, at in zip(np.cumsum([0, *n[:-1]]).tolist(), start, strict=False)])
        self.register_buffer("places", places, persistent=False)

    def forward(self, flat: Tensor) -> Tensor:
        encoder = self.encoder
        x = part_of(encoder.part, flat)
        if encoder.part.kind == "discrete":
            places = x.reshape(x.shape[0], -1).long() + self.places  # len(x) would be a constant of what is exported
            return torch.zeros(x.shape[0], encoder.features, device=x.device).scatter(1, places, 1.0)
        x = x.float() * encoder.scale if encoder.scale != 1.0 else x.float()
        if encoder.conv and encoder.channels_last:
            x = x.permute(0, 3, 1, 2)
        for layer in self.conv:
            x = torch.relu(layer(x))
        return x.flatten(1)
