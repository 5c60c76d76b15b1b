"""Each centroid's list of candidates as the rounds walk it: pieces, one below the other.

A pass over the open set finds a piece of some lists, from where they ended down to a floor. Pieces
lie in memory or in files, and are read a few entries at a time: most of a list is never walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curate.coreset.candidates import Candidates, Floor

ENTRY = np.dtype([("similarity", "<f8"), ("position", "<i8")])  # position in plan order
Entries = NDArray[np.void]  # of ENTRY


class Held(Protocol):
    """Where a piece's entries are."""

    def read(self, start: int, stop: int) -> Entries: ...


@dataclass(frozen=True)
class InMemory:
    entries: Entries

    def read(self, start: int, stop: int) -> Entries:
        return self.entries[start:stop]


@dataclass(frozen=True)
class Piece:
    """Entries of the lists of some centroids, one list after the other, each in order.

    which (R,): the centroids; lengths (R,): of their entries; floor: down to where they are whole.
    """

    which: NDArray[np.intp]
    lengths: NDArray[np.int64]
    floor: Floor
    held: Held


def piece_of(found: Candidates, which: NDArray[np.intp]) -> Piece:
    """Centroid q of `found` is which[q]."""
    return Piece(which, np.diff(found.starts()), found.floor, InMemory(entries_of(found)))


def entries_of(found: Candidates) -> Entries:
    entries = np.empty(len(found.position), ENTRY)
    entries["similarity"], entries["position"] = found.similarity, found.position
    return entries


class Lists:
    """K lists, as far as they are known."""

    def __init__(self, k: int) -> None:
        self.lengths = np.zeros(k, np.int64)
        self.floor = Floor.top(k)
        self._parts: list[list[tuple[Held, int, int]]] = [[] for _ in range(k)]

    @property
    def k(self) -> int:
        return len(self.lengths)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(K,) the lists that hold the whole open set."""
        return np.isneginf(self.floor.similarity)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any list."""
        return bool(np.isposinf(self.floor.similarity).all())

    def add(self, piece: Piece) -> None:
        """Continue some lists below where they ended."""
        start = 0
        for q, length in zip(piece.which.tolist(), piece.lengths.tolist(), strict=True):
            if length:
                self._parts[q].append((piece.held, start, start + length))
            start += length
        self.lengths[piece.which] += piece.lengths
        self.floor.similarity[piece.which] = piece.floor.similarity
        self.floor.position[piece.which] = piece.floor.position

    def read(self, q: int, start: int, count: int) -> Entries:
        """Of list q up to `count` entries from `start` on; fewer where a piece ends, none only
        where the list does."""
        for held, low, high in self._parts[q]:
            if start < high - low:
                return held.read(low + start, min(low + start + count, high))
            start -= high - low
        return np.empty(0, ENTRY)

    def all_of(self, q: int) -> Entries:
        """The whole list."""
        parts = [held.read(low, high) for held, low, high in self._parts[q]]
        return np.concatenate([np.empty(0, ENTRY), *parts])
