"""Near copies of what is picked already, by the cosine of their embeddings: skipped as if taken.

Every image that the rounds come to is held against all picks before it: a product of a few rows and
many, B² / 2 cosines for a coreset of B images. Float32 decides, within its error float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # (n, D), unit, on the grid of similarity.py
# Why an image is left out
NEAR_COPY = "near copies of others"
NEAR_TARGET = "near copies of a target image"
NEAR_EXCLUDED = "near copies of an excluded image"
ROOM = 1024  # rows that there is room for at first


class RowsAt(Protocol):
    """Embeddings by position."""

    def ahead(self, position: NDArray[np.int64]) -> None:
        """These will be asked for."""
        ...

    def __call__(self, position: NDArray[np.int64]) -> Rows: ...


class Near:
    """bound: a cosine; rows: of some positions; others: rows that nothing picked may be near, and
    why; learns: whether nothing may be near a pick either."""

    def __init__(
        self, bound: float, rows: RowsAt, others: dict[str, Rows], learns: bool = True
    ) -> None:
        self.bound, self.rows, self.learns = bound, rows, learns
        self.passed_over: Counter[str] = Counter()  # images, by reason
        self._others = others
        width = next(iter(others.values())).shape[1]
        self._error = 1.05 * width * 2.0**-24
        self._picks = np.empty((ROOM, width), np.float32)
        self._count = 0

    def is_copy(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether an image is near one of those before; those are passed over then."""
        if not len(position):
            return np.zeros(0, bool)
        return self._copies(self.rows(position))

    def fitting(
        self, position: NDArray[np.int64], fits: Callable[[int], bool], most: int | None
    ) -> NDArray[np.bool_]:
        """(n,) which of distinct images are picked, if each is that is near no pick before it and
        that fits, one after the other, `most` of them at most; they are then."""
        rows = self.rows(position)
        before = self._copies(rows)
        beside = self._reach(rows, rows) & self.learns
        picked = np.zeros(len(position), bool)
        for i in range(len(position)):
            if most is not None and picked.sum() >= most:
                break
            if before[i]:
                continue
            if beside[i, picked].any():
                self.passed_over[NEAR_COPY] += 1
            elif fits(i):
                picked[i] = True
        if self.learns:
            self._add(rows[picked])
        return picked

    def _copies(self, rows: Rows) -> NDArray[np.bool_]:
        found = np.zeros(len(rows), bool)
        for reason, others in [*self._others.items(), (NEAR_COPY, self._picks[: self._count])]:
            near = ~found & np.logical_or.reduce(self._reach(rows, others), axis=1)
            self.passed_over[reason] += int(near.sum())
            found |= near
        return found

    def _reach(self, rows: Rows, others: Rows) -> NDArray[np.bool_]:
        """(n, m)."""
        cosine = rows @ others.T
        reached = cosine >= self.bound
        unsure = np.argwhere(np.abs(cosine - self.bound) <= self._error)
        for i, j in unsure.tolist():
            exact = float(rows[i].astype(np.float64) @ others[j].astype(np.float64))
            reached[i, j] = exact >= self.bound
        return reached

    def _add(self, rows: Rows) -> None:
        needed = self._count + len(rows)
        if needed > len(self._picks):
            larger = np.empty((2 * needed, self._picks.shape[1]), np.float32)
            larger[: self._count] = self._picks[: self._count]
            self._picks = larger
        self._picks[self._count : needed] = rows
        self._count = needed
