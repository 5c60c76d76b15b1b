"""Candidates, merge and rounds over any number of embedding shards, on Ray tasks.

    sample   a few rows of all shards → how similar the m-th best image of each centroid should be
    scan     every shard, in parallel → candidates down to that similarity
    merge    a tree of tasks          → one table of k lists of about m, whatever |U| is
    rounds   on that table            → the coreset, or which lists ran out
    refill   scan and merge again for those lists alone, below where they ended, four times as far

The sample only saves work: a floor that it puts too high is made good by a refill, one too low by
cutting lists at twice m. The result depends on neither, nor on how shards fall to tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate.cluster import results
from curate.coreset import similarity
from curate.coreset.candidates import Candidates, Floor, scan
from curate.coreset.merge import extend, merge
from curate.coreset.rounds import RanOut, Selection, run_rounds
from curate.coreset.similarity import Centroids, NotUnit
from curate.errors import CurateError
from curate.runfiles.shards import Shard, read_embeddings
from curate.storage import is_local

SAMPLE_ROWS = 16_384
SPARE = 1.25  # lists are aimed this much longer than asked, against the sample's noise
GROWTH = 4  # of a list's length, at each refill
ALMOST = 0.5  # a list this far used is refilled along with those that ran out
TASKS_PER_CPU = 4
FAN_IN = 16
MAX_ENTRIES = 4_000_000  # of the merged table: 80 MB


@dataclass(frozen=True)
class Limits:
    """When the rounds stop. budget: images."""

    tau: float | None
    reference_round: int
    budget: int | None


def select(
    shards: list[Shard],
    centroids: NDArray[np.floating],
    limits: Limits,
    *,
    length: int | None = None,
    on_refill: Callable[[int, int], None] | None = None,
) -> Selection:
    """The coreset of all the shards' images, the same as the brute-force definition gives.

    centroids (K, D), unit rows. length: how long lists are at first; from k and the budget where
    unset. on_refill(lists, length) is told of each refill.

    Raises CurateError for embeddings of another width than the centroids, or not of unit norm.
    """
    try:
        ready = similarity.prepare(centroids)
    except NotUnit as error:
        raise CurateError(f"centroids: {error}; L2-normalise them") from error
    total = sum(shard.rows for shard in shards)
    length = length or first_length(ready.k, total, limits.budget)
    groups = _groups(shards)
    reference = ray.put(ready)
    sample = _Sample.take(groups, reference, ready.k)

    lists = _scan_all(groups, reference, sample.floor(length), length=2 * length)
    lengths = np.full(ready.k, length)
    while True:
        outcome = run_rounds(
            lists, tau=limits.tau, reference_round=limits.reference_round, budget=limits.budget
        )
        if isinstance(outcome, Selection):
            return outcome
        which = _worth_refilling(outcome, lists)
        lengths[which] *= GROWTH
        longest = int(lengths[which].max())
        if on_refill:
            on_refill(len(which), longest)
        more = _scan_all(
            groups,
            ray.put(ready.only(which)),
            sample.only(which).floor(longest),
            length=2 * longest,
            after=lists.floor.only(which),
        )
        lists = extend(lists, more, which)


def first_length(k: int, total: int, budget: int | None) -> int:
    """How long lists are at first: enough for most selections, little enough for memory."""
    # A threshold lets in a share of the open set, so that lists are walked the farther the more
    # images there are
    likely = max(100_000 // k, total // 5_000, 64)
    if budget is not None:
        # B / k rounds if no pick coincided; lists are walked faster than that, by what others took
        likely = max(likely, 3 * budget // k)
    return min(likely, max(MAX_ENTRIES // k, 64))


def _worth_refilling(outcome: RanOut, lists: Candidates) -> NDArray[np.intp]:
    """The lists that ran out, and those that soon will: a pass costs much the same for more."""
    soon = (outcome.used > ALMOST) & ~np.isneginf(lists.floor.similarity)
    soon[outcome.centroids] = True
    return np.flatnonzero(soon)


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
    target = max(1, -(-total // tasks))
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
