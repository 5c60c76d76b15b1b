"""Which images of the open set a selection may take: a bit for each position in plan order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


@dataclass(frozen=True)
class Allowed:
    """bits (images / 8, rounded up), the lowest first: 125 MB of a billion images."""

    bits: NDArray[np.uint8]
    images: int

    @staticmethod
    def all_of(images: int) -> Allowed:
        return Allowed.of(np.ones(images, bool))

    @staticmethod
    def of(flags: NDArray[np.bool_]) -> Allowed:
        return Allowed(np.packbits(flags, bitorder="little"), len(flags))

    @staticmethod
    def only(positions: NDArray[np.int64], images: int) -> Allowed:
        bits = np.zeros(-(-images // 8), np.uint8)
        np.bitwise_or.at(bits, positions >> 3, np.left_shift(1, positions & 7).astype(np.uint8))
        return Allowed(bits, images)

    def without(self, positions: NDArray[np.int64]) -> Allowed:
        taken = Allowed.only(positions, self.images)
        return Allowed(self.bits & ~taken.bits, self.images)

    @cached_property
    def count(self) -> int:
        return int(ONES[self.bits].sum(dtype=np.int64))

    def holds(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) of each, whether it may be taken."""
        return (self.bits[positions >> 3] >> (positions & 7).astype(np.uint8) & 1).astype(bool)

    def rows(self, first: int, count: int) -> NDArray[np.intp]:
        """Of images at positions `first` on, those that may be taken, counted from there."""
        low, high = first >> 3, -(-(first + count) // 8)
        flags = np.unpackbits(self.bits[low:high], bitorder="little")
        return np.flatnonzero(flags[first - 8 * low :][:count])
