"""What a learner has on its device of the replays that it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distrl.heartbeat import at_work
from distrl.learning.drawn import join
from distrl.settings import Config
from distrl.types import Batch, Drawn

if TYPE_CHECKING:
    import torch

    from distrl.learning.ring import Ring


@at_work
class HoldsReplays:
    """A copy of their rings, where batches say in which rows of these observations lie."""

    config: Config
    device: torch.device | None
    ring: Ring | None = None  # made with the first such batch

    def holds(self, size: int) -> bool:
        """Whether batches are to say so, of replays of so many bytes.

        Raises:
            UserError: the copy must lie there and does not fit
        """
        replay, learning = self.config.replay, self.config.algorithm.replayed
        assert replay is not None and learning is not None
        if self.device is None or not learning.looks_up or self.config.policies != "shared":
            return False
        from distrl.learning.ring import to_hold

        return to_hold(None if replay.on_device == "auto" else replay.on_device, size, replay.capacity, self.device)

    def whole(self, *drawn: Drawn) -> list[Drawn]:
        """What each replay drew for an iteration, with the observations themselves."""
        batches = [batch for batch in drawn if isinstance(batch, Batch) and batch.fresh is not None]
        return [*self._ring().whole(batches)] if batches else list(drawn)

    def joined(self, batches: Sequence[Batch]) -> Batch:
        """One batch of those of each replay, for an algorithm."""
        return join(batches) if batches[0].fresh is None else self._ring().join(batches)

    def _ring(self) -> Ring:
        if self.ring is None:
            from distrl.learning.ring import Ring

            assert self.device is not None
            self.ring = Ring(self.device)
        return self.ring
