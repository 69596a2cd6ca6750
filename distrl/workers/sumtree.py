"""Drawing indices in proportion to their priorities: a binary tree of sums, for whole batches at once.

    sums[1] is the total; node i is the sum of its children 2i and 2i + 1; the leaves are the priorities.

A parent is always computed anew from its two children, so the sums do not drift, and equal priorities give equal
bits, whatever came before.
"""

from __future__ import annotations

import numpy as np

from distrl.types import Array


class SumTree:
    def __init__(self, size: int) -> None:
        """`size` leaves of priority 0."""
        self.levels = max(0, size - 1).bit_length()
        self.first = 1 << self.levels  # the node of leaf 0
        self.sums = np.zeros(2 * self.first, np.float64)

    @property
    def total(self) -> float:
        return float(self.sums[1])

    def get(self, leaf: Array) -> Array:
        values: Array = self.sums[self.first + leaf]
        return values

    def set(self, leaf: Array, priority: Array | float) -> None:
        """Priorities >= 0 for leaves [M]; of those named twice the last one counts."""
        if len(leaf) == 0:
            return
        node = leaf + self.first
        self.sums[node] = priority
        for _ in range(self.levels):
            node = node >> 1
            distinct = np.empty(len(node), bool)  # neighbours share parents: soon few are left
            distinct[0] = True
            np.not_equal(node[1:], node[:-1], out=distinct[1:])
            node = node[distinct]
            left = node << 1
            self.sums[node] = self.sums[left] + self.sums[left + 1]

    def find(self, mass: Array) -> Array:
        """Leaves [M] in whose share of [0, total) the numbers [M] fall; never one of priority 0.

        Leaf i's share is [p_0 + ... + p_{i-1}, p_0 + ... + p_i).
        """
        node = np.ones(len(mass), np.int64)
        mass = mass.astype(np.float64)
        for _ in range(self.levels):
            node <<= 1
            left = self.sums[node]
            right = (mass >= left) & (self.sums[node + 1] > 0)  # rounding must not lead to where nothing is
            mass -= left * right
            node += right
        return node - self.first
