"""Lists of candidates: complete down to their floor, sorted, and no longer than asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset import candidates as module
from curate.coreset.candidates import Candidates, Floor, best, is_below, scan
from curate.coreset.similarity import NotUnit, prepare
from curate.int8 import Block
from tests.oracles import sorted_keys, unit_rows

seeds = st.integers(0, 2**32)


def entries(found: Candidates) -> list[list[tuple[float, int]]]:
    """(similarity, position) of each list."""
    starts = found.starts()
    return [
        list(
            zip(
                found.similarity[starts[q] : starts[q + 1]].tolist(),
                found.position[starts[q] : starts[q + 1]].tolist(),
                strict=True,
            )
        )
        for q in range(found.k)
    ]


def key(similarity: float, position: int) -> tuple[float, int]:
    """Smaller is better."""
    return -similarity, position


def within(keys: list[tuple[float, int]], floor: Floor, q: int) -> list[tuple[float, int]]:
    return [k for k in keys if key(*k) <= key(floor.similarity[q], floor.position[q])]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 7)


@given(seeds, st.integers(0, 60), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_scan_is_the_top_of_all_keys(
    seed: int, n: int, k: int, length: int, with_floor: bool
) -> None:
    rng = np.random.default_rng(seed)
    block, centroids = unit_rows(rng, n, 5, duplicates=0.5), unit_rows(rng, k, 5)
    ready, first = prepare(centroids), int(rng.integers(0, 1000))
    keys = sorted_keys(block, ready.f64, first)
    floor = Floor.at(rng.uniform(-1, 1, k)) if with_floor else Floor.bottom(k)
    if with_floor and n:  # one floor on an image's own key: it is in
        floor.similarity[0], floor.position[0] = keys[0][rng.integers(0, n)]
    found = scan(Block(block), first, ready, lengths=np.full(k, length), floor=floor)
    for q, mine in enumerate(entries(found)):
        allowed = within(keys[q], floor, q)
        assert mine == allowed[:length]
        # Below the list's own floor it promises nothing; above it, everything
        assert mine == within(keys[q], found.floor, q)


@given(seeds, st.integers(1, 60), st.integers(1, 4), st.integers(1, 60))
def test_scan_continues_after_a_key(seed: int, n: int, k: int, done: int) -> None:
    rng = np.random.default_rng(seed)
    block, ready = unit_rows(rng, n, 5, duplicates=0.5), prepare(unit_rows(rng, k, 5))
    keys = sorted_keys(block, ready.f64, 0)
    done = min(done, n)
    last = [keys[q][done - 1] for q in range(k)]
    after = Floor(np.array([s for s, _ in last]), np.array([p for _, p in last]))
    lengths = np.full(k, n)
    found = scan(Block(block), 0, ready, lengths=lengths, floor=Floor.bottom(k), after=after)
    assert entries(found) == [keys[q][done:] for q in range(k)]


@pytest.mark.parametrize("n", [5000, 70_000])
def test_lists_that_fill_up_on_the_way_raise_the_floor_and_lose_nothing(n: int) -> None:
    rng = np.random.default_rng(0)
    block, ready = unit_rows(rng, n, 3, duplicates=0.3), prepare(unit_rows(rng, 3, 3))
    found = scan(Block(block), 0, ready, lengths=np.full(3, 40), floor=Floor.bottom(3))
    assert entries(found) == [keys[:40] for keys in sorted_keys(block, ready.f64, 0)]


@given(seeds, st.integers(0, 40), st.integers(1, 4), st.integers(1, 50))
def test_best_sorts_cuts_and_says_so(seed: int, n: int, k: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    loose = Candidates(
        rng.integers(0, k, n).astype(np.int32),
        rng.integers(-2, 3, n) / 2.0,
        rng.permutation(n),
        Floor(rng.integers(-2, 3, k) / 2.0, rng.integers(0, max(n, 1), k)),
    )
    cut = best(loose, np.full(k, length))
    for q, mine in enumerate(entries(cut)):
        own = loose.centroid == q
        keys = list(zip(loose.similarity[own].tolist(), loose.position[own].tolist(), strict=True))
        allowed = within(sorted(keys, key=lambda entry: key(*entry)), loose.floor, q)
        assert mine == allowed[:length]
        floor = (cut.floor.similarity[q], cut.floor.position[q])
        was_cut = len(allowed) > length
        assert floor == (
            mine[-1] if was_cut else (loose.floor.similarity[q], loose.floor.position[q])
        )


def test_is_below() -> None:
    floor = Floor(np.array([0.5, 0.5, 0.5, 0.5]), np.array([7, 7, 7, 7]))
    below = is_below(np.array([0.6, 0.4, 0.5, 0.5]), np.array([9, 1, 7, 8]), floor)
    assert below.tolist() == [False, True, False, True]


def test_a_bad_row_is_named_by_its_place_in_the_block() -> None:
    block = unit_rows(np.random.default_rng(0), 40, 4)
    block[33] *= 2  # in the fifth chunk
    with pytest.raises(NotUnit) as caught:
        scan(Block(block), 1000, prepare(block[:2]), lengths=np.full(2, 5), floor=Floor.bottom(2))
    assert caught.value.row == 33
