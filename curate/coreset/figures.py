"""What a selection is worth before anyone trains on it, without labels: how relevant its images are
to the target, and how varied they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.coreset import ratio
from curate.coreset.centroids import centroids
from curate.coreset.quality import entropy
from curate.coreset.similarity import widen

CLUSTERS = 128  # of the open set, that a selection's images are counted in
A_CLUSTER = 20  # images of the open set's sample at least
LEAST_TARGET = 8  # images, for a median of each half
ROWS_AT_ONCE = 2048
SEED = 0


@dataclass(frozen=True)
class Figures:
    """relevance: share of the images that are as much like the target as half of its own images
    are, by a density ratio that has not seen that half; None of a target of few images.
    clusters: effective number of the open set's clusters that the images are in, exp of the
    entropy. nearest: mean cosine to the most similar other image. Each of the selection, and of
    random images of the open set, for a selection as large, as far as their sample goes.
    """

    relevance: float | None
    relevance_random: float | None
    clusters: float | None
    clusters_random: float | None
    nearest: float | None
    nearest_random: float | None


def figures(
    selected: NDArray[np.floating],
    target: NDArray[np.floating],
    sample: NDArray[np.floating],
) -> Figures:
    """selected (n, D), target (T, D), random images of the open set (m, D): unit rows."""
    # In plan order they come, source by source
    some = np.random.default_rng(SEED).permutation(len(sample))[: len(selected)]
    same = sample[some]
    mine, random = _relevance([selected, sample], target, sample)
    clusters, clusters_random = _clusters([selected, same], sample)
    return Figures(mine, random, clusters, clusters_random, _nearest(selected), _nearest(same))


def _relevance(
    sets: list[NDArray[np.floating]], target: NDArray[np.floating], sample: NDArray[np.floating]
) -> list[float | None]:
    """Each half of the target is held against what the other half's estimate ranks."""
    if len(target) < LEAST_TARGET or not min(len(rows) for rows in sets):
        return [None for _ in sets]
    shares = []
    for judge, bar in (ratio.halves(len(target)), ratio.halves(len(target))[::-1]):
        try:
            score = ratio.estimate("linear", target[judge], sample, SEED)
        except (ValueError, np.linalg.LinAlgError):  # as of sets that do not differ
            return [None for _ in sets]
        half = np.median(score.exact(widen(target[bar])))
        shares.append([float(np.mean(score.exact(widen(s)) >= half)) for s in sets])
    return [float(np.mean(both)) for both in zip(*shares, strict=True)]


def _clusters(sets: list[NDArray[np.floating]], sample: NDArray[np.floating]) -> list[float | None]:
    k = min(CLUSTERS, len(sample) // A_CLUSTER)
    if k < 2 or not min(len(rows) for rows in sets):
        return [None for _ in sets]
    try:
        centres = centroids(sample, k, SEED)
    except ValueError:
        return [None for _ in sets]
    found = []
    for rows in sets:
        nearest = (rows.astype(np.float32) @ centres.T).argmax(1)
        found.append(float(2 ** entropy(np.bincount(nearest, minlength=k).tolist())))
    return list(found)


def _nearest(rows: NDArray[np.floating]) -> float | None:
    if len(rows) < 2:
        return None
    rows = rows.astype(np.float32)
    found = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        similarity = rows[start : start + ROWS_AT_ONCE] @ rows.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        found.append(similarity.max(axis=1))
    return float(np.concatenate(found).mean())
