"""Each centroid's walk down its list of candidates, past what is taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.coreset.lists import Lists
from curate.coreset.near import Near
from curate.coreset.quotas import Room

MOST_READ = 4096  # entries of a list at a time
MOST_WITH_ROWS = 256  # where their embeddings are held as well
MOST_HELD = 1 << 21  # of all lists: 32 MB


class Walks:
    """Where each centroid's walk stands: position and similarity (K,) of its head.

    Of each list a few entries are held, (K, B) arrays, those not that were taken when they were
    read. The position after a list's last is `images`, which no round takes.
    """

    def __init__(self, lists: Lists, images: int, room: Room, near: Near | None) -> None:
        k = lists.k
        self.lists, self.end, self._room, self._near = lists, images, room, near
        self.position = np.full(k, images, np.int64)
        self.similarity = np.full(k, -np.inf)
        self._taken = np.zeros(images // 8 + 1, np.uint8)
        most = MOST_READ if near is None else MOST_WITH_ROWS
        self._block = int(np.clip(MOST_HELD // max(k, 1), 64, most))
        self._positions = np.empty((k, self._block), np.int64)
        self._similarities = np.empty((k, self._block))
        self._at = np.zeros(k, np.intp)  # of the head, in what is held
        self._held = np.zeros(k, np.intp)
        self._read = np.zeros(k, np.int64)  # entries of the list

    def to_next(self) -> NDArray[np.intp]:
        """Move every head to the first entry that is not taken; which lists end before."""
        dry = self._to_next()
        if self._near is None:
            return dry
        known = np.array([self.end])
        while len(heads := np.setdiff1d(self.position, known)):
            copies = heads[self._near.is_copy(heads)]
            self.take(copies)
            known = np.concatenate([known, heads])
            dry = self._to_next()
        return dry

    def _to_next(self) -> NDArray[np.intp]:
        at_end = self.position == self.end
        moving = np.flatnonzero(at_end | self._is_taken(self.position))
        while len(moving):
            # One that stood at the end may have more to read by now, and nothing to step over
            self._at[moving] += self.position[moving] != self.end
            short = moving[self._at[moving] >= self._held[moving]]
            for q in short.tolist():
                self._load(q)
            if self._near is not None and len(short):
                held = [self._positions[q, : self._held[q]] for q in short]
                self._near.rows.ahead(np.unique(np.concatenate(held)))
            there = self._held[moving] > 0
            ended = moving[~there]
            self.position[ended], self.similarity[ended] = self.end, -np.inf
            moving = moving[there]
            self.position[moving] = self._positions[moving, self._at[moving]]
            self.similarity[moving] = self._similarities[moving, self._at[moving]]
            moving = moving[self._is_taken(self.position[moving])]
        return np.flatnonzero(self.position == self.end)

    def used(self) -> NDArray[np.int64]:
        """Entries of each list that are behind, about: those that were taken when read count."""
        return self._read - np.maximum(self._held - self._at, 0)

    def take(self, position: NDArray[np.int64]) -> None:
        """Distinct images."""
        np.bitwise_or.at(self._taken, position >> 3, _bit(position))

    def _is_taken(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Or cannot be any more; never the position after the last."""
        taken: NDArray[np.bool_] = (self._taken[position >> 3] & _bit(position)) != 0
        if self._room.is_bound:
            inside = ~taken & (position != self.end)
            taken[inside] = self._room.is_full(position[inside])
        return taken

    def behind(self) -> NDArray[np.int64]:
        """Distinct images, sorted, that some head has passed, or stands on and they are taken."""
        passed = [np.empty(0, np.int64)]
        for q in range(self.lists.k):
            start = 0
            while start < self._read[q]:
                entries = self.lists.read(q, start, int(self._read[q]) - start)["position"]
                at = np.flatnonzero(entries == self.position[q])
                start += len(entries)
                if len(at):
                    passed.append(entries[: at[0] + int(self._is_taken(entries[at])[0])])
                    break
                passed.append(entries)
        return np.unique(np.concatenate(passed))

    def _load(self, q: int) -> None:
        """The list's next entries that are not taken; none where it ends."""
        self._at[q] = self._held[q] = 0
        while not self._held[q]:
            entries = self.lists.read(q, int(self._read[q]), self._block)
            if not len(entries):
                return
            self._read[q] += len(entries)
            left = entries[~self._is_taken(entries["position"])]
            self._positions[q, : len(left)] = left["position"]
            self._similarities[q, : len(left)] = left["similarity"]
            self._held[q] = len(left)


def _bit(position: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.left_shift(1, position & 7).astype(np.uint8)
