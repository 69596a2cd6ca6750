"""What replays hold, held on the learner's device as well: each observation goes there once, and batches say where theirs lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor

from distrl.errors import UserError
from distrl.learning.drawn import join
from distrl.sizes import GIB
from distrl.types import Array, Batch, Fresh

SMALL = 1024  # bytes of a step, of which a copy on the device saves nothing
SHARE = 0.8  # of the device's free memory that may be taken: the update wants some


def to_hold(wanted: bool | None, size: int, steps: int, device: torch.device) -> bool:
    """Whether so many bytes of a replay are to lie on the device.

    Args:
        wanted: None: on a GPU, where the steps are images and fit
    Raises:
        UserError: they must and do not fit
    """
    if wanted is False or (wanted is None and (device.type == "cpu" or size < SMALL * steps)):
        return False
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    fits = size <= SHARE * free
    if wanted and not fits:
        where = "the learner's machine" if device.type == "cpu" else "its GPU"
        raise UserError(
            f"replay.on_device is true, but replay.capacity={steps:,} steps take {size / GIB:,.1f} GiB, and {free / GIB:.1f} GiB of "
            f"{where} are free, of which a fifth is for the updates. Set replay.on_device=auto: where they do not fit, "
            f"observations come with every batch; or replay.capacity to at most {int(SHARE * free / size * steps):,}."
        )
    return fits


class Ring:
    """The rows of all replays, one replay's behind the other's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows: Tensor | None = None  # made when the first ones come

    def join(self, batches: Sequence[Batch]) -> Batch:
        """One batch of those of each replay, whose observations are looked up when an algorithm asks for some of its updates."""
        batch = join(self._placed(batches))
        seen: list[Any] = [Seen(self, places) for places in (batch.obs, batch.next_obs)]
        return replace(batch, obs=seen[0], next_obs=seen[1])

    def whole(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches as they are without a ring."""
        return [
            replace(batch, obs=self.at(batch.obs).cpu().numpy(), next_obs=self.at(batch.next_obs).cpu().numpy())
            for batch in self._placed(batches)
        ]

    def at(self, places: Array) -> Tensor:
        """Observations [..., shape of a row]; of frames these are stacks."""
        assert self.rows is not None
        # On a CPU ten times as fast as self.rows[places].
        found = self.rows.index_select(0, self._sent(places).flatten())
        return found.view(*places.shape, *self.rows.shape[1:])

    def _placed(self, batches: Sequence[Batch]) -> list[Batch]:
        """Write what is new, which does no harm a second time. Places are then those in the whole ring."""
        placed = []
        for number, batch in enumerate(batches):
            assert batch.fresh is not None
            first = number * batch.fresh.size
            self._write(batch.fresh, first, len(batches) * batch.fresh.size)
            placed.append(replace(batch, obs=batch.obs + first, next_obs=batch.next_obs + first, fresh=None))
        return placed

    def _write(self, fresh: Fresh, first: int, size: int) -> None:
        rows = self._sent(fresh.rows)
        if self.rows is None:
            self.rows = rows.new_zeros((size, *rows.shape[1:]))
        self.rows.index_copy_(0, self._sent(fresh.at + first), rows)

    def _sent(self, array: Array) -> Tensor:
        """To a GPU from pinned memory, so that nobody waits for it."""
        return torch.tensor(array, pin_memory=self.device.type == "cuda").to(self.device, non_blocking=True)


class Seen:
    """Observations [U, B, ...] in a ring, of which a part of the updates is looked up at a time."""

    def __init__(self, ring: Ring, places: Array) -> None:
        self.ring, self.places = ring, places

    def __getitem__(self, updates: slice) -> Tensor:
        return self.ring.at(self.places[updates])
