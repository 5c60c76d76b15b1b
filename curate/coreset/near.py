"""Near copies of what is picked already, by the cosine of their embeddings: skipped as if taken.

Every image that the rounds come to is held against all picks before it: a product of a few rows and
many, B² / 2 cosines for a coreset of B images. Float32 decides, within its error float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # (n, D), unit, on the grid of similarity.py
NEAR_COPY = "near copies of others"  # why an image is left out
ROOM = 1024  # rows that there is room for at first


class RowsAt(Protocol):
    """Embeddings by position."""

    def ahead(self, position: NDArray[np.int64]) -> None:
        """These will be asked for."""
        ...

    def __call__(self, position: NDArray[np.int64]) -> Rows: ...


class Near:
    """bound: a cosine; rows: of some positions; others: rows that nothing picked may be near
    either, the target's."""

    def __init__(self, bound: float, rows: RowsAt, others: Rows) -> None:
        self.bound, self.rows = bound, rows
        self.passed_over = 0  # images
        width = others.shape[1]
        self._error = 1.05 * width * 2.0**-24
        self._picks = np.empty((ROOM, width), np.float32)
        self._count = 0
        self._add(others)

    def is_copy(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether an image is near one of those before."""
        if not len(position):
            return np.zeros(0, bool)
        found: NDArray[np.bool_] = np.logical_or.reduce(
            self._reach(self.rows(position), self._known()), axis=1
        )
        return found

    def fitting(
        self, position: NDArray[np.int64], fits: Callable[[int], bool], most: int | None
    ) -> NDArray[np.bool_]:
        """(n,) which of distinct images are picked, if each is that is near no pick before it and
        that fits, one after the other, `most` of them at most; they are then."""
        rows = self.rows(position)
        before = np.logical_or.reduce(self._reach(rows, self._known()), axis=1)
        beside = self._reach(rows, rows)
        picked = np.zeros(len(position), bool)
        for i in range(len(position)):
            if most is not None and picked.sum() >= most:
                break
            if before[i] or beside[i, picked].any():
                self.passed_over += 1
            elif fits(i):
                picked[i] = True
        self._add(rows[picked])
        return picked

    def _reach(self, rows: Rows, others: Rows) -> NDArray[np.bool_]:
        """(n, m)."""
        cosine = rows @ others.T
        reached = cosine >= self.bound
        unsure = np.argwhere(np.abs(cosine - self.bound) <= self._error)
        for i, j in unsure.tolist():
            exact = float(rows[i].astype(np.float64) @ others[j].astype(np.float64))
            reached[i, j] = exact >= self.bound
        return reached

    def _known(self) -> Rows:
        return self._picks[: self._count]

    def _add(self, rows: Rows) -> None:
        needed = self._count + len(rows)
        if needed > len(self._picks):
            larger = np.empty((2 * needed, self._picks.shape[1]), np.float32)
            larger[: self._count] = self._picks[: self._count]
            self._picks = larger
        self._picks[self._count : needed] = rows
        self._count = needed
