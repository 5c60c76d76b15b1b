"""The map's figures against scikit-learn, SciPy and formulas."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import gaussian_kde, norm
from sklearn.decomposition import PCA

from curate.coreset import projection
from curate.coreset.projection import GRID


def rows(n: int, seed: int, at: float = 0.0, width: int = 12) -> np.ndarray:
    scale = np.linspace(2, 0.2, width)
    return np.random.default_rng(seed).standard_normal((n, width)) * scale + at


def test_pca_is_scikit_learns() -> None:
    sets = [rows(200, 0), rows(200, 1, at=0.7)]
    flat, shown = projection.pca(sets)
    oracle = PCA(2).fit(np.concatenate(sets))
    expected = oracle.transform(np.concatenate(sets))
    found = np.concatenate(flat)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert shown == pytest.approx(oracle.explained_variance_ratio_.sum())
    assert [len(one) for one in flat] == [200, 200]


def test_pca_counts_sets_not_rows() -> None:
    small, large = rows(50, 0), rows(1000, 1, at=0.7)
    flat, _ = projection.pca([small, large])
    repeated, _ = projection.pca([np.tile(small, (20, 1)), large])
    np.testing.assert_allclose(flat[1], repeated[1], atol=1e-8)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 1)])
def test_pca_of_hardly_anything(shape) -> None:
    flat, shown = projection.pca([np.ones(shape), np.ones(shape)])
    assert flat[0].shape == (shape[0], 2) and np.isfinite(flat[0]).all() and shown == 1.0


def test_umap_where_it_is_installed(monkeypatch) -> None:
    module = ModuleType("umap")

    class UMAP:
        def __init__(self, **settings) -> None:
            assert settings["random_state"] == 3

        def fit_transform(self, given: np.ndarray) -> np.ndarray:
            return given[:, :2]

    module.UMAP = UMAP  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    flat = projection.umap([np.eye(3), np.eye(4)[:, :3]], 3)
    assert [one.shape for one in flat] == [(3, 2), (4, 2)]


@pytest.mark.parametrize("n", [5, 40, 1500])
def test_density_is_scipys(n) -> None:
    points = rows(n, n, width=2) @ np.array([[1.0, 0.6], [0, 0.8]])
    places = projection.grid(projection.frame([points]))
    found = projection.density(points, places)
    np.testing.assert_allclose(found, gaussian_kde(points.T)(places.T), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "points",
    [np.zeros((2, 2)), np.ones((50, 2)), np.arange(60.0).repeat(2).reshape(60, 2)],
    ids=["two", "all the same", "on a line"],
)
def test_no_density_of_what_has_none(points) -> None:
    assert projection.density(points, np.zeros((1, 2))) is None


@pytest.mark.parametrize("apart", [0.0, 0.5, 2.0, 6.0])
def test_overlap_of_two_normals_is_the_formulas(apart) -> None:
    places = projection.grid((-8, -8, 16 + apart, 16))

    def at(x: float) -> np.ndarray:
        return np.exp(-((places - [x, 0]) ** 2).sum(axis=1) / 2)

    expected = 2 * norm.cdf(-apart / 2)
    assert projection.overlap(at(0), at(apart)) == pytest.approx(expected, abs=2e-3)


def test_overlap_of_densities_from_samples() -> None:
    one, other = rows(1500, 0, width=2), rows(1500, 1, width=2)
    far = rows(1500, 2, at=30, width=2)
    places = projection.grid(projection.frame([one, other, far]))
    a, b, c = (projection.density(points, places) for points in (one, other, far))
    assert projection.overlap(a, a) == pytest.approx(1)
    assert projection.overlap(a, b) > 0.8 and projection.overlap(a, c) < 1e-6


def test_outlines_hold_the_mass_they_are_said_to() -> None:
    points = np.concatenate([rows(700, 0, width=2), rows(700, 1, at=5, width=2)])
    values = projection.density(points, projection.grid(projection.frame([points])))
    for mass in (0.5, 0.9):
        level = projection.level_of(values, mass)
        assert values[values > level].sum() / values.sum() == pytest.approx(mass, abs=0.01)
        rings = projection.outlines(values, level)
        inside = (values > level).mean() * GRID**2 / (GRID - 1) ** 2
        assert abs(sum(map(area, rings))) == pytest.approx(inside, rel=0.05)


def test_an_outline_of_a_ring_has_a_hole_and_of_noise_closes() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, GRID), np.linspace(-1, 1, GRID))
    ring = np.exp(-((np.hypot(x, y) - 0.6) ** 2) / 0.01).ravel()
    sizes = sorted(area(one) for one in projection.outlines(ring, 0.5))
    assert len(sizes) == 2 and sizes[0] * sizes[1] < 0  # the hole goes round the other way
    noise = np.random.default_rng(0).random(GRID**2)
    rings = projection.outlines(noise, 0.5)  # thousands of saddles
    assert min(map(len, rings)) >= 4
    corners = np.concatenate(rings)
    assert corners.min() >= 0 and corners.max() <= 1
    assert projection.outlines(np.zeros(GRID**2), 0.5) == []


def area(ring) -> float:
    x, y = np.array(ring).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_nearness() -> None:
    target = np.eye(3)
    assert projection.nearness(target, np.eye(3)) == 1
    assert projection.nearness(target, np.eye(3)[:1]) == pytest.approx(1 / 3)
    assert projection.nearness(target, np.empty((0, 3))) is None
