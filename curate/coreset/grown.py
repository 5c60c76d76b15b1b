"""Lists of an open set that has grown, or lost some of its units: what is new is merged into what
is known, and nothing else is scanned.

An image's place in plan order may be another by now, and places decide between images that are
equally similar. So of a list that ends among such images those at its end are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.coreset.candidates import LAST_POSITION, Candidates, Floor
from curate.coreset.kept import Kept, is_of, name_of
from curate.coreset.lists import Lists, Piece
from curate.coreset.passes import Ask, one_pass
from curate.coreset.similarity import Centroids
from curate.runfiles.shards import Shard

AT_LEAST = 64  # entries that a list may get longer by


def grow(
    lists: Lists, made_of: list[Shard], now: list[Shard], centroids: Centroids, kept: Kept
) -> list[Piece] | None:
    """Pieces of the lists of all shards, which are kept; None where the shards are as they were.

    made_of: the shards that the lists are of; centroids: those of the lists.
    """
    if is_of(made_of, now):
        return None
    known = {name_of(shard) for shard in made_of}
    floor = _above_ties(lists.floor)
    older = _Older(lists, floor, *_moves(made_of, now))
    which = np.arange(lists.k)
    lengths = np.maximum(lists.lengths, AT_LEAST).astype(np.intp)
    ask = Ask(which, lengths, floor, uri=kept.pattern(), older=older)
    (pieces,) = one_pass([s for s in now if name_of(s) not in known], centroids, [ask])
    kept.replace(now, pieces)
    return pieces


def _above_ties(floor: Floor) -> Floor:
    """The floors that do not depend on places."""
    by_place = floor.position != LAST_POSITION
    above = np.where(by_place, np.nextafter(floor.similarity, np.inf), floor.similarity)
    return Floor.at(above)


def _moves(made_of: list[Shard], now: list[Shard]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of the shards `made_of` where it begins, and by how far it has moved in plan order:
    before the beginning where it is gone."""
    firsts = {name_of(shard): shard.first for shard in now}
    began = np.array([shard.first for shard in made_of], np.int64)
    begins = np.array([firsts.get(name_of(shard), -LAST_POSITION) for shard in made_of], np.int64)
    return began, begins - began


@dataclass(frozen=True)
class _Older:
    """What is known of the lists: an Ask's `older`."""

    lists: Lists
    floor: Floor
    began: NDArray[np.int64]
    moved: NDArray[np.int64]

    def __call__(self, low: int, high: int) -> Candidates:
        entries = [self.lists.all_of(q) for q in range(low, high)]
        centroid = np.repeat(np.arange(high - low, dtype=np.int32), [len(one) for one in entries])
        joined = np.concatenate(entries)
        position = joined["position"]
        position = position + self.moved[np.searchsorted(self.began, position, "right") - 1]
        there = position >= 0
        return Candidates(
            centroid[there],
            joined["similarity"][there],
            position[there],
            self.floor.between(low, high),
        )
