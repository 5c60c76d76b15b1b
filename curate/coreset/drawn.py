"""Rows of the open set drawn by a hash of their position: the same ones however it is sharded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import ray
from numpy.typing import NDArray

from curate.cluster import over_tasks, results
from curate.coreset.passes import groups
from curate.coreset.ratio import splitmix64
from curate.coreset.similarity import widen
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.shards import Shard

MOST_BYTES = 512 << 20
RUN_ROWS = 64  # side by side, of a set so large that single rows would open every shard
SHARDS_AT_ONCE = 16  # that one task opens
MOST_OPENED = 64  # times the rows that are drawn: sets beyond are drawn by runs


def draw(shards: list[Shard], most: int, seed: int) -> NDArray[np.floating]:
    """(n, D), in plan order: about `most` rows, all where there are no more."""
    total = sum(shard.rows for shard in shards)
    parts = [_draw.remote(group, total, most, seed) for group in groups(shards, per_cpu=1)]
    rows = _joined(results(parts))
    return rows[:: max(1, -(-rows.nbytes // MOST_BYTES))]


def is_drawn(positions: NDArray[np.int64], total: int, most: int, seed: int) -> NDArray[np.bool_]:
    """Which positions in plan order are drawn."""
    if most >= total:
        return np.ones(len(positions), bool)
    run = RUN_ROWS if total > most * MOST_OPENED else 1
    return _hash(positions // run, seed) < np.uint64(int(most / total * 2**64))


def some_of(positions: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the positions, sorted: the same ones in whatever order they come."""
    return np.sort(positions[np.argsort(_hash(positions, seed))[:most]])


def rows_at(shards: list[Shard], positions: NDArray[np.int64]) -> NDArray[np.floating]:
    """(n, D): the embeddings at some positions, sorted."""
    firsts = np.array([shard.first for shard in shards], np.int64)
    cuts = [*np.searchsorted(positions, firsts).tolist(), len(positions)]
    wanted = [
        (shard, positions[low:high] - shard.first)
        for shard, (low, high) in zip(shards, pairwise(cuts), strict=True)
        if low < high
    ]
    return _joined(over_tasks(_rows_at, wanted, SHARDS_AT_ONCE))


class RowsOf:
    """near.RowsAt of these shards, in memory from when they are first asked for."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self._known: dict[int, NDArray[np.float32]] = {}

    def ahead(self, position: NDArray[np.int64]) -> None:
        missing = np.unique([one for one in position.tolist() if one not in self._known])
        if len(missing):
            rows = widen(rows_at(self.shards, missing.astype(np.int64)))
            self._known |= zip(missing.tolist(), rows, strict=True)

    def __call__(self, position: NDArray[np.int64]) -> NDArray[np.float32]:
        self.ahead(position)
        return np.stack([self._known[one] for one in position.tolist()])


@ray.remote
def _rows_at(wanted: list[tuple[Shard, NDArray[np.int64]]]) -> NDArray[np.floating]:
    found: list[NDArray[np.floating]] = []
    for shard, rows in wanted:
        first = 0
        for block in read_embeddings(shard):
            found.append(block[rows[(rows >= first) & (rows < first + len(block))] - first])
            first += len(block)
    return _joined(found)


def _joined(parts: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    parts = [part for part in parts if len(part)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float16)


def _hash(numbers: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    return splitmix64(numbers.astype(np.uint64) + np.uint64(seed * 0x9E3779B9 + 1))


@ray.remote
def _draw(group: list[Shard], total: int, most: int, seed: int) -> NDArray[np.floating]:
    found: list[NDArray[np.floating]] = []
    for shard in group:
        positions = np.arange(shard.first, shard.first + shard.rows)
        drawn = is_drawn(positions, total, most, seed)
        if not drawn.any():
            continue  # of a shard that has none, nothing is read
        first = 0
        for block in read_embeddings(shard):
            found.append(block[drawn[first : first + len(block)]])
            first += len(block)
    return _joined(found)
