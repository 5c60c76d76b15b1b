"""Embeddings in which no direction outweighs another, by the open set's mean and covariance.

What all images have in common takes up most of a weak encoder's embeddings and decides what counts
as similar; images near to that are near to every centroid. Whitening divides each principal
direction by its spread, so that rare directions count as much as common ones.

Source: Jégou & Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA
and whitening", ECCV 2012.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-6  # of the largest variance: directions below it hold rounding errors


@dataclass(frozen=True)
class Moments:
    """Sums over embeddings; those of parts add up."""

    count: int
    total: NDArray[np.float64]  # (D,)
    products: NDArray[np.float64]  # (D, D)

    @staticmethod
    def of(block: NDArray[np.floating]) -> Moments:
        rows = block.astype(np.float64)
        return Moments(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.products + other.products
        )


@dataclass(frozen=True)
class Whitening:
    mean: NDArray[np.float64]  # (D,)
    matrix: NDArray[np.float64]  # (D, dims)

    @staticmethod
    def fit(moments: Moments, dims: int) -> Whitening:
        """dims: principal directions that are kept, the widest first.

        Raises ValueError for more than there are.
        """
        width = len(moments.total)
        if dims > width:
            raise ValueError(f"{dims} of {width} dimensions")
        mean = moments.total / moments.count
        covariance = moments.products / moments.count - np.outer(mean, mean)
        variances, directions = np.linalg.eigh(covariance)  # ascending
        kept, widest = variances[::-1][:dims], max(float(variances[-1]), np.finfo(float).tiny)
        # A direction's sign is arbitrary; fixed, so that equal moments give equal embeddings
        directions = directions[:, ::-1][:, :dims]
        directions = directions * np.where(
            directions[abs(directions).argmax(0), range(dims)] < 0, -1, 1
        )
        return Whitening(mean, directions / np.sqrt(np.maximum(kept, LEAST * widest)))

    def __call__(self, block: NDArray[np.floating]) -> NDArray[np.float16]:
        """block (n, D) → (n, dims), unit rows."""
        rows = (block.astype(np.float64) - self.mean) @ self.matrix
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows[norms[:, 0] == 0, 0] = 1  # the mean itself has no direction; it gets one
        return (rows / np.where(norms == 0, 1, norms)).astype(np.float16)
