"""Which rows can be a candidate at all, by their int8 copies: the others are never widened.

With x = s·q + e and c = t·p + d for a row and a centroid, of which q and p hold whole numbers,

    x·c = s·t·(q·p) + s·q·d + e·c   ≤   s·t·(q·p) + ‖s·q‖ ‖d‖ + ‖e‖ ‖c‖

q·p is exact, and a quarter of the work of a float32 product where the CPU knows int8 products. What
passes is looked at again in full, so that the bound decides about time alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numkong
import numpy as np
from numpy.typing import NDArray

from curate.coreset.similarity import Centroids, float32
from curate.int8 import NORM_TOLERANCE, Block, Int8, quantise

LONGEST = 1 + NORM_TOLERANCE  # a unit row or centroid
SLACK = 1e-6  # of float32 products of numbers to about 1, and their comparison
WORTH_IT = 0.5  # of the rows may pass at most; beyond, to look first is work for nothing


@dataclass
class Lead:
    """The copies of one block's rows and of the centroids."""

    rows: Int8
    packed: numkong.PackedMatrix
    scale: NDArray[np.float64]  # (K,)
    away: NDArray[np.float64]  # (K,) ‖d‖
    seen: int = 0
    passed: int = 0

    @staticmethod
    def of(block: Block, centroids: Centroids) -> Lead | None:
        """None where the rows have no copies."""
        if block.int8 is None:
            return None
        own = quantise(centroids.f64)
        packed = numkong.dots_pack(own.values, dtype="int8")
        return Lead(block.int8, packed, own.scale.astype(np.float64), own.error.astype(np.float64))

    def may_reach(self, chunk: slice, floor: NDArray[np.float64]) -> NDArray[np.intp]:
        """Rows of the chunk that may come up to any centroid's floor (K,); from the chunk's
        first."""
        rows = self.rows[chunk]
        n = len(rows.scale)
        if np.isneginf(floor).any() or self.passed > WORTH_IT * self.seen:
            return np.arange(n)
        dots = np.asarray(numkong.dots_packed(rows.values, self.packed))  # (c, K)
        near = np.multiply(dots, rows.scale[:, None], dtype=np.float32)  # s (q·p)
        error = float(rows.error.max(initial=0))
        lowest = floor - (LONGEST + error) * self.away - error * LONGEST - SLACK
        found = np.flatnonzero((near >= float32(lowest / self.scale, -np.inf)).any(axis=1))
        self.seen += n
        self.passed += len(found)
        return found
