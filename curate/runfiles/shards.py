"""Embedding shards: one Arrow row an image, with where it lies, what it is, and its embedding.

Also reads the embeddings of others: `.npy`, Arrow IPC or Parquet with an `embedding` column.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import storage
from curate.errors import CurateError, one_line
from curate.privacy import public
from curate.storage import Document

IMAGE_FIELDS = {
    "key": pa.string(),
    "uri": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "row": pa.int64(),
    "label": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "sha256": pa.string(),
}
IMAGE_SCHEMA = pa.schema(IMAGE_FIELDS)
REJECT_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "key": pa.string(),
        "uri": pa.string(),
        "stage": pa.string(),
        "reason": pa.string(),
    }
)

EMBEDDINGS = "embeddings are a float matrix (N, D)"
ROWS_AT_ONCE = 65_536  # of a Parquet file; Arrow and .npy are mapped, or read whole


@dataclass(frozen=True)
class Shard:
    """A run of rows of one file. `first` is its first row's place in plan order."""

    uri: str
    start: int
    rows: int
    first: int


def table_of(images: pa.Table, embeddings: NDArray[np.float16]) -> pa.Table:
    """images (N rows), embeddings (N, D) → the table that a shard holds."""
    flat = pa.array(embeddings.reshape(-1), pa.float16())
    column = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return images.append_column("embedding", column)


Stage = Literal["read", "decode", "embed"]


@dataclass(frozen=True)
class Reject:
    """An image that cannot be used. stage: where that was found."""

    source: str
    key: str
    uri: str
    stage: Stage
    reason: str


def reject_table(rejects: list[Reject]) -> pa.Table:
    rows = [{**vars(one), "key": public(one.key), "uri": public(one.uri)} for one in rejects]
    return pa.Table.from_pylist(rows, REJECT_SCHEMA)


def to_ipc(table: pa.Table) -> pa.Buffer:
    """The bytes of an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def write_arrow(uri: str, table: pa.Table) -> int:
    """→ the file's size, bytes."""
    data = to_ipc(table)
    storage.write_bytes(uri, data)
    return int(data.size)


def with_note(table: pa.Table, rejects: list[Reject], **note: Any) -> pa.Table:
    """The table with what is to be known of it in its schema, which is read without its rows; the
    images that are not in it, and why, among it: a shard says all of its part, or is not there."""
    # Whatever its source
    refused = [[public(one.key), public(one.uri), one.stage, one.reason] for one in rejects]
    said = {b"curate": note, b"rejected": refused}
    return table.replace_schema_metadata({k: json.dumps(v).encode() for k, v in said.items()})


def read_note(uri: str) -> Document:
    """What `with_note` left in a file, from its last few KB. Raises CurateError."""
    return dict(_said(uri, b"curate"))


def read_rejects(uri: str, source: str) -> list[Reject]:
    """As `read_note`. source: of the unit, in the run that asks."""
    return [Reject(source, *values) for values in _said(uri, b"rejected")]


def _said(uri: str, key: bytes) -> Any:
    try:
        with storage.open_seekable(uri, block_bytes=1 << 16) as file:
            return json.loads(pa.ipc.open_file(file).schema.metadata[key])
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise not_of_this_run(uri, error) from error


def not_of_this_run(uri: str, error: Exception) -> CurateError:
    return CurateError(
        f"{uri}: not a shard of this run ({one_line(error, 100)}); remove it and run again"
    )


def write_parquet(uri: str, table: pa.Table) -> None:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    storage.write_bytes(uri, file.getvalue())


def read_arrow(uri: str) -> pa.Table:
    """A whole Arrow IPC file, file or stream format; a local one is mapped, not read."""
    try:
        if storage.is_local(uri):
            source = pa.memory_map(storage.filesystem(uri)[1])
        else:
            source = pa.BufferReader(storage.read_bytes(uri))
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
    except FileNotFoundError:
        raise CurateError(f"{uri}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise CurateError(f"{uri}: not an Arrow IPC file: {one_line(error, 160)}") from error


def read_embeddings(shard: Shard) -> Iterator[NDArray[np.floating]]:
    """The shard's embeddings as blocks (n, D), in order, in the type in which they are stored."""
    if shard.uri.endswith(".npy"):
        yield _npy(shard.uri)[shard.start : shard.start + shard.rows]
    elif shard.uri.endswith(".parquet"):
        yield from _parquet_embeddings(shard)
    else:
        table = _with_embedding(shard.uri, read_arrow(shard.uri))
        for batch in table.slice(shard.start, shard.rows).to_batches():
            yield _matrix(shard.uri, batch.column(0))


def _npy(uri: str) -> NDArray[np.floating]:
    return read_npy(uri, EMBEDDINGS)


def read_npy(uri: str, expected: str) -> NDArray[np.floating]:
    """A float matrix from a .npy file, mapped where it is local. Raises CurateError, which says
    what was `expected` of another."""
    try:
        if storage.is_local(uri):
            matrix = np.load(storage.filesystem(uri)[1], mmap_mode="r")
        else:
            matrix = np.load(io.BytesIO(storage.read_bytes(uri)))
    except FileNotFoundError:
        raise CurateError(f"{uri}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise CurateError(f"{uri}: not a .npy file of numbers: {one_line(error, 160)}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise CurateError(f"{uri}: {expected}, not {matrix.dtype} {matrix.shape}")
    return matrix


def _with_embedding(uri: str, table: pa.Table) -> pa.Table:
    if "embedding" not in table.column_names:
        raise CurateError(
            f"{uri}: no column 'embedding'; it has {', '.join(table.column_names) or 'none'}"
        )
    return table.select(["embedding"])


def _parquet_embeddings(shard: Shard) -> Iterator[NDArray[np.floating]]:
    with storage.open_seekable(shard.uri) as file:
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
