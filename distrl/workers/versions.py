"""How versions of the weights travel: whole, or, where an update changes few of many, as changes. Nobody else knows.

learner    Sender.message(weights) -> message     a keyframe (whole) now and then, else what changed since it
driver     Versions.keep(version, message)        futures of messages; `of(version)` is what a worker is handed
worker     whole(*messages) -> Weights
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distrl.settings import Config
from distrl.types import Array, Weights

LARGE = 20_000  # weights from which on changes are sent, where an update changes few
KEYFRAMES = 10  # versions between two that are then sent whole
Future = Any  # of an execution


@dataclass(frozen=True)
class Changes:
    """What differs from the keyframe."""

    version: int
    keyframe: int  # its version
    index: Array  # [C] int32, in the whole vector
    value: Array  # [C]


Message = Weights | Changes


def are_sparse(config: Config, size: int) -> bool:
    """Whether weights of this size travel as changes."""
    return config.algorithm.sparse and size >= LARGE


def whole(message: Message, keyframe: Weights | None = None) -> Weights:
    """The weights of a message. Raises ValueError where it is of changes since another keyframe."""
    if isinstance(message, Weights):
        return message
    if keyframe is None or keyframe.version != message.keyframe:
        raise ValueError(f"changes since version {message.keyframe}, put to {keyframe and keyframe.version}")
    vector = keyframe.vector.copy()
    vector[message.index] = message.value
    return Weights(message.version, vector)


class Sender:
    """The learner's side."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keyframe: Weights | None = None

    def message(self, weights: Weights) -> Message:
        """What to send of new weights; `Versions.keep` tells keyframes in the same way, by their number."""
        if not are_sparse(self.config, weights.vector.size):
            return weights
        if weights.version % KEYFRAMES == 0:
            self.keyframe = weights
        if self.keyframe is None or self.keyframe is weights:
            return weights
        changed = np.flatnonzero(weights.vector != self.keyframe.vector).astype(np.int32)
        if 2 * len(changed) > weights.vector.size:
            return weights
        return Changes(weights.version, self.keyframe.version, changed, weights.vector[changed])


class Versions:
    """The driver's side: the versions that may still be needed, as futures of messages."""

    def __init__(self, sparse: bool, get: Callable[[Future], Any]) -> None:
        self.sparse, self.get = sparse, get
        self.messages: dict[int, tuple[Future, ...]] = {}  # by version
        self.keyframe: Future | None = None

    def keep(self, version: int, message: Future) -> None:
        """A version that the learner makes."""
        if self.sparse and version % KEYFRAMES == 0:
            self.keyframe = message
        changes = self.keyframe is not None and message is not self.keyframe
        self.messages[version] = (message, self.keyframe) if changes else (message,)

    def keep_whole(self, version: int, weights: Future) -> None:
        """A version from elsewhere than the learner."""
        self.messages[version] = (weights,)

    def of(self, version: int) -> tuple[Future, ...]:
        """The arguments of a call that acts by a version; `whole` puts them together."""
        return self.messages[version]

    def fetch(self, messages: tuple[Future, ...]) -> Weights:
        """The weights of `of(version)`, here in the driver."""
        return whole(*map(self.get, messages))

    def forget_before(self, version: int) -> None:
        for old in [v for v in self.messages if v < version]:
            del self.messages[old]
