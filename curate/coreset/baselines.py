"""What a selection is compared with: a random sample, the oracle's classes, the whole open set."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curate.cluster import over_tasks
from curate.coreset.rounds import Selection
from curate.runfiles import columns
from curate.runfiles.shards import Shard

SHARDS_AT_ONCE = 64  # that one task opens for their labels


def random_sample(positions: NDArray[np.int64], budget: int | None, seed: int) -> Selection:
    """`budget` of the positions, all where it is None, without replacement, in plan order."""
    if budget is None or budget >= len(positions):
        return Selection.of_baseline(positions, "open set used up")
    rng = np.random.default_rng(seed)
    picks = np.sort(rng.choice(len(positions), budget, replace=False, shuffle=False))
    return Selection.of_baseline(positions[picks], "budget")


def labelled(shards: list[Shard], labels: list[str]) -> NDArray[np.int64]:
    """Positions of all images with one of the labels, sorted."""
    parts = over_tasks(_labelled, shards, SHARDS_AT_ONCE, labels)
    return np.concatenate([np.empty(0, np.int64), *parts])


@ray.remote
def _labelled(shards: list[Shard], labels: list[str]) -> NDArray[np.int64]:
    wanted = pa.array(labels, pa.string())
    found = [np.empty(0, np.int64)]
    for shard in shards:
        is_in = pc.is_in(columns.read(shard.uri, ["label"])["label"], value_set=wanted)
        rows = np.flatnonzero(is_in.to_numpy())
        rows = rows[(rows >= shard.start) & (rows < shard.start + shard.rows)]
        found.append(rows - shard.start + shard.first)
    return np.concatenate(found)
