"""Minibatches in slices, of which several learners compute some each, and come to the bits of one that computes all.

    outputs = what networks make of slice 1, slice 2, ... slice G    each by the learner that has it
    the loss, and its gradient by the outputs                        of the whole minibatch, by every learner
    g = ((g_1 + g_2) + g_3) + ...                                    g_i: what slice i adds to the gradient by the parameters

What lies between outputs and their gradients is little work: the loss with its normalised advantages, statistics, the errors
that become priorities. It is done for the whole minibatch, so that algorithms know of no slices, and these need not be of
one size. How many there are (`learner.slices`) is part of the arithmetic, how many learners have them (`learner.count`) is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from distrl.types import Array

if TYPE_CHECKING:
    from torch import Tensor

    from distrl.learning.optimizer import FlatParameters

S = TypeVar("S")


class Peers(Protocol):
    """All learners of a run, who do the same at the same time."""

    number: int  # which of them this is
    count: int  # divides the number of slices

    def gather(self, own: Tensor) -> Tensor:
        """[count, ...]: what each of them has, all of one shape, in the order of their numbers."""


class Slices:
    """Consecutive parts of a minibatch, as even as can be: the first ones have one row more."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.peers: Peers | None = None  # who have some each; None: all are computed here

    def traced(
        self,
        trace: Callable[[Tensor], tuple[Any, ...]],
        parameters: Collection[FlatParameters],
        obs: Tensor,
        steps: int = 1,
    ) -> tuple[Any, ...]:
        """What networks make of obs, [B, ...] each, and what takes the gradients of a loss by all of that.

        Args:
            trace: gives the same for any rows
            parameters: what that adds gradients to, which are 0 so far
            steps: the rows are so many steps of sequences, step by step, and sequences stay whole
        """
        if self.count == 1:
            return trace(obs)
        import torch

        *outputs, backs = zip(*map(trace, self._own_rows(obs, steps)), strict=True)

        def pull(*gradients: Tensor) -> None:
            sizes = [len(p.grad) for p in parameters]
            own = obs.new_empty(len(backs), sum(sizes), dtype=torch.float32)
            for row, back, *given in zip(own, backs, *(self._own_rows(g, steps) for g in gradients), strict=True):
                back(*given)
                torch.cat([p.grad for p in parameters], out=row)
                for p in parameters:
                    p.grad.zero_()
            for row in self._joined(own, self.count):
                for p, g in zip(parameters, torch.split(row, sizes), strict=True):
                    p.grad.add_(g)

        return (*(self._joined(torch.cat(parts), len(obs), steps) for parts in outputs), pull)

    def asked(self, call: Callable[..., Tensor], *columns: Tensor | Array, most: int | None = None) -> Tensor:
        """What `call` makes of the columns' rows, [B, ...], without gradients, and of at most so many rows at once."""
        import torch

        rows, own = len(columns[0]), []
        with torch.no_grad():
            for stop, width in self._own([*zip(accumulate(self._widths(rows)), self._widths(rows), strict=True)]):
                start, at_once = stop - width, most or max(1, width)
                for i in range(start, max(stop, start + 1), at_once):
                    own.append(call(*(column[i : min(stop, i + at_once)] for column in columns)))
        return self._joined(torch.cat(own) if len(own) > 1 else own[0], rows)

    def _widths(self, rows: int) -> list[int]:
        """Of each slice."""
        few, more = divmod(rows, self.count)
        return [few + (number < more) for number in range(self.count)]

    def _own(self, parts: Sequence[S]) -> Sequence[S]:
        """Those of all slices' parts that are computed here."""
        if self.peers is None:
            return parts
        each = self.count // self.peers.count
        return parts[each * self.peers.number : each * (self.peers.number + 1)]

    def _own_rows(self, x: Tensor, steps: int) -> list[Tensor]:
        """Of each slice that is computed here, of [B, ...]."""
        import torch

        columns = len(x) // steps
        parts = torch.split(x.view(steps, columns, *x.shape[1:]), self._widths(columns), dim=1)
        return [part.flatten(0, 1) for part in self._own(parts)]

    def _joined(self, own: Tensor, rows: int, steps: int = 1) -> Tensor:
        """[B, ...] of all slices, given those that are computed here, one behind the other."""
        import torch

        widths = self._widths(rows // steps)
        if self.peers is not None:
            each = self.count // self.peers.count
            lengths = [steps * sum(widths[i : i + each]) for i in range(0, self.count, each)]
            even = own
            if len(own) < lengths[0]:  # the longest
                even = own.new_zeros(lengths[0], *own.shape[1:])
                even[: len(own)] = own
            own = self.peers.gather(even).flatten(0, 1)
            if lengths[-1] < lengths[0]:
                found = zip(torch.split(own, lengths[0]), lengths, strict=True)
                own = torch.cat([part[:length] for part, length in found])
        if steps == 1:
            return own
        parts = torch.split(own, [steps * width for width in widths])
        columns = [part.view(steps, width, *own.shape[1:]) for part, width in zip(parts, widths, strict=True)]
        return torch.cat(columns, dim=1).flatten(0, 1)


WHOLE = Slices()
