"""A sample of the open set: how far down each list the rounds will go, before a pass is made.

The rounds are rehearsed on the sample, an open set of its own with a share of the images: of how
far they walk there, and how near its images lie, follows what a pass has to bring. None of it
decides what is selected. A list that a bad guess leaves too short costs another pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from curate.cluster import results
from curate.coreset import similarity
from curate.coreset.allowed import Allowed
from curate.coreset.candidates import Floor
from curate.coreset.lists import ENTRY, InMemory, Lists, Piece
from curate.coreset.passes import groups
from curate.coreset.quotas import Quota
from curate.coreset.rounds import Limits, RanOut, Rounds
from curate.coreset.similarity import Centroids
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.shards import Shard

SHARE = 1 / 600
LEAST_ROWS = 16_384
MOST_ENTRIES = 4_000_000  # that are kept of all lists
LISTED = 1 / 8  # of the sample, in each list: deeper than nearly all selections
RUN_ROWS = 256  # of one shard at least, of many small ones
SIDE_BY_SIDE = 4  # rows of 512 dimensions fill a page, and a page is what is read
MERGED_AT_ONCE = 16_000_000  # entries


@dataclass(frozen=True)
class Sample:
    """similarity, position (K, R): of each centroid the sampled images that are most similar, best
    first, in float32; images: where those that any list has, by their position in the sample, lie
    in plan order; every: images of the open set for each sampled one."""

    similarity: NDArray[np.float32]
    position: NDArray[np.int64]
    images: NDArray[np.int64]
    every: float
    is_all: bool  # whether no sampled image is left out of a list

    @staticmethod
    def take(
        shards: list[Shard], centroids: Centroids, allowed: Allowed | None = None
    ) -> Sample | None:
        """Evenly spread rows; None of a set too small to be worth it."""
        total = sum(shard.rows for shard in shards) if allowed is None else allowed.count
        wanted = max(LEAST_ROWS, int(total * SHARE))
        if total < 4 * wanted:
            return None
        most = max(1, min(int(wanted * LISTED), MOST_ENTRIES // centroids.k))
        known = ray.put(centroids)
        may_be: Any = None if allowed is None else ray.put(allowed)
        tables = [
            _sample_group.remote(group, known, wanted / total, most, may_be)
            for group in groups(shards, per_cpu=1)
        ]
        fan_in = max(2, MERGED_AT_ONCE // (centroids.k * most))
        while len(tables) > fan_in:
            tables = [
                _merge_samples.remote(most, *tables[i : i + fan_in])
                for i in range(0, len(tables), fan_in)
            ]
        near, position, sampled = _merged(most, results(tables))
        order = np.argsort(-near, axis=1)
        near = np.take_along_axis(near, order, axis=1)
        position = np.take_along_axis(position, order, axis=1)
        # Positions in the sample alone: what is taken is known by a bit each
        images, position = np.unique(position, return_inverse=True)
        position = position.reshape(near.shape)
        return Sample(near, position, images, total / max(sampled, 1), near.shape[1] == sampled)

    def only(self, which: NDArray[np.intp]) -> Sample:
        return replace(self, similarity=self.similarity[which], position=self.position[which])

    def rank_of(self, floor: Floor) -> NDArray[np.int64]:
        """(K,) how many entries of each list come at or before the floor."""
        return (self.similarity >= floor.similarity[:, None]).sum(axis=1)

    def floor(self, ranks: NDArray[np.float64]) -> Floor:
        """The similarity of the entry of each rank (K,), from 1; below everything beyond the
        last."""
        k, listed = self.similarity.shape
        place = np.minimum(ranks, listed).astype(np.intp) - 1
        reached = self.similarity[np.arange(k), place].astype(np.float64)
        return Floor.at(np.where(ranks > listed, -np.inf, reached))

    def ranks(
        self, budget: int | None, threshold: float | None, quotas: list[Quota]
    ) -> NDArray[np.float64]:
        """How many entries each centroid walks past until the selection ends, (K,), the last one
        as well; infinity where the sample does not say."""
        k, listed = self.similarity.shape
        entries = np.empty(k * listed, ENTRY)
        entries["similarity"] = self.similarity.ravel()
        entries["position"] = self.position.ravel()
        end = np.full(k, -np.inf) if self.is_all else self.similarity[:, -1].astype(np.float64)
        lists = Lists(k)
        lists.add(Piece(np.arange(k), np.full(k, listed), Floor.at(end), InMemory(entries)))
        scaled = None if budget is None else math.ceil(budget / self.every)
        # Of a quota as of the budget, the sample's share
        own = [
            Quota(q.codes[self.images], np.ceil(q.most / self.every).astype(np.int64))
            for q in quotas
        ]
        limits = Limits(None, 1, scaled)
        rehearsal = Rounds(lists, k * listed, limits, threshold=threshold, quotas=own)
        outcome = rehearsal.run()
        used = rehearsal.used().astype(np.float64) + 1
        if isinstance(outcome, RanOut):
            used[outcome.centroids] = np.inf
        return used


def spared(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks that are rather too far down than too far up: of m entries of a sample, it might as
    well have been m ± √m."""
    return np.ceil(ranks + 2 * np.sqrt(ranks) + 1)


