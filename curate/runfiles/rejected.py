"""Every image of a run that could not be used, and why, in one place: out of its shards' words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from curate import storage
from curate.cluster import over_tasks
from curate.runfiles import shards
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Run

SHARDS_AT_ONCE = 256  # whose rejects are one file


def write(run: Run) -> None:
    """`rejected/`: source, key, uri, stage, reason, in plan order, made anew."""
    storage.remove_tree(run.files.rejected)
    table, rows = run.ledger.rows_of(run.plan.digests)
    refused = np.flatnonzero(table["rejected"].to_numpy()[rows] > 0)
    sources = run.plan.table["source"].take(pa.array(refused)).to_pylist()
    digests = run.plan.digests.take(pa.array(refused)).to_pylist()
    parts = pc.list_value_length(table["shards"]).to_numpy()[rows[refused]].tolist()
    wanted = [
        (source, run.embeddings.shard(digest, part))
        for source, digest, count in zip(sources, digests, parts, strict=True)
        for part in range(count)
    ]
    groups = [wanted[i : i + SHARDS_AT_ONCE] for i in range(0, len(wanted), SHARDS_AT_ONCE)]
    over_tasks(_write, list(enumerate(groups)), 1, run.files)


@ray.remote
def _write(groups: list[tuple[int, list[tuple[str, str]]]], files: RunFiles) -> None:
    for number, wanted in groups:
        tables = [shards.reject_table(shards.read_rejects(uri, source)) for source, uri in wanted]
        shards.write_parquet(files.rejects(number), pa.concat_tables(tables))
