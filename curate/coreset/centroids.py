"""(N, D) target embeddings → (K, D) unit rows that stand for the target set."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

ITERATIONS = 25


def centroids(embeddings: NDArray[np.floating], k: int, seed: int) -> NDArray[np.float32]:
    """k-means on the embeddings, unit rows, and normalised again (SimCore, section 3.2).

    k of at least N makes every target image its own centroid; k = 1 is the paper's SimCore†.
    Raises ValueError without embeddings, or for a cluster whose mean is zero.
    """
    points = embeddings.astype(np.float32)
    n, d = points.shape
    if n == 0:
        raise ValueError("no target image could be embedded")
    if k >= n:
        centres = points
    elif k == 1:
        centres = points.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    else:
        # One thread: sums in one order, and so one answer; the target set is small.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            kmeans = faiss.Kmeans(
                d,
                k,
                niter=ITERATIONS,
                seed=seed,
                min_points_per_centroid=1,
                max_points_per_centroid=n,  # no subsampling
            )
            kmeans.train(points)
        finally:
            faiss.omp_set_num_threads(threads)
        centres = np.asarray(kmeans.centroids).reshape(k, d)
    norms = np.linalg.norm(centres.astype(np.float64), axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        raise ValueError("a cluster of the target's embeddings has mean zero; lower the clusters")
    return (centres / norms).astype(np.float32)
