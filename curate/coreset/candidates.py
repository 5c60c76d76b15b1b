"""For each centroid the images most similar to it, best first: all that the rounds need to see.

A list is complete down to its **floor**: every image whose key comes at or before the floor is in
it. A key is (similarity, position in plan order), larger similarity first, ties by position. Lists
of two shards merge into the list of both (merge.py), and a list that runs out is continued below
its floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.coreset.lead import Lead
from curate.coreset.similarity import (
    Centroids,
    NotUnit,
    check_unit,
    exact_pairs,
    float32,
    row_norms,
    widen,
)
from curate.int8 import Block

Lengths = NDArray[np.intp]  # (K,) entries, of each list at most

LAST_POSITION = np.iinfo(np.int64).max
CHUNK_ROWS = 1024  # × 512 float32 is 2 MB: widened, multiplied and compared while in cache


@dataclass(frozen=True)
class Floor:
    """A key for each centroid: (K,) similarity and (K,) position."""

    similarity: NDArray[np.float64]
    position: NDArray[np.int64]

    @staticmethod
    def at(similarity: NDArray[np.float64]) -> Floor:
        """Everything at least this similar."""
        return Floor(similarity, np.full(len(similarity), LAST_POSITION))

    @staticmethod
    def bottom(k: int) -> Floor:
        """Everything there is."""
        return Floor.at(np.full(k, -np.inf))

    @staticmethod
    def top(k: int) -> Floor:
        """Nothing yet."""
        return Floor(np.full(k, np.inf), np.full(k, -1))

    @staticmethod
    def joined(parts: list[Floor]) -> Floor:
        """One after the other."""
        return Floor(
            np.concatenate([part.similarity for part in parts]),
            np.concatenate([part.position for part in parts]),
        )

    def only(self, which: NDArray[np.intp]) -> Floor:
        return Floor(self.similarity[which], self.position[which])

    def between(self, low: int, high: int) -> Floor:
        return Floor(self.similarity[low:high], self.position[low:high])


@dataclass(frozen=True)
class Candidates:
    """One entry a (centroid, image) pair, sorted by centroid, then by key."""

    centroid: NDArray[np.int32]
    similarity: NDArray[np.float64]
    position: NDArray[np.int64]
    floor: Floor

    @property
    def k(self) -> int:
        return len(self.floor.similarity)

    @staticmethod
    def none(floor: Floor) -> Candidates:
        return Candidates(np.empty(0, np.int32), np.empty(0), np.empty(0, np.int64), floor)

    def starts(self) -> NDArray[np.intp]:
        """(K + 1,): centroid q's list is entries starts[q] to starts[q + 1]."""
        return np.searchsorted(self.centroid, np.arange(self.k + 1))

    def between(self, low: int, high: int) -> Candidates:
        """The lists of centroids low … high - 1, which count from 0 in them."""
        entries = slice(*np.searchsorted(self.centroid, [low, high]).tolist())
        return Candidates(
            self.centroid[entries] - low,
            self.similarity[entries],
            self.position[entries],
            self.floor.between(low, high),
        )


def is_below(
    similarity: NDArray[np.float64], position: NDArray[np.int64], floor: Floor
) -> NDArray[np.bool_]:
    """Which keys come after the floor's, entry by entry."""
    return (similarity < floor.similarity) | (
        (similarity == floor.similarity) & (position > floor.position)
    )


def best(candidates: Candidates, lengths: Lengths) -> Candidates:
    """Sort, drop what lies below the floor, and keep the first entries of each list.

    A list that is cut gets its last entry for a floor.
    """
    keep = ~is_below(
        candidates.similarity,
        candidates.position,
        candidates.floor.only(candidates.centroid.astype(np.intp)),
    )
    centroid = candidates.centroid[keep]
    similarity = candidates.similarity[keep]
    position = candidates.position[keep]
    order = np.lexsort((position, -similarity, centroid))
    sorted_ = Candidates(centroid[order], similarity[order], position[order], candidates.floor)
    starts = sorted_.starts()
    cut = np.flatnonzero(np.diff(starts) > lengths)  # centroids
    if len(cut) == 0:
        return sorted_
    rank = np.arange(len(order)) - starts[sorted_.centroid]
    within = rank < lengths[sorted_.centroid]
    last = starts[cut] + lengths[cut] - 1
    floor = Floor(sorted_.floor.similarity.copy(), sorted_.floor.position.copy())
    floor.similarity[cut] = sorted_.similarity[last]
    floor.position[cut] = sorted_.position[last]
    return Candidates(
        sorted_.centroid[within], sorted_.similarity[within], sorted_.position[within], floor
    )


def scan(
    block: Block,
    first: int,
    centroids: Centroids,
    *,
    lengths: Lengths,
    floor: Floor,
    after: Floor | None = None,
    lead: Lead | None = None,
    only: NDArray[np.intp] | None = None,
) -> Candidates:
    """The candidates of one block of images, of which row i is at position first + i in plan order.

    lengths: at most so many a list. floor: nothing below it is wanted. after: nothing at or above
    it is wanted either (a list is being continued). lead: of these centroids, for blocks with int8
    copies. only: rows of the block, sorted; the others are no images of the set.

    Raises NotUnit for a row of the block that is no unit vector, where it is looked at in full.
    """
    found = Candidates.none(floor)
    fresh: list[Candidates] = []
    waiting, most = 0, max(int(lengths.sum()), 1 << 16)
    for here in _looked_at(block, lead, floor, only):
        rows = widen(block.rows[here])  # (c, D)
        try:
            check_unit(row_norms(rows))
        except NotUnit as error:
            raise NotUnit(int(here[error.row]), error.norm) from None
        near = rows @ centroids.f32.T  # (c, K), within centroids.error of the truth
        wanted = near >= float32(found.floor.similarity - centroids.error, towards=-np.inf)
        if after is not None:
            wanted &= near <= float32(after.similarity + centroids.error, towards=np.inf)
        row_of, centroid_of = np.divmod(np.flatnonzero(wanted), centroids.k)
        if len(row_of) == 0:
            continue
        similarity = exact_pairs(rows, centroids, row_of, centroid_of)
        position = here[row_of] + first
        if after is not None:
            new = is_below(similarity, position, after.only(centroid_of))
            similarity, position, centroid_of = similarity[new], position[new], centroid_of[new]
        fresh.append(Candidates(centroid_of.astype(np.int32), similarity, position, floor))
        waiting += len(similarity)
        if waiting > most:
            # Full lists have a higher floor from here on, and let less through
            found = best(_joined([found, *fresh], found.floor), lengths)
            fresh, waiting = [], 0
    return best(_joined([found, *fresh], found.floor), lengths)


def _looked_at(
    block: Block, lead: Lead | None, floor: Floor, only: NDArray[np.intp] | None
) -> Iterator[NDArray[np.intp]]:
    """Rows of the block, CHUNK_ROWS at a time: all, or those that the lead lets pass."""
    rows = np.arange(len(block.rows)) if only is None else only
    if lead is not None and block.int8 is not None:
        copies = block.int8 if only is None else block.int8[only]
        rows = rows[lead.may_reach(copies, floor.similarity)]
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def _joined(parts: list[Candidates], floor: Floor) -> Candidates:
    return Candidates(
        np.concatenate([part.centroid for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        np.concatenate([part.position for part in parts]),
        floor,
    )
