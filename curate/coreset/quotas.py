"""At most so many images of a group: a source, a label. Full groups are skipped as if taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OVER_QUOTA = "over a quota"  # why an image is left out
NO_GROUP = 0  # the code of images that no quota binds


@dataclass(frozen=True)
class Quota:
    """codes (N,): of each image in plan order the group that it is in, NO_GROUP for none; most
    (G,): images of each group."""

    codes: NDArray[np.integer]
    most: NDArray[np.int64]


class Room:
    """What is left of some quotas while images are taken."""

    def __init__(self, quotas: list[Quota]) -> None:
        self.is_bound = bool(quotas)
        self._codes = [quota.codes for quota in quotas]
        self._left = [quota.most.copy() for quota in quotas]

    def is_full(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether one of an image's groups is."""
        full = np.zeros(len(position), bool)
        for codes, left in zip(self._codes, self._left, strict=True):
            full |= left[codes[position]] <= 0
        return full

    def fitting(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which of distinct images are taken, if each is that still fits, one after the other;
        they are then."""
        groups = [codes[position] for codes in self._codes]
        wanted = [
            np.bincount(g, minlength=len(left)) for g, left in zip(groups, self._left, strict=True)
        ]
        if all((w <= left).all() for w, left in zip(wanted, self._left, strict=True)):
            for w, left in zip(wanted, self._left, strict=True):
                left -= w
            return np.ones(len(position), bool)
        fits = np.zeros(len(position), bool)
        for i, own in enumerate(zip(*(g.tolist() for g in groups), strict=True)):
            if all(left[g] > 0 for g, left in zip(own, self._left, strict=True)):
                fits[i] = True
                for g, left in zip(own, self._left, strict=True):
                    left[g] -= 1
        return fits
