"""Embedding shards: one Arrow row an image, with where it lies, what it is, and its embedding."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import int8, storage
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
INT8 = "embedding_int8"  # curate/int8.py
INT8_FIELDS = ("values", "scale", "error")


@dataclass(frozen=True)
class Shard:
    """A run of rows of one file. `first` is its first row's place in plan order."""

    uri: str
    start: int
    rows: int
    first: int


def table_of(images: pa.Table, embeddings: NDArray[np.float16]) -> pa.Table:
    """images (N rows), embeddings (N, D) → the table that a shard holds: of unit rows, int8 copies
    as well."""
    width = embeddings.shape[1]
    flat = pa.array(embeddings.reshape(-1), pa.float16())
    table = images.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, width))
    if not int8.are_unit(np.linalg.norm(embeddings.astype(np.float32), axis=1)).all():
        return table
    made = int8.quantise(embeddings)
    values = pa.FixedSizeListArray.from_arrays(pa.array(made.values.reshape(-1)), width)
    copies = [values, pa.array(made.scale), pa.array(made.error)]
    return table.append_column(INT8, pa.StructArray.from_arrays(copies, INT8_FIELDS))


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


def other_rows(uri: str, rows: int, counted: int) -> CurateError:
    return CurateError(
        f"{uri}: {rows} rows where {counted} were counted; it was changed or damaged: embed it "
        "again"
    )


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
