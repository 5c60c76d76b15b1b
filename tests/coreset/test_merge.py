"""Merging: any partition of the images, merged in any order, gives the lists of all of them."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset.candidates import Candidates, Floor, scan
from curate.coreset.lists import Lists, piece_of
from curate.coreset.merge import merge
from curate.coreset.similarity import Centroids, prepare
from curate.int8 import Block
from tests.oracles import sorted_keys, unit_rows

seeds = st.integers(0, 2**32)


def candidates(
    block: np.ndarray,
    first: int,
    centroids: Centroids,
    length: int,
    floor: Floor,
    after: Floor | None = None,
) -> Candidates:
    lengths = np.full(centroids.k, length)
    return scan(Block(block), first, centroids, lengths=lengths, floor=floor, after=after)


def same(one: Candidates, other: Candidates) -> None:
    np.testing.assert_array_equal(one.centroid, other.centroid)
    np.testing.assert_array_equal(one.similarity, other.similarity)
    np.testing.assert_array_equal(one.position, other.position)
    np.testing.assert_array_equal(one.floor.similarity, other.floor.similarity)
    np.testing.assert_array_equal(one.floor.position, other.floor.position)


@given(seeds, st.integers(1, 80), st.integers(1, 4), st.integers(1, 30), st.booleans())
def test_any_partition_and_any_tree(seed: int, n: int, k: int, length: int, floored: bool) -> None:
    rng = np.random.default_rng(seed)
    block, ready = unit_rows(rng, n, 4, duplicates=0.5), prepare(unit_rows(rng, k, 4))
    floor = Floor.at(rng.uniform(-1, 1, k)) if floored else Floor.bottom(k)
    lengths = np.full(k, length)
    whole = candidates(block, 0, ready, length, floor)
    cuts = [0, *sorted(rng.integers(0, n + 1, 5).tolist()), n]
    parts = [
        candidates(block[low:high], low, ready, length, floor)
        for low, high in itertools.pairwise(cuts)
    ]
    rng.shuffle(parts)  # type: ignore[arg-type]
    while len(parts) > 1:  # merge some, at random, until one is left
        some = int(rng.integers(2, len(parts) + 1))
        parts = [*parts[some:], merge(parts[:some], lengths)]
    same(merge(parts, lengths), whole)


@given(seeds, st.integers(2, 60), st.integers(1, 20))
def test_merging_parts_of_differing_floors_promises_only_the_highest(
    seed: int, n: int, length: int
) -> None:
    rng = np.random.default_rng(seed)
    block, ready = unit_rows(rng, n, 3, duplicates=0.5), prepare(unit_rows(rng, 2, 3))
    half = n // 2
    floors = [Floor.at(rng.uniform(-1, 1, 2)) for _ in range(2)]
    merged = merge(
        [
            candidates(block[:half], 0, ready, length, floors[0]),
            candidates(block[half:], half, ready, length, floors[1]),
        ],
        np.full(2, length),
    )
    highest = np.maximum(floors[0].similarity, floors[1].similarity)
    assert (merged.floor.similarity >= highest).all()
    for q, keys in enumerate(sorted_keys(block, ready.f64, 0)):
        own = merged.centroid == q
        end = (-merged.floor.similarity[q], merged.floor.position[q])
        assert list(zip(merged.similarity[own], merged.position[own], strict=True)) == [
            (s, p) for s, p in keys if (-s, p) <= end
        ]


@given(seeds, st.integers(2, 60), st.integers(1, 20))
def test_a_list_cut_and_continued_is_the_list(seed: int, n: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    block, ready = unit_rows(rng, n, 3, duplicates=0.5), prepare(unit_rows(rng, 3, 3))
    short = candidates(block, 0, ready, length, Floor.bottom(3))
    which = np.flatnonzero(~np.isneginf(short.floor.similarity) & (rng.random(3) < 0.7))
    more = candidates(
        block,
        0,
        ready.only(which),
        n,
        Floor.bottom(len(which)),
        after=short.floor.only(which),
    )
    lists = Lists(3)
    lists.add(piece_of(short, np.arange(3)))
    lists.add(piece_of(more, which))
    for q, keys in enumerate(sorted_keys(block, ready.f64, 0)):
        own = [e for start in range(0, n, 7) for e in read_all(lists, q, start, 7)]
        assert own == (keys if q in which else keys[:length])
    np.testing.assert_array_equal(lists.whole[which], True)


def read_all(lists: Lists, q: int, start: int, count: int) -> list[tuple[float, int]]:
    """A read ends where a piece does."""
    read: list[tuple[float, int]] = []
    while count and len(entries := lists.read(q, start, count)):
        read += entries.tolist()
        start, count = start + len(entries), count - len(entries)
    return read