# (K, R) both, positions of all lists (R,) where they hold the same; images sampled
_Table = tuple[NDArray[np.float32], NDArray[np.int64], int]


@ray.remote
def _sample_group(
    group: list[Shard],
    centroids: Centroids,
    fraction: float,
    most: int,
    allowed: Allowed | None,
) -> _Table:
    """About `fraction` of the group's rows; of many shards only some are opened at all."""
    rows = sum(shard.rows for shard in group)
    if allowed is not None:
        rows = len(allowed.rows(group[0].first, rows))
    wanted = max(1, int(rows * fraction))
    opened = group[:: max(1, len(group) // max(1, wanted // RUN_ROWS))]
    each = max(1, wanted // len(opened))
    blocks, positions = [], [np.empty(0, np.int64)]
    for shard in opened:
        for block in read_embeddings(shard):
            if len(block) and block.shape[1] == centroids.f32.shape[1]:
                chosen = _spread(len(block), each)
                if allowed is not None:
                    inside = allowed.rows(shard.first, len(block))
                    chosen = inside[_spread(len(inside), each)]
                blocks.append(similarity.widen(block[chosen]) @ centroids.f32.T)
                positions.append(chosen + shard.first)
            break
    near = np.concatenate([np.empty((0, centroids.k), np.float32), *blocks])
    table = np.ascontiguousarray(near.T), np.concatenate(positions), len(near)
    return table if len(near) <= most else _merged(most, [table])


def _spread(rows: int, wanted: int) -> NDArray[np.intp]:
    """About so many places among the rows, a page's worth side by side."""
    starts = np.arange(0, rows, max(1, rows // max(wanted, 1)) * SIDE_BY_SIDE)
    places = (starts[:, None] + np.arange(SIDE_BY_SIDE)).reshape(-1)
    return places[places < rows][:wanted]


@ray.remote
def _merge_samples(most: int, *tables: _Table) -> _Table:
    return _merged(most, list(tables))


def _merged(most: int, tables: list[_Table]) -> _Table:
    """The `most` best of each list, in any order."""
    near = np.concatenate([table[0] for table in tables], axis=1)
    positions = [np.broadcast_to(position, values.shape) for values, position, _ in tables]
    position = np.concatenate(positions, axis=1)
    if near.shape[1] > most:
        best = np.argpartition(near, near.shape[1] - most, axis=1)[:, -most:]
        near = np.take_along_axis(near, best, axis=1)
        position = np.take_along_axis(position, best, axis=1)
    return near, position, sum(table[2] for table in tables)
