"""Embeddings and labels that a report needs, on Ray tasks: a seeded sample of each set, of few
shards; the target images nearest to a centroid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from curate.cluster import over_tasks
from curate.errors import CurateError
from curate.runfiles import columns, embeddings, shards
from curate.runfiles.shards import Shard

SHARDS_READ = 64  # of one set, at most
PER_TASK = 8  # shards
ROWS_AT_ONCE = 16_384
Rows = NDArray[np.float32]
Positions = NDArray[np.int64]  # in plan order
Labels = Counter[str | None]


def spread(total: int, wanted: int) -> list[int]:
    """At most `wanted` of `total` places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, wanted)).astype(int)).tolist()


def of_set(found: Sequence[Shard], wanted: int, seed: int) -> Rows:
    """(N, D): images drawn at random from up to SHARDS_READ shards drawn at random."""
    rng = np.random.default_rng(seed)
    opened = _some(found, rng)
    among = [np.arange(shard.first, shard.first + shard.rows) for shard in opened]
    positions = np.concatenate([np.empty(0, np.int64), *among])
    drawn = rng.choice(positions, min(wanted, len(positions)), replace=False)
    return _embeddings(_holding(opened, np.sort(drawn)), np.sort(drawn))


def at_positions(found: Sequence[Shard], positions: Positions, seed: int) -> Rows:
    """(N, D): the images at these positions, as many as lie in SHARDS_READ shards."""
    ordered = np.sort(positions)
    return _embeddings(_some(_holding(found, ordered), np.random.default_rng(seed)), ordered)


def nearest(found: Sequence[Shard], centroids: Rows, each: int) -> Positions:
    """centroids (K, D) → (K, each): positions of the images most similar to each, best first, of
    equals the first."""
    parts = over_tasks(_nearest, list(found), PER_TASK, centroids, each)
    return _best(parts, each).position


def label_counts(found: Sequence[Shard]) -> Labels:
    """Images of each label in a set."""
    return reduce(add, over_tasks(_labels, list(found), PER_TASK), Counter())


def count_labels(table: pa.Table) -> Labels:
    pairs = table["label"].value_counts().to_pylist()
    return Counter({pair["values"]: pair["counts"] for pair in pairs})


def _some(found: Sequence[Shard], rng: np.random.Generator) -> list[Shard]:
    if len(found) <= SHARDS_READ:
        return list(found)
    return [found[i] for i in np.sort(rng.choice(len(found), SHARDS_READ, replace=False))]


def _holding(found: Sequence[Shard], positions: Positions) -> list[Shard]:
    """The shards that hold any of the sorted positions."""
    bounds = [np.searchsorted(positions, [s.first, s.first + s.rows]) for s in found]
    return [shard for shard, (low, high) in zip(found, bounds, strict=True) if low < high]


def _embeddings(opened: list[Shard], positions: Positions) -> Rows:
    """(N, D): of those of the sorted positions that the shards hold."""
    parts = over_tasks(_take, opened, PER_TASK, positions)
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _blocks(shard: Shard) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """The embeddings of a shard as blocks (n, D), each with the position of its first row."""
    first = shard.first
    try:
        for block in embeddings.read_embeddings(shard):
            yield first, block
            first += len(block)
    except CurateError as error:
        raise shards.not_of_this_run(shard.uri, error) from error


@ray.remote
def _take(group: list[Shard], positions: Positions) -> Rows:
    parts = []
    for shard in group:
        for first, block in _blocks(shard):
            low, high = np.searchsorted(positions, [first, first + len(block)])
            parts.append(block[positions[low:high] - first].astype(np.float32))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Nearest:
    """(K, n) each: images of every centroid, in plan order where they are equally similar."""

    similarity: Rows
    position: Positions


def _best(parts: list[_Nearest], each: int) -> _Nearest:
    similarity = np.concatenate([part.similarity for part in parts], axis=1)
    position = np.concatenate([part.position for part in parts], axis=1)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :each]
    return _Nearest(*(np.take_along_axis(one, order, axis=1) for one in (similarity, position)))


@ray.remote
def _nearest(group: list[Shard], centroids: Rows, each: int) -> _Nearest:
    best: list[_Nearest] = []
    for shard in group:
        for first, block in _blocks(shard):
            if block.shape[1] != centroids.shape[1]:
                raise CurateError(f"{shard.uri}: embeddings of another width than the centroids")
            for start in range(0, len(block), ROWS_AT_ONCE):
                rows = block[start : start + ROWS_AT_ONCE].astype(np.float32)
                similar = centroids @ rows.T
                positions = np.broadcast_to(first + start + np.arange(len(rows)), similar.shape)
                best = [_best([*best, _Nearest(similar, positions)], each)]
    return _best(best, each)


@ray.remote
def _labels(group: list[Shard]) -> Labels:
    found: Labels = Counter()
    for shard in group:
        try:
            found += count_labels(columns.read(shard.uri, ["label"]))
        except (CurateError, KeyError) as error:
            raise shards.not_of_this_run(shard.uri, error) from error
    return found
