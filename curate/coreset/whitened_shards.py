"""Whitened copies of a run's embedding shards, on Ray; the originals stay.

shards ──> moments ─sum─> whitening ──> `output`/whitened
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import results
from curate.coreset.whitening import Moments, Whitening
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.shards import Shard

FOLDER = "whitened"  # under a run's output
SHARDS_AT_ONCE = 16  # that one task reads


def whitened(
    target: list[Shard], open_set: list[Shard], dims: int, folder: str, fingerprint: str
) -> tuple[list[Shard], list[Shard]]:
    """Both sets' shards, whitened by the open set's statistics, at the same places in plan order.

    folder: what an earlier call for the same embeddings left there is used again.
    Raises CurateError for more dimensions than embeddings have.
    """
    made = storage.join(folder, "made.json")
    mark = {"dims": dims, "fingerprint": fingerprint}
    if not (storage.exists(made) and storage.read_json(made) == mark):
        storage.remove_tree(folder)
        moments = reduce(add, results([_moments.remote(group) for group in _groups(open_set)]))
        try:
            whitening = ray.put(Whitening.fit(moments, dims))
        except ValueError as error:
            raise CurateError(f"coreset.whiten={dims}: embeddings have fewer: {error}") from None
        every = [*target, *open_set]
        results([_write.remote(group, whitening, folder) for group in _groups(every)])
        storage.write_json(made, mark)  # last: where it is, all are there
    return _moved(target, folder), _moved(open_set, folder)


def _groups(shard_list: list[Shard]) -> Iterator[list[Shard]]:
    for start in range(0, len(shard_list), SHARDS_AT_ONCE):
        yield shard_list[start : start + SHARDS_AT_ONCE]


def _moved(shard_list: list[Shard], folder: str) -> list[Shard]:
    return [replace(shard, uri=place_of(shard.uri, folder)) for shard in shard_list]


def place_of(uri: str, folder: str) -> str:
    """Where a shard's whitened copy lies; units are numbered over both sets."""
    return storage.join(folder, uri.rpartition("/")[2])


@ray.remote
def _moments(group: list[Shard]) -> Moments:
    return reduce(
        add, (Moments.of(block) for shard in group for block in shards.read_embeddings(shard))
    )


@ray.remote
def _write(group: list[Shard], whitening: Whitening, folder: str) -> None:
    for shard in group:
        blocks: list[NDArray[np.float16]] = [
            whitening(block) for block in shards.read_embeddings(shard)
        ]
        images: pa.Table = shards.read_columns(shard.uri)
        table = shards.table_of(images, np.concatenate(blocks))
        shards.write_arrow(place_of(shard.uri, folder), table)
