"""The images of the highest score, by one pass over all shards, on Ray tasks.

sample   a few rows         → a floor, somewhat under the score of the last image wanted
scan     some shards each   → scores and positions from the floor up
merge                       → the best, ties by plan order
"""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from curate.cluster import over_tasks, results
from curate.coreset.allowed import Allowed
from curate.coreset.candidates import CHUNK_ROWS, Candidates, Floor
from curate.coreset.drawn import draw
from curate.coreset.merge import merge
from curate.coreset.passes import blocks_of, groups, naming
from curate.coreset.ratio import Score, Scores
from curate.coreset.sample import spared
from curate.coreset.similarity import check_unit, row_norms, widen
from curate.runfiles.shards import Shard

SAMPLED = 20_000
SEED = 1
DEEPER = 4  # times as far down, where the sample was wrong
SHARDS_AT_ONCE = 16  # that one task counts in


def best_by(
    shards: list[Shard], score: Score, count: int, allowed: Allowed | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions in plan order and scores of the `count` best, the best first, ties by position; of
    all images where there are no more."""
    images = sum(shard.rows for shard in shards)
    total = images if allowed is None else allowed.count
    if not min(total, count):
        return np.empty(0, np.int64), np.empty(0)
    sample = np.sort(score.exact(widen(draw(shards, SAMPLED, SEED))))[::-1]
    rank = float(count) * len(sample) / total
    known, may_be = ray.put(score), ray.put(allowed)
    while True:
        place = int(spared(np.array([rank]))[0])
        floor = Floor.at(np.array([sample[place] if place < len(sample) else -np.inf]))
        scans = [_scan.remote(group, known, floor, count, may_be) for group in groups(shards)]
        parts = results(scans)
        if sum(len(part.position) for part in parts) >= min(count, total):
            found = merge([Candidates.none(floor), *parts], np.array([count]))
            return found.position, found.similarity
        rank = DEEPER * max(rank, 1.0)


def counts_above(shards: list[Shard], score: Score, bars: Scores) -> NDArray[np.int64]:
    """How many images have at least each of these scores (falling)."""
    parts = over_tasks(_count, shards, SHARDS_AT_ONCE, score, bars)
    return np.sum([np.zeros(len(bars), np.int64), *parts], axis=0)


@ray.remote
def _scan(
    group: list[Shard], score: Score, floor: Floor, count: int, allowed: Allowed | None
) -> Candidates:
    lengths = np.array([count])
    parts = [Candidates.none(floor)]
    waiting = 0
    for shard, first, block in blocks_of(group, CHUNK_ROWS):
        lowest = float(parts[0].floor.similarity[0])
        rows = widen(block.rows)
        with naming(shard, first, block):
            check_unit(row_norms(rows))
        near, error = score.rough(rows)
        here = np.flatnonzero(near >= lowest - error)
        if allowed is not None:
            here = np.intersect1d(here, allowed.rows(first, len(rows)))
        exact = score.exact(rows[here])
        here, exact = here[exact >= lowest], exact[exact >= lowest]
        order = np.argsort(-exact, kind="stable")
        position = (here + first)[order]
        centroid = np.zeros(len(order), np.int32)
        parts.append(Candidates(centroid, exact[order], position, parts[0].floor))
        waiting += len(order)
        if waiting > 2 * count + (1 << 16):
            parts, waiting = [merge(parts, lengths)], 0
    return merge(parts, lengths)


@ray.remote
def _count(group: list[Shard], score: Score, bars: Scores) -> NDArray[np.int64]:
    found = np.zeros(len(bars), np.int64)
    for _, _, block in blocks_of(group, CHUNK_ROWS):
        exact = np.sort(score.exact(widen(block.rows)))
        found += len(exact) - np.searchsorted(exact, bars)
    return found
