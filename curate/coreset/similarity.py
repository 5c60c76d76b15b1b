"""Cosine similarities that are exact, so that no machine, thread or shard size can change a rank.

Floating-point matrix products depend in their last bits on how a library blocks them, and two
copies of one image would then tie on one machine and not on another. Here embeddings and centroids
hold multiples of 2^-24, which float16 numbers of magnitude below 1 are anyway. A product of two is
a multiple of 2^-48, and every partial sum of a dot product of (nearly) unit vectors is below 2, so
that 49 bits hold it: in float64, with its 53, *no* addition rounds, in any order.

The bulk of the work stays in float32: its error has a proven bound, so it tells which few pairs
can matter, and only those are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.int8 import NORM_TOLERANCE, are_unit

GRID = 2.0**-24


class NotUnit(ValueError):
    """Rows that are no unit vectors. `row` is the first of them, `norm` its norm."""

    def __init__(self, row: int, norm: float) -> None:
        super().__init__(f"row {row} has norm {norm:.6g}")
        self.row, self.norm = row, norm


@dataclass(frozen=True)
class Centroids:
    """The K centroids, ready for use: the same numbers in both precisions."""

    f32: NDArray[np.float32]  # (K, D)
    f64: NDArray[np.float64]  # (K, D)
    error: float  # no float32 similarity is farther than this from the exact one

    @property
    def k(self) -> int:
        return len(self.f32)

    def only(self, which: NDArray[np.intp]) -> Centroids:
        return Centroids(self.f32[which], self.f64[which], self.error)


def prepare(centroids: NDArray[np.floating]) -> Centroids:
    """centroids (K, D), unit rows → the same, on the grid. Raises NotUnit."""
    check_unit(np.linalg.norm(centroids.astype(np.float64), axis=1))
    grid = on_grid(centroids).astype(np.float32)
    width = grid.shape[1]
    # |fl(x·c) - x·c| ≤ γ_D Σ|x_i c_i| ≤ γ_D ‖x‖ ‖c‖, with γ_D = D u / (1 - D u) and u = 2^-24,
    # in whatever order the sum is taken, fused or not (Higham 2002, section 3.1).
    gamma = width * 2.0**-24 / (1 - width * 2.0**-24)
    error = gamma * (1 + NORM_TOLERANCE) ** 2 + width * 2.0**-126  # and what underflow may drop
    return Centroids(grid, grid.astype(np.float64), error)


def joined(parts: list[Centroids]) -> Centroids:
    """Those of several targets, of one width, one after the other."""
    return Centroids(
        np.concatenate([part.f32 for part in parts]),
        np.concatenate([part.f64 for part in parts]),
        max(part.error for part in parts),
    )


def on_grid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The nearest multiples of 2^-24: what float16 holds already, float32 to 3e-8."""
    return np.rint(values.astype(np.float64) / GRID) * GRID


def widen(block: NDArray[np.floating]) -> NDArray[np.float32]:
    """A block (n, D) of stored embeddings → float32, on the grid.

    NumPy widens float16 number by number; shifting the bits into place and scaling does the same
    seven times as fast. It makes infinities and NaN large finite numbers, so that the norm tells.
    """
    if block.dtype != np.float16:
        # Rounding to the grid fits float32: magnitudes to 1 are 24 bits. NaN stays NaN.
        return on_grid(block).astype(np.float32)
    bits = np.ascontiguousarray(block).view(np.int16).astype(np.int32)  # the sign extends
    bits <<= 13  # exponent and mantissa to where float32 has them
    bits &= np.int32(-0x70002000)  # 0x8FFFE000: the sign's copies out of the exponent
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)  # exponent bias 15 → 127
    return values


def float32(values: NDArray[np.float64], towards: float) -> NDArray[np.float32]:
    """The float32 beyond each value, on the side of `towards`."""
    return np.nextafter(values.astype(np.float32), np.float32(towards))


def check_unit(norms: NDArray[np.floating], first: int = 0) -> None:
    """norms (n,) of rows first … first + n - 1. Raises NotUnit for one that is not 1, or is NaN."""
    bad = ~are_unit(norms)
    if bad.any():
        row = int(np.argmax(bad))
        raise NotUnit(first + row, float(norms[row]))


def row_norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """rows (n, D) → (n,), by n products of a row with itself: twice as fast as einsum."""
    return np.sqrt((rows[:, None, :] @ rows[:, :, None])[:, 0, 0])


def exact_pairs(
    rows: NDArray[np.float32],
    centroids: Centroids,
    row_of: NDArray[np.intp],
    centroid_of: NDArray[np.intp],
) -> NDArray[np.float64]:
    """rows (n, D); for each pair (row_of[i], centroid_of[i]) its exact similarity."""
    if len(row_of) * 32 > rows.shape[0] * centroids.k:  # a product of all is faster from here on
        similarity = rows.astype(np.float64) @ centroids.f64.T  # (n, K)
        return similarity[row_of, centroid_of]
    out = np.empty(len(row_of))
    step = max(1, (1 << 17) // rows.shape[1])  # 1 MB of float64 at a time stays in cache
    for start in range(0, len(row_of), step):
        part = slice(start, start + step)
        left = rows[row_of[part]].astype(np.float64)
        out[part] = np.einsum("ij,ij->i", left, centroids.f64[centroid_of[part]])
    return out
