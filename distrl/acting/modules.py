"""Networks of one's own: a `torch.nn.Module` from observations to features, and a linear head of distrl's behind it.

    class MyNet(nn.Module):
        def __init__(self, obs): ...    # one observation as it will come: a tensor [1, ...], or a dict or tuple of them
        def forward(self, obs): ...     # observations [B, ...] to features [B, F]

Numbers come as float32, as the env gives them (bytes are not scaled), whole numbers of Discrete and MultiDiscrete spaces
one-hot, masks not at all. It acts by torch, on one thread, in every runner. The module is imported when a run is planned
and when it acts, never when a model is read.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distrl.acting.network import orthogonal, unflatten
from distrl.descriptions import STRICT, Count, Size, from_json
from distrl.errors import UserError
from distrl.layouts import Layout, Part, nested
from distrl.registry import NETWORKS
from distrl.seeding import stream
from distrl.types import Array


@dataclass(frozen=True)
class ModuleSpec:
    """A module from observations to features, one linear head behind it; the counterpart of `NetworkSpec`."""

    __pydantic_config__ = STRICT
    place: str  # of the module's class
    layout: Layout  # of the observations
    features: Count
    body: tuple[tuple[str, tuple[Size, ...]], ...]  # names and shapes of the module's parameters, in its order
    outputs: Count
    free: Size = 0  # further outputs, the same for every observation: parameters themselves

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape by name, in the order in which they lie in the flat vector."""
        shapes: dict[str, tuple[int, ...]] = {"free": (self.free,)} if self.free else {}
        shapes |= {f"body.{name}": shape for name, shape in self.body}
        return shapes | {"head.weight": (self.outputs, self.features), "head.bias": (self.outputs,)}

    def initial(self, rng: np.random.Generator, head_gain: float) -> Array:
        """First weights, a flat vector [P]: the module's as it makes them itself, the head's orthogonal."""
        module = make_module(self.place, self.layout, int(rng.integers(2**63)))
        head = orthogonal(rng, self.outputs, self.features, head_gain)
        parts = [np.zeros(self.free), *(p.detach().numpy().ravel() for p in module.parameters())]
        return np.concatenate([*parts, head.ravel(), np.zeros(self.outputs)]).astype(np.float32)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes().values())

    @classmethod
    def from_description(cls, data: Mapping[str, Any]) -> ModuleSpec:
        Layout.from_description(data["layout"])  # which checks more than its types
        return from_json(cls, data)


class ModuleNetwork:
    """What acts by a `ModuleSpec`; the counterpart of `distrl.acting.network.Network`."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec
        self.vector = np.zeros(spec.parameters, np.float32)
        self.module: nn.Module | None = None  # made when it first acts
        self.stale = True

    def load(self, vector: Array) -> None:
        self.vector, self.stale = vector, True

    def __call__(self, obs: Array) -> Array:
        """Outputs [N, outputs + free], float32, for flat observations [N, ...]."""
        with _one_thread(), torch.no_grad():
            if self.module is None:
                self.module = make_module(self.spec.place, self.spec.layout, 0)
            if self.stale:
                self.arrays = {n: torch.tensor(a) for n, a in unflatten(self.vector, self.spec.shapes()).items()}
                for name, parameter in self.module.named_parameters():
                    parameter.copy_(self.arrays[f"body.{name}"])
                self.stale = False
            features = self.module(seen(self.spec.layout, torch.tensor(np.ascontiguousarray(obs))))
            out = functional.linear(features, self.arrays["head.weight"], self.arrays["head.bias"])
            if self.spec.free:
                out = torch.cat([out, self.arrays["free"].expand(len(out), -1)], dim=1)
            outputs: Array = out.numpy()
        return outputs


def module_spec(place: str, layout: Layout, outputs: int, free: int = 0) -> ModuleSpec:
    """The spec of a user's module. Raises `UserError` where it is none, or does what cannot be repeated."""
    with _one_thread(), torch.no_grad():
        module, other = (make_module(place, layout, seed) for seed in (0, 1))
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        rows = torch.tensor(_examples(layout, 3))
        whole, again, alone = (_features(place, module, seen(layout, x)) for x in (rows, rows, rows[1:2]))
        if not torch.equal(whole, again):
            raise _refused(
                place,
                "gives other features when the same observations come again. Take out what is random, as dropout is.",
            )
        if not torch.allclose(whole[1:2], alone, rtol=1e-3, atol=1e-4):
            raise _refused(
                place,
                "gives an observation other features beside others than alone, as batch normalisation does. Take nn.LayerNorm or "
                "nn.GroupNorm instead.",
            )
        for buffers in (dict(other.named_buffers()), before):
            for name, buffer in module.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    raise _refused(
                        place,
                        f"has a buffer {name!r} that is random or changes, and that no model would hold. Make it an nn.Parameter.",
                    )
        other.load_state_dict(module.state_dict())
        if not torch.equal(whole, _features(place, other, seen(layout, rows))):
            raise _refused(
                place,
                "gives other features when it is made again and has the same weights. Make what is drawn in it an nn.Parameter.",
            )
    body = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())
    return ModuleSpec(place, layout, whole.shape[1], body, outputs, free)


