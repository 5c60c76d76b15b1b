"""Rows of a manifest, brought together from all shards and put in its order, on Ray tasks.

    read    some shards each        → their selected images' rows, a piece for each bucket
    order   a bucket: a range of the manifest's rows, a piece from every reader → its table
    write   one, bucket by bucket   → the file, and how many images each source has

The driver knows positions, never rows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate import storage
from curate.cluster import on_this_node, results
from curate.coreset.known import Known
from curate.coreset.rounds import Selection
from curate.runfiles import columns, shards
from curate.runfiles.shards import Shard

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        **shards.IMAGE_FIELDS,
        "centroid": pa.int32(),
        "round": pa.int32(),
        "similarity": pa.float64(),
        "position": pa.int64(),  # in plan order, among the embedded images of the open set
    }
)
ROW_GROUP_ROWS = 65_536
PIECE_ROWS = 4096  # about 1 MB: what Ray keeps in its store, not in the driver
SHARDS_AT_ONCE = 64  # that one task opens at least, where there are so many
PIECES = 2000  # at most, of shards with few rows each
READS_AT_ONCE = 16  # of one task, of remote shards: latency is the limit
BUCKETS_AHEAD = 4  # of the one that is being written


@dataclass(frozen=True)
class _Wanted:
    """Rows of one shard, and their places in the manifest; kept: what of them beside the shard."""

    known: Known
    kept: pa.Schema
    rows: NDArray[np.int32]
    places: NDArray[np.int64]


def write(uri: str, known: list[Known], selection: Selection, schema: pa.Schema) -> dict[str, int]:
    """The manifest of a selection, in its order; returns its images by source.

    known: of each shard. schema: SCHEMA, the columns beside the shards that are kept, and what the
    footer is to say.
    """
    images = len(selection.position)
    rows = _bucket_rows(images)
    bounds = [*range(0, images, rows), images]
    buckets = [slice(*pair) for pair in pairwise(bounds)]
    if not buckets:
        return _write(uri, schema, iter(()))
    read = _read.options(num_returns=len(buckets))
    pieces = [
        read.remote(group, bounds)
        for group in _groups(known, schema, selection.position, rows, len(buckets))
    ]
    if len(buckets) == 1:  # a task for the rest would take longer than the rest
        return _write(
            uri, schema, iter([_ordered(_chosen(selection, buckets[0]), schema, *results(pieces))])
        )
    chosen = [ray.put(_chosen(selection, bucket)) for bucket in buckets]
    # It waits, mostly
    write_all = _write_buckets.options(num_cpus=0, scheduling_strategy=on_this_node())
    by_bucket = [list(one) for one in zip(*pieces, strict=True)]
    counts: dict[str, int] = results([write_all.remote(uri, schema, chosen, by_bucket)])[0]
    return counts


def rows_at(shard_list: list[Shard], sources: list[str], positions: NDArray[np.int64]) -> pa.Table:
    """What the shards know of a few images: source, SCHEMA's columns of images, position."""
    bounds = [0, len(positions)]
    known = [Known(*one) for one in zip(shard_list, sources, strict=True)]
    groups = _groups(known, SCHEMA, positions, ROW_GROUP_ROWS, buckets=1)
    return _in_order(results([_read.remote(group, bounds) for group in groups]))


