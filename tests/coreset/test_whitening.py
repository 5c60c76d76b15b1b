"""Whitening against scikit-learn's, and its invariants."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from sklearn.decomposition import PCA

from curate.coreset.whitening import Moments, Whitening


def rows(count: int = 300, width: int = 12, seed: int = 0) -> np.ndarray:
    """Embeddings crowded around one direction, as encoders' are."""
    rng = np.random.default_rng(seed)
    crowded = rng.normal(size=(count, width)) * np.geomspace(1, 0.01, width) + 3
    return (crowded / np.linalg.norm(crowded, axis=1, keepdims=True)).astype(np.float16)


def unit(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.mark.parametrize("dims", [2, 5, 11])
def test_similarities_are_scikit_learns(dims: int) -> None:
    embeddings, others = rows(), rows(40, seed=1)
    whitening = Whitening.fit(Moments.of(embeddings), dims)
    pca = PCA(dims, whiten=True, svd_solver="full").fit(embeddings.astype(np.float64))
    expected = unit(pca.transform(others.astype(np.float64)))
    found = whitening(others).astype(np.float64)
    # Signs of directions may differ, similarities not
    assert np.abs(found @ found.T - expected @ expected.T).max() < 2e-3


def test_directions_weigh_the_same() -> None:
    embeddings = rows()
    whitening = Whitening.fit(Moments.of(embeddings), 8)
    projected = (embeddings.astype(np.float64) - whitening.mean) @ whitening.matrix
    assert np.abs(projected.mean(0)).max() < 1e-9
    assert np.abs(np.cov(projected.T, bias=True) - np.eye(8)).max() < 1e-6


def test_moments_of_parts_add_up() -> None:
    embeddings = rows()
    parts = reduce(add, (Moments.of(embeddings[i : i + 70]) for i in range(0, 300, 70)))
    whole = Moments.of(embeddings)
    assert parts.count == whole.count == 300
    assert np.allclose(parts.total, whole.total) and np.allclose(parts.products, whole.products)


def test_rows_are_of_unit_norm_and_never_nan() -> None:
    embeddings = rows()
    whitening = Whitening.fit(Moments.of(embeddings), 4)
    mean = whitening.mean[None]  # has no direction of its own
    found = whitening(np.concatenate([embeddings, mean]))
    assert found.dtype == np.float16 and not np.isnan(found).any()
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 2e-3


def test_embeddings_that_are_all_the_same_do_not_divide_by_zero() -> None:
    same = np.repeat(rows(1), 5, axis=0)
    assert np.isfinite(Whitening.fit(Moments.of(same), 3)(same)).all()


def test_more_dimensions_than_there_are() -> None:
    with pytest.raises(ValueError, match="13 of 12 dimensions"):
        Whitening.fit(Moments.of(rows()), 13)
