"""Both kinds of network that act: those built in, in NumPy, and those of one's own, which alone need torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from distrl.acting.network import Network, NetworkSpec
from distrl.types import Array

if TYPE_CHECKING:
    from distrl.acting.modules import ModuleSpec

AnySpec: TypeAlias = "NetworkSpec | ModuleSpec"


class Forward(Protocol):
    """What acts by a spec, with the weights of a flat vector [P]."""

    vector: Array

    @property
    def spec(self) -> AnySpec: ...

    def load(self, vector: Array) -> None: ...

    def __call__(self, obs: Array) -> Array:
        """Outputs [N, outputs + free], float32, for flat observations [N, ...]."""


def make_network(spec: AnySpec) -> Forward:
    if isinstance(spec, NetworkSpec):
        return Network(spec)
    from distrl.acting.modules import ModuleNetwork  # here: it needs torch

    return ModuleNetwork(spec)


def spec_from_description(data: Mapping[str, Any]) -> AnySpec:
    if "place" not in data:
        return NetworkSpec.from_description(data)
    from distrl.acting.modules import ModuleSpec  # here: it needs torch

    return ModuleSpec.from_description(data)


def network_places(description: object) -> Iterator[str]:
    """Where the networks of one's own are that a policy's description names, however deep they lie in it."""
    if isinstance(description, Mapping):
        if isinstance(place := description.get("place"), str):
            yield place
        for below in description.values():
            yield from network_places(below)
    elif isinstance(description, list | tuple):
        for below in description:
            yield from network_places(below)
