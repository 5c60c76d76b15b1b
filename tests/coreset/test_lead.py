"""int8 copies: as near as they say, and no row that could be a candidate is passed over."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset import candidates as module
from curate.coreset import lead
from curate.coreset.candidates import Floor, scan
from curate.coreset.lead import Lead
from curate.coreset.similarity import prepare
from curate.int8 import Block, quantise
from curate.runfiles import shards
from curate.runfiles.embeddings import read_blocks
from curate.runfiles.shards import INT8, Shard
from tests.oracles import unit_rows

seeds = st.integers(0, 2**32)
widths = st.sampled_from([1, 2, 7, 64, 129, 1500])  # the last beyond what float32 counts exactly


def problem(
    seed: int, n: int, k: int, d: int
) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Some rows have one large entry and many small ones: the worst for one scale a row."""
    rng = np.random.default_rng(seed)
    rows, centroids = unit_rows(rng, n, d, duplicates=0.2), unit_rows(rng, k, d)
    if seed % 2:  # centroids in a few heaps, some rows near them
        heaps = centroids[rng.integers(0, -(-k // 5), k)] + 0.1 * rng.standard_normal((k, d))
        centroids = (heaps / np.linalg.norm(heaps, axis=1, keepdims=True)).astype(np.float16)
        rows[::2] = centroids[rng.integers(0, k, len(rows[::2]))]
    spiked = rows.astype(np.float64)
    spiked[::3, 0] += 3
    spiked /= np.linalg.norm(spiked, axis=1, keepdims=True)
    return rng, spiked.astype(np.float16), centroids


@given(seeds, st.integers(0, 4), widths)
def test_a_copy_is_as_near_as_it_says(seed: int, n: int, d: int) -> None:
    _, rows, _ = problem(seed, n, 1, d)
    made = quantise(rows)
    assert np.abs(made.values.astype(int)).max(initial=0) <= 127
    for row, values, scale, error in zip(rows, made.values, made.scale, made.error, strict=True):
        away = sum(
            (Fraction(float(x)) - Fraction(float(scale)) * int(q)) ** 2
            for x, q in zip(row, values, strict=True)
        )
        assert away <= Fraction(float(error)) ** 2
        assert error < 0.01 + scale * np.sqrt(d)  # and it says something


@given(seeds, st.integers(1, 40), st.integers(1, 24), widths)
def test_no_row_that_comes_up_to_a_floor_is_left_out(seed: int, n: int, k: int, d: int) -> None:
    rng, rows, centroids = problem(seed, n, k, d)
    ready = prepare(centroids)
    near = rows.astype(np.float64) @ ready.f64.T
    floor = near[rng.integers(0, n, k), np.arange(k)]  # a row of each list lies on its floor
    passed = Lead(ready).may_reach(quantise(rows), floor)
    assert set(np.flatnonzero((near >= floor).any(axis=1))) <= set(passed.tolist())


def test_most_rows_are_left_out_where_few_are_wanted() -> None:
    rng = np.random.default_rng(0)
    rows, centroids = unit_rows(rng, 4000, 256), unit_rows(rng, 20, 256)
    near = rows.astype(np.float64) @ centroids.astype(np.float64).T
    floor = np.sort(near, axis=0)[-4]
    assert len(Lead(prepare(centroids)).may_reach(quantise(rows), floor)) < 400


def test_heaps_of_centroids_are_asked_for_by_one_each() -> None:
    """Rows far from all heaps do not come to the other centroids."""
    rng = np.random.default_rng(0)
    heaps = unit_rows(rng, 5, 256).astype(np.float64)
    near = np.repeat(heaps, 8, axis=0) + 0.02 * rng.standard_normal((40, 256))
    centroids = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float16)
    rows = np.concatenate([unit_rows(rng, 2000, 256), centroids])
    made, floor = Lead(prepare(centroids)), np.full(40, 0.8)
    for _ in range(2):
        passed = made.may_reach(quantise(rows), floor)
        assert passed.tolist() == [*range(2000, 2040)]
    assert (made._chosen._seen, made._chosen._passed) == (4080, 80)


@given(seeds, st.integers(0, 60), st.integers(1, 24), st.integers(1, 12), st.booleans())
def test_a_scan_finds_the_same_with_and_without(
    seed: int, n: int, k: int, length: int, continued: bool
) -> None:
    rng, rows, centroids = problem(seed, n, k, 16)
    ready, first = prepare(centroids), int(rng.integers(0, 1000))
    floor = Floor.at(rng.uniform(-0.3, 0.6, k))
    after = Floor.at(floor.similarity + 0.3) if continued else None
    limits = {"lengths": np.full(k, length), "floor": floor, "after": after}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ROWS", 7)
        patch.setattr(lead, "WORTH_IT", 2.0 if seed % 2 else 0.5)
        patch.setattr(lead, "ROWS_AT_ONCE", 13)
        one = scan(Block(rows, quantise(rows)), first, ready, **limits, lead=Lead(ready))
        other = scan(Block(rows), first, ready, **limits)
    for field in ("centroid", "similarity", "position"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    np.testing.assert_array_equal(one.floor.similarity, other.floor.similarity)


def test_shards_have_copies_of_unit_rows(tmp_path) -> None:
    _, rows, _ = problem(0, 50, 1, 24)
    images = pa.table({"row": np.arange(50)})
    uri = str(tmp_path / "a.arrow")
    shards.write_arrow(uri, shards.table_of(images, rows))
    (block,) = read_blocks(Shard(uri, 7, 20, 0))
    expected = quantise(rows[7:27])
    np.testing.assert_array_equal(block.rows, rows[7:27])
    assert block.int8 is not None
    for field in ("values", "scale", "error"):
        np.testing.assert_array_equal(getattr(block.int8, field), getattr(expected, field))
    rows[3] *= 2  # which a scan must see, and name
    assert INT8 not in shards.table_of(images, rows).column_names
