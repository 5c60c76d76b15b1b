"""Exact similarities: the arithmetic against fractions, the float32 error against its bound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset.similarity import (
    NORM_TOLERANCE,
    NotUnit,
    check_unit,
    exact_pairs,
    on_grid,
    prepare,
    row_norms,
    widen,
)
from tests.oracles import exact_dot, unit_rows

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32))


def test_widen_is_bit_exact_for_every_finite_half() -> None:
    finite = np.isfinite(ALL_HALVES)
    ours = widen(ALL_HALVES.reshape(256, 256)).reshape(-1)
    expected = ALL_HALVES.astype(np.float32)
    np.testing.assert_array_equal(ours.view(np.int32)[finite], expected.view(np.int32)[finite])


def test_widened_infinities_and_nans_show_in_the_norm() -> None:
    for half in ALL_HALVES[~np.isfinite(ALL_HALVES)]:
        row = widen(np.array([[half, 0]], np.float16))
        with pytest.raises(NotUnit):
            check_unit(row_norms(row))


def test_widen_leaves_its_input_alone() -> None:
    block = unit_rows(np.random.default_rng(0), 4, 8)
    block.flags.writeable = False  # as a mapped file is
    before = block.copy()
    widen(block)
    np.testing.assert_array_equal(block, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widen_puts_wider_types_on_the_grid(dtype: type) -> None:
    values = np.random.default_rng(0).uniform(-1.01, 1.01, (50, 7)).astype(dtype)
    wide = widen(values)
    assert wide.dtype == np.float32
    scaled = wide.astype(np.float64) * 2**24
    np.testing.assert_array_equal(scaled, np.rint(scaled))
    assert np.abs(wide - values).max() <= 2.0**-24  # half a step below 1, a whole one above


def test_float16_is_on_the_grid_already() -> None:
    small = ALL_HALVES[np.abs(ALL_HALVES.astype(np.float32)) <= 1.01]
    np.testing.assert_array_equal(on_grid(small), small.astype(np.float64))


@given(shapes)
def test_exact_pairs_equal_fractions(shape: tuple[int, int, int, int]) -> None:
    n, k, d, seed = shape
    rng = np.random.default_rng(seed)
    rows, centroids = widen(unit_rows(rng, n, d)), prepare(unit_rows(rng, k, d).astype(np.float32))
    row_of, centroid_of = np.divmod(np.arange(n * k), k)
    truth = [exact_dot(rows[i], centroids.f64[q]) for i, q in zip(row_of, centroid_of, strict=True)]
    for few in (slice(None), slice(0, 1)):  # by one product of all, and pair by pair
        found = exact_pairs(rows, centroids, row_of[few], centroid_of[few])
        assert [Fraction(float(value)) for value in found] == truth[few]


def test_one_pair_at_a_time_and_all_at_once_agree_bit_by_bit() -> None:
    rng = np.random.default_rng(3)
    rows = widen(unit_rows(rng, 640, 384))
    centroids = prepare(unit_rows(rng, 40, 384).astype(np.float64))
    row_of, centroid_of = np.divmod(np.arange(640 * 40), 40)
    together = exact_pairs(rows, centroids, row_of, centroid_of)
    few = rng.permutation(640 * 40)[:700]  # more than one step of the pairwise way
    np.testing.assert_array_equal(
        exact_pairs(rows, centroids, row_of[few], centroid_of[few]), together[few]
    )


def _adversarial(kind: str, rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    if kind == "random":
        rows = rng.standard_normal((n, d))
    elif kind == "one large, many tiny":
        rows = rng.uniform(1, 2, (n, d)) * 2.0**-12
        rows[:, 0] = 1
    elif kind == "equal":
        rows = np.ones((n, d))
    elif kind == "cancelling":
        rows = np.where(np.arange(d) % 2, -1, 1) * rng.uniform(0.9, 1.1, (n, d))
    else:  # steep
        rows = rng.standard_normal((n, d)) * 0.9 ** np.arange(d)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * (1 + 0.99 * NORM_TOLERANCE)


@pytest.mark.parametrize("d", [1, 2, 16, 100, 512, 2048])
@pytest.mark.parametrize("kind", ["random", "one large, many tiny", "equal", "cancelling", "steep"])
def test_float32_products_stay_within_the_bound(kind: str, d: int) -> None:
    rng = np.random.default_rng(d)
    rows = widen(_adversarial(kind, rng, 64, d).astype(np.float32))
    # As long as the tolerance lets a row be, and near to the rows, so that the sums are large
    centroids = prepare(np.concatenate([rows[:8], _adversarial("random", rng, 8, d)]))
    exact = rows.astype(np.float64) @ centroids.f64.T
    assert np.abs((rows @ centroids.f32.T) - exact).max() <= centroids.error
    # Summed one by one in float32, the worst order there is
    serial = np.zeros((64, 16), np.float32)
    for i in range(d):
        serial += rows[:, i : i + 1] * centroids.f32[:, i]
    assert np.abs(serial - exact).max() <= centroids.error
    assert centroids.error < 2e-4


def test_centroids_hold_the_same_numbers_in_both_precisions() -> None:
    above_one = np.array([[1 + 2.0**-24 * 9, 0.01]])  # between two float32 numbers
    centroids = prepare(above_one)
    assert (centroids.f32.dtype, centroids.f64.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(centroids.f32.astype(np.float64), centroids.f64)


@given(st.integers(0, 2**32), st.integers(1, 600), st.integers(2, 64))
def test_copies_tie_wherever_they_stand(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    block = unit_rows(rng, n, d)
    places = rng.integers(0, n, 4)
    block[places] = block[places[0]]
    centroids = prepare(unit_rows(rng, 3, d).astype(np.float32))
    rows = widen(block)
    row_of, centroid_of = np.divmod(np.arange(n * 3), 3)
    values = exact_pairs(rows, centroids, row_of, centroid_of).reshape(n, 3)
    assert (values[places] == values[places[0]]).all()


@pytest.mark.parametrize("norm", [0.0, 0.98, 1.02, np.nan, np.inf])
def test_check_unit_names_the_first_bad_row(norm: float) -> None:
    with pytest.raises(NotUnit) as caught:
        check_unit(np.array([1.0, 1.005, norm, 5.0]), first=100)
    assert caught.value.row == 102
    np.testing.assert_equal(caught.value.norm, norm)


def test_row_norms() -> None:
    rows = np.random.default_rng(0).standard_normal((33, 17)).astype(np.float32)
    np.testing.assert_allclose(row_norms(rows), np.linalg.norm(rows, axis=1), rtol=1e-6)
