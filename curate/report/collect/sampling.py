"""Embeddings that a report needs, on Ray tasks: a seeded sample of each set, of few shards; and the
target images nearest to a centroid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from curate.cluster import over_tasks
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.shards import Shard

SHARDS_READ = 64  # of one set, at most
PER_TASK = 8  # shards
ROWS_AT_ONCE = 16_384
Rows = NDArray[np.float32]


def of_set(found: Sequence[Shard], wanted: int, seed: int) -> Rows:
    """(N, D): images drawn at random from up to SHARDS_READ shards drawn at random."""
    rng = np.random.default_rng(seed)
    opened = _some(found, rng)
    ends = np.cumsum([shard.rows for shard in opened])
    total = int(ends[-1]) if len(ends) else 0
    places = np.sort(rng.choice(total, min(wanted, total), replace=False))
    return _rows_of(opened, places, ends)


def at_positions(found: Sequence[Shard], positions: NDArray[np.int64], seed: int) -> Rows:
    """(N, D): the images at these places in plan order, as many as lie in SHARDS_READ shards."""
    ordered = np.sort(positions)
    inside = [s for s in found if np.searchsorted(ordered, s.first + s.rows) > _at(ordered, s)]
    opened = _some(inside, np.random.default_rng(seed))
    own = [ordered[_at(ordered, s) : np.searchsorted(ordered, s.first + s.rows)] for s in opened]
    takes = [(shard, places - shard.first) for shard, places in zip(opened, own, strict=True)]
    return _joined(over_tasks(_take, takes, PER_TASK))


def nearest(found: Sequence[Shard], centroids: Rows, each: int) -> list[list[dict[str, Any]]]:
    """For each centroid (K, D), the rows of the `each` images most similar to it, best first."""
    best = _Best.of(over_tasks(_nearest, list(found), PER_TASK, centroids, each), each)
    firsts = np.array([shard.first for shard in found])
    wanted = np.unique(best.position)
    which = np.searchsorted(firsts, wanted, side="right") - 1
    takes = [
        (shard, wanted[which == number] - shard.first)
        for number, shard in enumerate(found)
        if (which == number).any()
    ]
    rows = [row for part in over_tasks(_columns, takes, PER_TASK) for row in part]
    places = np.searchsorted(wanted, best.position)
    return [[rows[place] for place in one] for one in places.tolist()]


@dataclass(frozen=True)
class _Best:
    """(K, n) each: the best images so far of every centroid, best first."""

    similarity: Rows
    position: NDArray[np.int64]

    @staticmethod
    def none(k: int) -> _Best:
        return _Best(np.empty((k, 0), np.float32), np.empty((k, 0), np.int64))

    @staticmethod
    def of(parts: list[_Best], each: int) -> _Best:
        """The best of all; of equals the first."""
        similarity = np.concatenate([part.similarity for part in parts], axis=1)
        position = np.concatenate([part.position for part in parts], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :each]
        return _Best(
            np.take_along_axis(similarity, order, axis=1),
            np.take_along_axis(position, order, axis=1),
        )


def label_counts(found: Sequence[Shard]) -> Counter[str | None]:
    """Images of each label in a set."""
    return reduce(add, over_tasks(_labels, list(found), PER_TASK), Counter())


def _at(ordered: NDArray[np.int64], shard: Shard) -> int:
    return int(np.searchsorted(ordered, shard.first))


def _some(found: Sequence[Shard], rng: np.random.Generator) -> list[Shard]:
    if len(found) <= SHARDS_READ:
        return list(found)
    return [found[i] for i in np.sort(rng.choice(len(found), SHARDS_READ, replace=False))]


def _rows_of(opened: list[Shard], places: NDArray[np.int64], ends: NDArray[np.int64]) -> Rows:
    """places: among all the rows of the opened shards, one after the other; sorted."""
    which = np.searchsorted(ends, places, side="right")
    takes = [
        (shard, places[which == i] - (ends[i] - shard.rows))
        for i, shard in enumerate(opened)
        if (which == i).any()
    ]
    return _joined(over_tasks(_take, takes, PER_TASK))


def _joined(parts: list[Rows]) -> Rows:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.empty((0, 0), np.float32)


def _read(shard: Shard) -> pa.Table:
    try:
        table = shards.read_arrow(shard.uri)
        table.schema.field("embedding")
    except (CurateError, KeyError) as error:
        raise shards.not_of_this_run(shard.uri, error) from error
    return table


def _matrix(table: pa.Table) -> Rows:
    """The embeddings of some rows of a shard."""
    column = table["embedding"].combine_chunks()
    if not len(column):
        return np.empty((0, 0), np.float32)
    values = np.from_dlpack(column.flatten())  # to_numpy() would import pandas
    return np.asarray(values, np.float32).reshape(len(column), -1)


@ray.remote
def _take(wanted: list[tuple[Shard, NDArray[np.int64]]]) -> Rows:
    return _joined([_matrix(_read(shard).take(pa.array(rows))) for shard, rows in wanted])


@ray.remote
def _nearest(group: list[Shard], centroids: Rows, each: int) -> _Best:
    """The images most similar to each centroid, (K, each)."""
    best = _Best.none(len(centroids))
    for shard in group:
        first = shard.first
        for batch in _read(shard).to_batches(ROWS_AT_ONCE):
            part = _matrix(pa.table(batch))
            if part.shape[1] != centroids.shape[1]:
                raise CurateError(f"{shard.uri}: embeddings of another width than the centroids")
            similar = centroids @ part.T
            top = min(each, len(part))
            rows = np.sort(np.argpartition(-similar, top - 1, axis=1)[:, :top], axis=1)
            found = _Best(np.take_along_axis(similar, rows, axis=1), rows + first)
            best = _Best.of([best, found], each)
            first += len(part)
    return best


@ray.remote
def _columns(wanted: list[tuple[Shard, NDArray[np.int64]]]) -> list[dict[str, Any]]:
    return [
        row
        for shard, rows in wanted
        for row in shards.read_columns(shard.uri).take(pa.array(rows)).to_pylist()
    ]


@ray.remote
def _labels(group: list[Shard]) -> Counter[str | None]:
    found: Counter[str | None] = Counter()
    for shard in group:
        for pair in _read(shard)["label"].value_counts().to_pylist():
            found[pair["values"]] += pair["counts"]
    return found