def _bucket_rows(images: int) -> int:
    """Whole row groups, so many that a reader of as many rows has PIECE_ROWS for each bucket."""
    return ROW_GROUP_ROWS * max(1, -(-isqrt(images * PIECE_ROWS) // ROW_GROUP_ROWS))


def _groups(
    known: list[Known],
    schema: pa.Schema,
    positions: NDArray[np.int64],
    rows: int,
    buckets: int,
) -> Iterator[list[_Wanted]]:
    """What each reader reads: a bucket's worth of rows, of not too many shards."""
    order = np.argsort(positions, kind="stable")
    ordered = positions[order]
    firsts = np.array([one.shard.first for one in known], np.int64)
    kept = pa.schema([field for field in schema if field.name not in SCHEMA.names])
    bounds = [*np.searchsorted(ordered, firsts).tolist(), len(order)]
    with_rows = int(np.count_nonzero(np.diff(bounds)))
    at_once = max(SHARDS_AT_ONCE, -(-with_rows * buckets // PIECES))
    group: list[_Wanted] = []
    waiting = 0
    for one, (low, high) in zip(known, pairwise(bounds), strict=True):
        if low == high:
            continue
        inside = (ordered[low:high] - (one.shard.first - one.shard.start)).astype(np.int32)
        group.append(_Wanted(one, kept, inside, order[low:high]))
        waiting += high - low
        if waiting >= rows or len(group) == at_once:
            yield group
            group, waiting = [], 0
    if group:
        yield group


@ray.remote
def _read(group: list[_Wanted], bounds: list[int]) -> Any:
    """A table for each bucket, or the table itself where there is one bucket."""
    remote = not storage.is_local(group[0].known.shard.uri)
    with ThreadPoolExecutor(READS_AT_ONCE if remote else 1) as pool:
        table = pa.concat_tables(pool.map(_rows, group))
    places = np.concatenate([wanted.places for wanted in group])
    order = np.argsort(places)
    places = places[order]
    cuts = np.searchsorted(places, bounds)
    parts = [
        table.take(pa.array(order[low:high])).append_column("place", pa.array(places[low:high]))
        for low, high in pairwise(cuts)
    ]
    return parts[0] if len(parts) == 1 else parts


def _rows(wanted: _Wanted) -> pa.Table:
    """What a shard knows of its images."""
    rows = pa.array(wanted.rows)
    shard = wanted.known.shard
    found = columns.read(shard.uri, {*shards.IMAGE_FIELDS})
    if found.column_names and len(found) < shard.start + shard.rows:  # a .npy has no columns
        raise shards.other_rows(shard.uri, len(found) - shard.start, shard.rows)
    table = {"source": pa.array([wanted.known.source] * len(rows), pa.string())}
    for name, kind in shards.IMAGE_FIELDS.items():
        if name in found.column_names:
            table[name] = pc.cast(found[name].take(rows).combine_chunks(), kind)
        elif name == "key" or name == "row":  # the embeddings of others may have none
            table[name] = pc.cast(rows, kind)
        else:
            table[name] = pa.nulls(len(rows), kind)
    table["position"] = pa.array(wanted.rows.astype(np.int64) + shard.first - shard.start)
    if wanted.kept.names:
        beside = wanted.known.table(wanted.kept.names).take(pc.subtract(rows, shard.start))
        for field in wanted.kept:
            table[field.name] = pc.cast(beside[field.name].combine_chunks(), field.type)
    return pa.table(table)


def _chosen(selection: Selection, bucket: slice) -> dict[str, NDArray[Any] | None]:
    """What the selection says of the images of a bucket."""
    values = {name: getattr(selection, name) for name in ("centroid", "round", "similarity")}
    return {name: None if all_ is None else all_[bucket] for name, all_ in values.items()}


def _ordered(
    chosen: dict[str, NDArray[Any] | None], schema: pa.Schema, *pieces: pa.Table
) -> pa.Table:
    table = _in_order(pieces)
    for name, values in chosen.items():
        kind = SCHEMA.field(name).type
        column = pa.nulls(len(table), kind) if values is None else pa.array(values, kind)
        table = table.append_column(name, column)
    return table.select(schema.names).combine_chunks()


_order = ray.remote(_ordered)


def _in_order(pieces: Sequence[pa.Table]) -> pa.Table:
    table = pa.concat_tables(pieces)
    return table.take(pa.array(np.argsort(table["place"].to_numpy())))


@ray.remote
def _write_buckets(
    uri: str, schema: pa.Schema, chosen: list[ObjectRef], by_bucket: list[list[ObjectRef]]
) -> dict[str, int]:
    def tables() -> Iterator[pa.Table]:
        running: deque[ObjectRef] = deque()
        for one, pieces in zip(chosen, by_bucket, strict=True):
            running.append(_order.remote(one, schema, *pieces))
            if len(running) > BUCKETS_AHEAD:
                yield ray.get(running.popleft())
        while running:
            yield ray.get(running.popleft())

    return _write(uri, schema, tables())


def _write(uri: str, schema: pa.Schema, tables: Iterator[pa.Table]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    with storage.open_whole(uri) as file, pq.ParquetWriter(file, schema, compression="zstd") as out:
        for table in tables:
            out.write_table(table.cast(schema), ROW_GROUP_ROWS)
            for pair in table["source"].value_counts().to_pylist():
                counts[pair["values"]] += pair["counts"]
        if not counts:
            out.write_table(schema.empty_table())
    return dict(counts)
