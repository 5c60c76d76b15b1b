"""Embeddings from files: a run's own shards, or `.npy`, Arrow IPC and Parquet with an `embedding`
column. Of a remote Arrow file no other column is read; of Parquet and `.npy` no other rows either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import storage
from curate.errors import CurateError
from curate.int8 import Block, Int8
from curate.runfiles import columns
from curate.runfiles.shards import EMBEDDINGS, INT8, INT8_FIELDS, Shard, read_arrow, read_npy

ROWS_AT_ONCE = 65_536  # of a Parquet file; local Arrow and .npy are mapped


def can_be_cut(uri: str) -> bool:
    """Whether a range of its rows can be read without reading the rest."""
    return storage.is_local(uri) or uri.endswith((".parquet", ".npy"))


def read_embeddings(shard: Shard) -> Iterator[NDArray[np.floating]]:
    """The shard's embeddings as blocks (n, D), in order, in the type in which they are stored."""
    for block in read_blocks(shard):
        yield block.rows


def read_blocks(shard: Shard) -> Iterator[Block]:
    """The same with their int8 copies, where the file has any."""
    if shard.uri.endswith(".npy"):
        yield Block(_npy_rows(shard))
    elif shard.uri.endswith(".parquet"):
        yield from map(Block, _parquet_embeddings(shard))
    else:
        table = _with_embedding(shard.uri, _arrow_table(shard.uri))
        for batch in table.slice(shard.start, shard.rows).to_batches():
            copies = _int8(batch.column(INT8)) if INT8 in batch.schema.names else None
            yield Block(_matrix(shard.uri, batch.column("embedding")), copies)


def _npy_rows(shard: Shard) -> NDArray[np.floating]:
    rows = slice(shard.start, shard.start + shard.rows)
    if storage.is_local(shard.uri):
        return read_npy(shard.uri, EMBEDDINGS)[rows]
    return columns.npy_rows(shard.uri, rows)


def _arrow_table(uri: str) -> pa.Table:
    if storage.is_local(uri):
        return read_arrow(uri)
    return columns.read(uri, {"embedding", INT8})


def _int8(column: pa.StructArray) -> Int8:
    values, scale, error = (column.field(name) for name in INT8_FIELDS)
    flat: Any = np.from_dlpack(values.flatten())
    others: Any = [np.from_dlpack(one) for one in (scale, error)]
    return Int8(flat.reshape(len(column), -1), *others)


def _with_embedding(uri: str, table: pa.Table) -> pa.Table:
    names = table.column_names
    if "embedding" not in names:
        raise CurateError(f"{uri}: no column 'embedding'; it has {', '.join(names) or 'none'}")
    return table.select([name for name in ("embedding", INT8) if name in names])


def _parquet_embeddings(shard: Shard) -> Iterator[NDArray[np.floating]]:
    with storage.open_seekable(shard.uri, columns.BLOCK_BYTES) as file:
        table = pq.ParquetFile(file)
        _with_embedding(shard.uri, table.schema_arrow.empty_table())
        # Only the row groups that the range touches: a large file is shared out among tasks
        ends = np.cumsum(
            [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        )
        stop = shard.start + shard.rows
        groups = range(
            int(np.searchsorted(ends, shard.start, side="right")),
            min(int(np.searchsorted(ends, stop)) + 1, len(ends)),
        )
        if not groups:
            return
        row = int(ends[groups[0] - 1]) if groups[0] else 0
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=["embedding"]):
            low, high = max(shard.start - row, 0), min(stop - row, batch.num_rows)
            if low < high:
                yield _matrix(shard.uri, batch.column(0).slice(low, high - low))
            row += batch.num_rows


def _matrix(uri: str, column: pa.Array) -> NDArray[np.floating]:
    """A list column → (n, D), without a copy where the lists are of fixed size."""
    kind = column.type
    if not (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    ):
        raise CurateError(f"{uri}: embedding is {kind}, not lists of floats")
    if not pa.types.is_floating(kind.value_type):
        raise CurateError(f"{uri}: embedding holds {kind.value_type}, not floats")
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise CurateError(f"{uri}: embedding has nulls; leave those rows out")
    if len(column) == 0:
        return np.empty((0, 0), np.float16)
    if len(flat) % len(column):
        raise CurateError(f"{uri}: embeddings of differing widths")
    if not pa.types.is_fixed_size_list(kind):
        widths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if len(widths) > 1:
            raise CurateError(f"{uri}: embeddings of differing widths")
    values = np.from_dlpack(flat)  # to_numpy() would import pandas
    return cast("NDArray[np.floating]", values).reshape(len(column), -1)
