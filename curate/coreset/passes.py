"""One pass over all embedding shards: scan and merge, on Ray tasks.

    sample   a few rows of all shards → how similar the m-th best image of each centroid should be
    scan     every shard, in parallel → candidates down to that similarity
    merge    a tree of tasks          → one table of k lists of about m, whatever |U| is

The sample only saves work: a floor that it puts too high is made good by another pass, one too low
by cutting lists at twice m. What is found depends on neither, nor on how shards fall to tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate.cluster import results
from curate.coreset import similarity
from curate.coreset.candidates import Candidates, Floor, scan
from curate.coreset.merge import merge
from curate.coreset.similarity import Centroids, NotUnit
from curate.errors import CurateError
from curate.runfiles.shards import Shard, read_embeddings
from curate.storage import is_local

SAMPLE_ROWS = 16_384
SPARE = 1.25  # lists are aimed this much longer than asked, against the sample's noise
TASKS_PER_CPU = 4
MOST_ROWS = 4_000_000  # of one task
FAN_IN = 16
MAX_ENTRIES = 4_000_000  # of the merged table: 80 MB


@dataclass(frozen=True)
class Ask:
    """The lists that one target wants of a pass: of which centroids among those of all targets, how
    long, and after what."""

    which: NDArray[np.intp]
    length: int
    after: Floor | None = None


@dataclass(frozen=True)
class Scanned:
    """All shards, and the centroids of all targets."""

    groups: list[list[Shard]]
    centroids: Centroids
    sample: _Sample

    @staticmethod
    def prepare(shards: list[Shard], centroids: Centroids) -> Scanned:
        groups = _groups(shards)
        sample = _Sample.take(groups, ray.put(centroids), centroids.k)
        return Scanned(groups, centroids, sample)

    def lists(self, asks: list[Ask]) -> list[Candidates]:
        """What each asks for, by one pass; centroids count from 0 in each."""
        afters = [ask.after for ask in asks if ask.after is not None]
        found = _scan_all(
            self.groups,
            ray.put(self.centroids.only(np.concatenate([ask.which for ask in asks]))),
            Floor.joined([self.sample.only(ask.which).floor(ask.length) for ask in asks]),
            length=2 * max(ask.length for ask in asks),
            after=Floor.joined(afters) if afters else None,
        )
        bounds = np.cumsum([0, *(len(ask.which) for ask in asks)]).tolist()
        return [found.between(low, high) for low, high in pairwise(bounds)]


def _scan_all(
    groups: list[list[Shard]],
    centroids: ObjectRef,
    floor: Floor,
    *,
    length: int,
    after: Floor | None = None,
) -> Candidates:
    """Scan all shards and merge, FAN_IN tables at a time."""
    tables = [_scan_group.remote(group, centroids, floor, length, after) for group in groups]
    while len(tables) > FAN_IN:
        tables = [
            _merge_group.remote(length, *tables[i : i + FAN_IN])
            for i in range(0, len(tables), FAN_IN)
        ]
    return (
        merge(results(tables), length)
        if tables
        else Candidates.none(Floor.bottom(len(floor.similarity)))
    )


@ray.remote
def _scan_group(
    group: list[Shard], centroids: Centroids, floor: Floor, length: int, after: Floor | None
) -> Candidates:
    parts = [Candidates.none(floor)]
    entries = 0
    for shard in group:
        first = shard.first
        for block in read_embeddings(shard):
            if len(block) == 0:
                continue
            part = _checked(shard, first, block, centroids, length, parts[0].floor, after)
            parts.append(part)
            entries += len(part.centroid)
            if entries > 2 * centroids.k * length:  # bounds memory, and raises the floor
                parts = [merge(parts, length)]
                entries = len(parts[0].centroid)
            first += len(block)
        if first != shard.first + shard.rows:
            raise CurateError(
                f"{shard.uri}: {first - shard.first} rows where {shard.rows} were counted; "
                "it was changed or damaged: embed it again"
            )
    return merge(parts, length)


def _checked(
    shard: Shard,
    first: int,
    block: NDArray[np.floating],
    centroids: Centroids,
    length: int,
    floor: Floor,
    after: Floor | None,
) -> Candidates:
    """`scan`, with errors that name the file."""
    if block.shape[1] != centroids.f32.shape[1]:
        raise CurateError(
            f"{shard.uri}: embeddings of width {block.shape[1]}, centroids of width "
            f"{centroids.f32.shape[1]}; both must come from one encoder"
        )
    try:
        return scan(block, first, centroids, length=length, floor=floor, after=after)
    except NotUnit as error:
        row = error.row + first - shard.first + shard.start
        trouble = (
            "NaN or infinite: embed that image again, or leave it out"
            if not np.isfinite(block[error.row].astype(np.float32)).all()
            else f"of norm {error.norm:.4g}: L2-normalise embeddings first"
        )
        raise CurateError(f"{shard.uri}: the embedding in row {row} is {trouble}") from error


@ray.remote
def _merge_group(length: int, *tables: Candidates) -> Candidates:
    return merge(list(tables), length)


@dataclass(frozen=True)
class _Sample:
    """similarity (K, S): of sampled images, one in `every` of all."""

    similarity: NDArray[np.float32]
    every: float

    @staticmethod
    def take(groups: list[list[Shard]], centroids: ObjectRef, k: int) -> _Sample:
        """Evenly spread rows of every group; none of a set too small to be worth it."""
        total = sum(shard.rows for group in groups for shard in group)
        wanted = min(SAMPLE_ROWS, MAX_ENTRIES * 8 // k)
        if total < 4 * wanted:
            return _Sample(np.empty((k, 0), np.float32), 1.0)
        tables = results(
            [_sample_group.remote(group, centroids, wanted / total) for group in groups]
        )
        similarity = np.ascontiguousarray(np.concatenate(tables).T)
        return _Sample(similarity, total / max(similarity.shape[1], 1))

    def only(self, which: NDArray[np.intp]) -> _Sample:
        return _Sample(self.similarity[which], self.every)

    def floor(self, length: int) -> Floor:
        """The similarity that about `length` images of the whole set reach, for each centroid."""
        k, sampled = self.similarity.shape
        rank = sampled - int(np.ceil(SPARE * length / self.every))  # ascending
        if rank < 0:
            return Floor.bottom(k)
        reached = np.partition(self.similarity, rank, axis=1)[:, rank]
        return Floor.at(reached.astype(np.float64))


@ray.remote
def _sample_group(group: list[Shard], centroids: Centroids, fraction: float) -> NDArray[np.float32]:
    """(rows, K) similarities of about `fraction` of the group's rows.

    Runs of rows, so that reading stays sequential; of many shards only some are opened at all.
    """
    rows = sum(shard.rows for shard in group)
    wanted = max(1, int(rows * fraction))
    opened = group[:: max(1, len(group) // max(1, wanted // 256))]
    each = max(1, wanted // len(opened))
    parts = []
    for shard in opened:
        for block in read_embeddings(shard):
            if len(block) and block.shape[1] == centroids.f32.shape[1]:
                step = max(1, len(block) // each)
                parts.append(similarity.widen(block[::step][:each]) @ centroids.f32.T)
            break
    return np.concatenate(parts) if parts else np.empty((0, centroids.k), np.float32)


def _groups(shards: list[Shard]) -> list[list[Shard]]:
    """Neighbouring shards for one task each, of about equal rows; large files cut at row ranges."""
    total = sum(shard.rows for shard in shards)
    tasks = max(1, int(ray.cluster_resources().get("CPU", 1))) * TASKS_PER_CPU
    # Of a cluster that is scaled down as well, none is to take hours
    target = min(max(1, -(-total // tasks)), MOST_ROWS)
    groups: list[list[Shard]] = []
    room = 0
    for shard in shards:
        start = 0
        while start < shard.rows:
            if room <= 0:
                groups.append([])
                room = target
            # A remainder under a tenth of a task rides along with its file
            rows = shard.rows - start
            if rows > room + target // 10 and _can_be_cut(shard.uri):
                rows = room
            groups[-1].append(Shard(shard.uri, shard.start + start, rows, shard.first + start))
            start += rows
            room -= rows
    return groups


def _can_be_cut(uri: str) -> bool:
    """Whether a range of its rows can be read without reading the rest."""
    return is_local(uri) or uri.endswith(".parquet")
