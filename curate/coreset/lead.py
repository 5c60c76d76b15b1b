"""Which rows can be a candidate at all, by their int8 copies: the others are never widened.

With x = s·q + e and c = t·p + d for a row and a centroid, of which q and p hold whole numbers,

    x·c = s·t·(q·p) + s·q·d + e·c   ≤   s·t·(q·p) + ‖s·q‖ ‖d‖ + ‖e‖ ‖c‖

q·p is exact, and a quarter of the work of a float32 product where the CPU knows int8 products. And
a row that is far from one centroid is far from those near it, by the triangle of their angles: so a
few of the centroids are asked first, each for those around it. What passes is looked at again in
full, so that all this decides about time alone.
"""

from __future__ import annotations

import numkong
import numpy as np
from numpy.typing import NDArray

from curate.coreset.similarity import Centroids, float32
from curate.int8 import NORM_TOLERANCE, Int8, quantise

LONGEST = 1 + NORM_TOLERANCE  # a unit row or centroid
SHORTEST = 1 - NORM_TOLERANCE
SLACK = 1e-6  # of float32 products of numbers to about 1, and their comparison
WORTH_IT = 0.5  # of the rows may pass at most; beyond, to look first is work for nothing
ROWS_AT_ONCE = 4096  # × 100 int32 is 1.6 MB
AROUND = 4  # centroids about one that is asked first


class Lead:
    """What is known of the centroids, for any number of blocks."""

    def __init__(self, centroids: Centroids) -> None:
        self._all = _Filter(centroids.f64)
        chosen, self._of, self._away = _neighbourhoods(centroids.f64)
        self._chosen = _Filter(centroids.f64[chosen])

    def may_reach(self, rows: Int8, floor: NDArray[np.float64]) -> NDArray[np.intp]:
        """Which of the rows may come up to any centroid's floor (K,)."""
        if np.isneginf(floor).any():
            return np.arange(len(rows.scale))
        of_chosen = self._floor_of_chosen(floor)
        found = [np.empty(0, np.intp)]
        for start in range(0, len(rows.scale), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            here = self._chosen.passing(part, np.arange(len(part.scale)), of_chosen)
            found.append(self._all.passing(part, here, floor) + start)
        return np.concatenate(found)

    def _floor_of_chosen(self, floor: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near a row comes at least to the chosen centroid of one whose floor it reaches."""
        cosine = floor / np.where(floor > 0, LONGEST, SHORTEST) ** 2
        angle = np.arccos(np.clip(cosine, -1, 1)) + self._away
        farthest = np.zeros(self._chosen.k)
        np.maximum.at(farthest, self._of, angle)
        nearest = np.cos(np.minimum(farthest + SLACK, np.pi)) - SLACK
        return nearest * np.where(nearest > 0, SHORTEST, LONGEST) ** 2


def _neighbourhoods(
    centroids: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Some of the centroids (K, D), each farthest from those before; for each centroid the place of
    the nearest of them, and the angle (K,) between the two."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    k = len(unit)
    chosen = [0]
    cosine, of = unit @ unit[0], np.zeros(k, np.intp)
    while len(chosen) < k // AROUND:
        chosen.append(int(np.argmin(cosine)))
        mine = unit @ unit[chosen[-1]]
        of[mine > cosine] = len(chosen) - 1
        cosine = np.maximum(cosine, mine)
    return np.array(chosen), of, np.arccos(np.clip(cosine, -1, 1))


class _Filter:
    """Leaves out rows that are too far from all of some vectors (K, D); itself, where it left out
    too few."""

    def __init__(self, vectors: NDArray[np.float64]) -> None:
        own = quantise(vectors)
        self.k = len(vectors)
        self._packed = numkong.dots_pack(own.values, dtype="int8")
        self._scale = own.scale.astype(np.float64)
        self._away = own.error.astype(np.float64)  # ‖d‖
        self._seen = self._passed = 0

    def passing(
        self, rows: Int8, here: NDArray[np.intp], floor: NDArray[np.float64]
    ) -> NDArray[np.intp]:
        """Those of `here` among the rows that may come up to any vector's floor."""
        if not len(here) or self._passed > WORTH_IT * self._seen:
            return here
        all_of_them = len(here) == len(rows.scale)
        values = rows.values if all_of_them else rows.values[here]
        dots = np.asarray(numkong.dots_packed(values, self._packed))  # (n, K)
        near = np.multiply(dots, rows.scale[here, None], dtype=np.float32)  # s (q·p)
        error = float(rows.error[here].max())
        lowest = floor - (LONGEST + error) * self._away - error * LONGEST - SLACK
        passed = (near >= float32(lowest / self._scale, -np.inf)).any(axis=1)
        found = here[passed]
        self._seen += len(here)
        self._passed += len(found)
        return found
