"""At most so many images of a group: a source, a label. Full groups are skipped as if taken."""

from __future__ import annotations

from collections.abc import Callable
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

    def fitting(self, position: NDArray[np.int64], most: int | None = None) -> NDArray[np.bool_]:
        """(n,) which of distinct images are taken, if each is that still fits, one after the other,
        `most` of them at most; they are then."""
        groups = [codes[position] for codes in self._codes]
        short = most is None or len(position) <= most
        if short and self._has_room_for(groups):
            for group, left in zip(groups, self._left, strict=True):
                left -= np.bincount(group, minlength=len(left))
            return np.ones(len(position), bool)
        taken = np.zeros(len(position), bool)
        take = self.taking(position)
        for i in range(len(position)):
            if most is not None and taken.sum() >= most:
                break
            taken[i] = take(i)
        return taken

    def taking(self, position: NDArray[np.int64]) -> Callable[[int], bool]:
        """Takes the image at a place among the positions, if it fits; says whether it did."""
        own = [codes[position].tolist() for codes in self._codes]

        def take(place: int) -> bool:
            groups = [codes[place] for codes in own]
            fits = all(left[g] > 0 for g, left in zip(groups, self._left, strict=True))
            if fits:
                for g, left in zip(groups, self._left, strict=True):
                    left[g] -= 1
            return fits

        return take

    def _has_room_for(self, groups: list[NDArray[np.integer]]) -> bool:
        return all(
            bool((np.bincount(group, minlength=len(left)) <= left).all())
            for group, left in zip(groups, self._left, strict=True)
        )
