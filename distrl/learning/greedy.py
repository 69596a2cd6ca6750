"""What a trained policy does, as one torch module: from an observation as the env gives it to the action that it takes.

It is for export: `trace` and `write_onnx` make files of it that need neither distrl nor this module. In distrl itself
policies act in NumPy (distrl.acting.policies), and what is exported is held against that (distrl.models.trial).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from distrl.acting.distributions import (
    FORBIDDEN,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
)
from distrl.acting.modules import ModuleSpec, numbers
from distrl.acting.normalise import LIMIT, NormalisedPolicy, without
from distrl.acting.policies import EpsilonGreedyPolicy, StochasticPolicy
from distrl.errors import UserError
from distrl.layouts import TRAVELS_AS, nested
from distrl.learning.encoders import Masks
from distrl.learning.networks import Body, OwnBody, RecurrentNetwork, make_network
from distrl.types import Array, Arrays, Policy

OPSET = 17  # of ONNX; any onnxruntime since 1.12 reads it
STRANGE = ("uint16", "uint32", "uint64")  # types that no exported file takes or gives: wider ones stand for them


def file_dtype(dtype: str) -> str:
    """The type by which numbers of the env's own type go into an exported file and come out of it."""
    return TRAVELS_AS[dtype] if dtype in STRANGE else dtype


class Greedy(nn.Module):
    """The best actions of a policy, one tensor [N, *shape] a part of the action space.

    It takes a tensor [N, *shape] a part of the observation space, as the env gives it, in the order of the policy's
    `obs_layout`; and behind them, where that holds a mask, the mask [N, M]. A policy that remembers takes behind all that what
    it remembers of each episode, zeros at the first step, and gives what it remembers then behind the action.

    Raises:
        UserError: it is a policy without a network, or of a type that is not known here
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        inner = without(policy)
        if not isinstance(inner, StochasticPolicy | EpsilonGreedyPolicy):
            raise UserError(
                f"A policy of type {inner.describe()['type']} cannot be made a torch module: distrl.learning.greedy knows "
                "stochastic, recurrent and epsilon_greedy, normalised or not. Take --format safetensors or mlflow."
            )
        self.distribution, layout, spec = inner.distribution, inner.obs_layout, inner.network.spec
        self.parts = [replace(part, at=None) for part in layout.parts]  # each comes by itself
        found = policy.statistics() if isinstance(policy, NormalisedPolicy) else ()
        self.statistics = {layout.parts.index(part): (mean, scale) for part, mean, scale in found}
        if isinstance(spec, ModuleSpec):
            self.network = make_network(spec, inner.network.vector)
            self.network.body = OwnBody(cast(OwnBody, self.network.body).module, self.together)
        else:
            alone = tuple(replace(encoder, part=replace(encoder.part, at=None)) for encoder in spec.encoders)
            self.network = make_network(replace(spec, encoders=alone), inner.network.vector)
            body = cast(Body, self.network.body)
            body.encoders = nn.ModuleList(
                _OfPart(layout.parts.index(encoder.part), module)
                for encoder, module in zip(spec.encoders, body.encoders, strict=True)
            )
        mask = None if layout.mask is None else replace(layout.mask, at=None)
        self.masks = Masks(replace(layout, parts=tuple(self.parts), mask=mask))
        self.requires_grad_(False)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        seen = self.seen(given[: len(self.parts)])
        mask = self.masks(given[len(self.parts)] if self.masks.mask is not None else seen[0])
        if not isinstance(self.network, RecurrentNetwork):
            return tuple(modes(self.distribution, self.network(seen), mask))
        outputs, memory = self.network.step(seen, given[-1])
        return *modes(self.distribution, outputs, mask), memory

    def seen(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The parts as the network sees them: in the types by which they travel, and normalised where they are to be."""
        seen = []
        for place, (x, part) in enumerate(zip(given, self.parts, strict=True)):
            dtype = getattr(torch, part.dtype)
            x = x.to(dtype)
            if place in self.statistics:
                mean, scale = map(torch.tensor, self.statistics[place])
                x = ((x - mean) * scale).clamp(-LIMIT, LIMIT).to(dtype)
            seen.append(x)
        return seen

    def together(self, given: Sequence[Tensor]) -> Any:
        """The parts as a user's module takes them."""
        return nested({part.path: numbers(part, x) for part, x in zip(self.parts, given, strict=True)})


class _OfPart(nn.Module):
    """An encoder, for one of several parts that come side by side."""

    def __init__(self, place: int, encoder: nn.Module) -> None:
        super().__init__()
        self.place, self.encoder = place, encoder

    def forward(self, parts: list[Tensor]) -> Any:
        return self.encoder(parts[self.place])


def modes(distribution: Distribution, params: Tensor, mask: Tensor | None) -> list[Tensor]:
    """What the env gets of the most likely raw action, [N, *shape] a part, for rows [N, K] and a mask [N, M] bool."""
    match distribution:
        case Categorical():
            logits = params if mask is None else params.masked_fill(~mask, FORBIDDEN)
            return [logits.argmax(1) + distribution.start]
        case MultiCategorical():
            where, allowed = map(torch.tensor, distribution.table)  # [D, W]
            columns, start = where.flatten(), torch.tensor(distribution.start)
            if mask is not None:
                allowed = allowed & mask[:, columns].reshape(-1, *where.shape)
            logits = params[:, columns].reshape(-1, *where.shape).masked_fill(~allowed, FORBIDDEN)
            return [_shaped(logits.argmax(2) + start, distribution.shape, distribution.dtype)]
        case Bernoulli():
            return [_shaped(params > 0, distribution.shape, distribution.dtype)]
        case DiagonalGaussian():
            middle, half, low, high = map(torch.tensor, distribution.bounds)
            u = params[:, : distribution.size]
            x = (torch.tanh(u) if distribution.squash else u).to(low.dtype) * half + middle
            x = torch.minimum(torch.maximum(x, low), high)
            x = x if distribution.dtype.startswith("float") else x.round()
            return [_shaped(x, distribution.shape, distribution.dtype)]
        case Product():
            own = [(s.part, params[:, torch.tensor(s.columns)], s.masked(mask)) for s in distribution.spans]
            return [action for part in own for action in modes(*part)]
    raise TypeError(f"distrl.learning.greedy does not know {distribution}")


def _shaped(x: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    return x.reshape(-1, *shape).to(getattr(torch, file_dtype(dtype)))


def write_onnx(policy: Policy, inputs: Arrays, outputs: Sequence[str], path: Path) -> None:
    """Write what `Greedy` does as ONNX, for batches of any size.

    Args:
        inputs: some observations [N, *shape] by the names that they get in the file, and a mask, in the order of `Greedy`
        outputs: the names of the parts of the action
    """
    names = [*inputs, *outputs]
    with _quiet():
        torch.onnx.export(
            Greedy(policy),
            _tensors(inputs),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in names},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs a package more
        )


def write_torchscript(policy: Policy, inputs: Arrays, path: Path, about: Mapping[str, str]) -> None:
    """Write what `Greedy` does as TorchScript, for batches of any size. `about`: texts by name, which go into the file."""
    with _quiet():
        traced = torch.jit.trace(Greedy(policy), _tensors(inputs), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files=dict(about))


def read_torchscript(path: Path) -> Callable[[Arrays], list[Array]]:
    """What a file that `write_torchscript` wrote does with observations."""
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]

    def run(inputs: Arrays) -> list[Array]:
        with _quiet():
            return [action.numpy() for action in loaded(*_tensors(inputs))]

    return run


def _tensors(inputs: Arrays) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's words on tracing: that constants are constants, and that there are newer ways."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
