"""Embeddings in two dimensions, with Gaussian kernel densities and how far two of them overlap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

GRID = 96  # density is computed on so many points a side
MARGIN = 0.08  # of the picture, around what is in it
Floats = NDArray[np.float64]
Ring = list[tuple[float, float]]


def pca(sets: list[NDArray[np.floating]]) -> tuple[list[Floats], float]:
    """Sets of rows (N_i, D) → (N_i, 2) each, on the two directions in which all rows together vary
    most; and the share of the variance that these show.

    Each set counts the same, however many rows it has: the picture is about what sets them apart.
    """
    rows = np.concatenate([np.asarray(one, np.float64) for one in sets])
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in sets if len(one)])
    weights /= weights.sum()
    centred = rows - weights @ rows
    covariance = (centred * weights[:, None]).T @ centred
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :2]
    # An eigenvector's sign is free; a rerun should not mirror the picture
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    flat = centred @ (axes * np.where(signs == 0, 1, signs))
    if flat.shape[1] < 2:
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    total = values.clip(0).sum()
    shown = float(values.clip(0)[::-1][:2].sum() / total) if total > 0 else 1.0
    return _split(flat, sets), shown


def umap(sets: list[NDArray[np.floating]], seed: int) -> list[Floats]:
    """The same by UMAP. Raises ImportError where it is not installed."""
    from umap import UMAP

    rows = np.concatenate([np.asarray(one, np.float32) for one in sets])
    flat = UMAP(metric="cosine", n_neighbors=15, random_state=seed, n_jobs=1).fit_transform(rows)
    return _split(np.asarray(flat, np.float64), sets)


def _split(flat: Floats, sets: list[NDArray[np.floating]]) -> list[Floats]:
    return np.split(flat, np.cumsum([len(one) for one in sets])[:-1])


def frame(sets: list[Floats]) -> tuple[float, float, float, float]:
    """left, bottom, width, height of a picture of all points but the farthest few."""
    rows = np.concatenate(sets)
    low, high = np.percentile(rows, [0.5, 99.5], axis=0)
    spread = np.maximum(high - low, 1e-9 + 1e-6 * np.abs(high).max())
    low, spread = low - 2 * MARGIN * spread, (1 + 4 * MARGIN) * spread
    return float(low[0]), float(low[1]), float(spread[0]), float(spread[1])


def grid(box: tuple[float, float, float, float]) -> Floats:
    """(GRID², 2) points over the picture, row by row from the bottom."""
    left, bottom, width, height = box
    steps = np.arange(GRID) / (GRID - 1)
    x, y = np.meshgrid(left + width * steps, bottom + height * steps)
    return np.column_stack([x.ravel(), y.ravel()])


def density(points: Floats, places: Floats) -> Floats | None:
    """Gaussian kernel density of points (N, 2) at places (M, 2), of Scott's bandwidth.

    None of points that all lie on a line, or are fewer than three.
    """
    if len(points) < 3:
        return None
    covariance = np.cov(points.T)
    if np.linalg.det(covariance) <= 1e-9 * np.trace(covariance) ** 2:
        return None
    return np.asarray(gaussian_kde(points.T)(places.T), np.float64)


def overlap(one: Floats, other: Floats) -> float:
    """What two densities on the same grid share: ∫ min(p, q), 0…1, each summing to 1."""
    return float(np.minimum(one / one.sum(), other / other.sum()).sum())


def level_of(values: Floats, mass: float) -> float:
    """The density above which `mass` of it lies: the outline of the densest so much of a set."""
    ordered = np.sort(values)[::-1]
    reached = np.cumsum(ordered) / ordered.sum()
    return float(ordered[min(int(np.searchsorted(reached, mass)), len(ordered) - 1)])


def nearness(target: NDArray[np.floating], other: NDArray[np.floating]) -> float | None:
    """How similar the nearest of `other` is to an image of the target set, in the mean: in all
    dimensions, where two may leave something out. Compare sets of equal size only."""
    if not len(target) or not len(other):
        return None
    similar = np.asarray(target, np.float32) @ np.asarray(other, np.float32).T
    return float(similar.max(axis=1).mean())


def outlines(values: Floats, level: float) -> list[Ring]:
    """Closed rings around where a (GRID, GRID) density is above `level`, in units of the picture's
    side, (0, 0) at its lower left. Holes come as rings too: fill by even-odd.

    Marching squares: each cell with corners on both sides of the level is crossed by a segment,
    which goes from the side where a walk clockwise leaves the inside to where it comes back.
    """
    field = np.pad(values.reshape(GRID, GRID), 1)  # rings close at the border
    inside = field > level
    cells = inside[:-1, :-1].astype(int) + inside[:-1, 1:] + inside[1:, 1:] + inside[1:, :-1]
    follows: dict[tuple[int, ...], tuple[int, ...]] = {}
    for i, j in np.argwhere((cells > 0) & (cells < 4)).tolist():
        for start, end in _crossings(field, inside, level, i, j):
            follows[start] = end
    rings = []
    while follows:
        edge, following = follows.popitem()
        ring = [edge]
        while following != edge:
            ring.append(following)
            following = follows.pop(following)
        rings.append([_place(field, level, edge) for edge in ring])
    return rings


def _crossings(
    field: Floats, inside: NDArray[np.bool_], level: float, i: int, j: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    corners = [(i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j)]
    # An edge is named by its two corners in order, the same from both cells that share it
    edges = [
        (*min(a, b), *max(a, b)) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    within = [bool(inside[corner]) for corner in corners]
    leaves = [k for k in range(4) if within[k] and not within[(k + 1) % 4]]
    enters = [k for k in range(4) if not within[k] and within[(k + 1) % 4]]
    if len(leaves) == 1:
        yield edges[leaves[0]], edges[enters[0]]
        return
    # A saddle: its centre says which of the two pairs of corners belong together
    joined = sum(field[corner] for corner in corners) / 4 > level
    for k in leaves:
        yield edges[k], edges[(k + 1) % 4 if joined else (k - 1) % 4]


def _place(field: Floats, level: float, edge: tuple[int, ...]) -> tuple[float, float]:
    """Where along an edge the level is reached."""
    i, j, k, m = edge
    a, b = float(field[i, j]), float(field[k, m])
    t = (level - a) / (b - a)
    x, y = j + t * (m - j) - 1, i + t * (k - i) - 1
    return min(max(x / (GRID - 1), 0.0), 1.0), min(max(y / (GRID - 1), 0.0), 1.0)
