"""Whitened copies of a run's embedding shards, on Ray; the originals stay.

shards ──> moments ─sum─> whitening ──> `output`/whitened
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks
from curate.coreset.whitening import Moments, Whitening
from curate.errors import CurateError
from curate.runfiles import columns, embeddings, shards
from curate.runfiles.files import RunFiles
from curate.runfiles.memo import Memo
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard

SHARDS_AT_ONCE = 16  # that one task reads


def whitened(embedded: Embedded, dims: int, files: RunFiles) -> Embedded:
    """All sets' shards, whitened by the open set's statistics, at the same places in plan order.

    What an earlier call for the same embeddings left is used again.
    Raises CurateError for more dimensions than embeddings have.
    """
    memo = Memo(files.whitened_memo)
    inputs = {"dims": dims, "fingerprint": embedded.fingerprint}
    if memo.found(inputs) is None:
        storage.remove_tree(files.whitened)
        moments = reduce(add, over_tasks(_moments, embedded.open, SHARDS_AT_ONCE))
        try:
            whitening = Whitening.fit(moments, dims)
        except ValueError as error:
            raise CurateError(f"coreset.whiten={dims}: embeddings have fewer: {error}") from None
        every = [*embedded.target, *embedded.open, *embedded.exclude]
        over_tasks(_write, every, SHARDS_AT_ONCE, whitening, files)
        memo.write(inputs)
    moved = [
        [replace(shard, uri=files.whitened_shard(shard.uri)) for shard in shard_list]
        for shard_list in (embedded.target, embedded.open, embedded.exclude)
    ]
    return replace(embedded, target=moved[0], open=moved[1], exclude=tuple(moved[2]))


@ray.remote
def _moments(group: list[Shard]) -> Moments:
    return reduce(
        add, (Moments.of(block) for shard in group for block in embeddings.read_embeddings(shard))
    )


@ray.remote
def _write(group: list[Shard], whitening: Whitening, files: RunFiles) -> None:
    for shard in group:
        blocks: list[NDArray[np.float16]] = [
            whitening(block) for block in embeddings.read_embeddings(shard)
        ]
        images: pa.Table = columns.read(shard.uri)
        table = shards.table_of(images, np.concatenate(blocks))
        shards.write_arrow(files.whitened_shard(shard.uri), table)