def make_module(place: str, layout: Layout, seed: int) -> nn.Module:
    """The module with the weights that it draws by torch's own generator from `seed`. Leaves that generator alone."""
    kind = NETWORKS.find(place)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise _refused(place, f"is {kind!r}. A subclass of torch.nn.Module is due.")
    example = seen(layout, torch.tensor(_examples(layout, 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module: nn.Module = kind(example)
        except Exception as error:
            raise _refused(
                place,
                f"cannot be made with one observation: {_where(error)}. Make its __init__ take that alone, {_shape(example)}.",
            ) from error
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise _refused(place, f"has a parameter {name!r} of {parameter.dtype}. Weights are float32.")
    return module


def seen(layout: Layout, flat: Tensor) -> Any:
    """What a module is given of flat observations [B, ...]: a tensor [B, ...], or a dict or tuple of them."""
    return nested({part.path: numbers(part, part_of(part, flat)) for part in layout.parts})


def part_of(part: Part, flat: Tensor) -> Tensor:
    """The part [B, *shape] of flat observations [B, size]."""
    if part.at is None:
        return flat
    return flat[:, slice(*part.at)].view(getattr(torch, part.dtype)).reshape(len(flat), *part.shape)


def numbers(part: Part, x: Tensor) -> Tensor:
    """A part [B, *shape] as float32; whole numbers one-hot, [B, sum(n)]."""
    if part.kind != "discrete":
        return x.float()
    # not len(x), which would be a constant of what is exported
    digits = x.reshape(x.shape[0], -1).long() - torch.tensor(part.start, device=x.device)
    return torch.cat([functional.one_hot(digits[:, d], n) for d, n in enumerate(part.n)], dim=1).float()


def _examples(layout: Layout, count: int) -> Array:
    """Flat observations [N, ...] of small numbers."""
    rng, flat = stream(0, "examples"), np.zeros((count, *layout.shape), layout.dtype)
    for part in layout.parts:
        own = part.of(flat)
        if np.issubdtype(own.dtype, np.floating):
            own[...] = rng.standard_normal(own.shape)
        else:
            own[...] = rng.integers(0, 2, own.shape) % np.array(part.n or 2).reshape(part.shape if part.n else ())
            own[...] += np.array(part.start or 0, own.dtype).reshape(part.shape if part.start else ())
    return flat


def _features(place: str, module: nn.Module, obs: Any) -> Tensor:
    try:
        found = module(obs)
    except Exception as error:
        advice = f"Its forward is given {_shape(obs)}; make its layers fit that"
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
            advice = "Take nn.LayerNorm or nn.GroupNorm instead of batch normalisation"
        raise _refused(place, f"fails on observations: {_where(error)}. {advice}.") from error
    if not (isinstance(found, Tensor) and found.ndim == 2 and found.dtype == torch.float32):
        given = f"{list(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise _refused(place, f"gives {given}. Features [B, F] of float32, a vector for each observation, are due.")
    return found


def _shape(obs: Any) -> str:
    """What a module is given, in words."""
    if isinstance(obs, Tensor):
        return f"a tensor {list(obs.shape)}"
    if isinstance(obs, Mapping):
        return f"a dict of {', '.join(f'{name!r}: {_shape(below)}' for name, below in obs.items())}"
    return f"a tuple of {', '.join(_shape(below) for below in obs)}"


def _refused(place: str, why: str) -> UserError:
    return UserError(f"{NETWORKS.key} is {place!r}, which {why}")


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {error}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, torch computes in this thread alone, wherever it acts: the number of threads is part of the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
