"""What there is beside the embeddings in files of them, and how many rows: no embedding is read.

`.npy`, Arrow IPC and Parquet files, this package's own or those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curate import storage
from curate.errors import CurateError, one_line
from curate.runfiles import arrow_rows
from curate.runfiles.shards import EMBEDDINGS, INT8, read_arrow, read_npy

T = TypeVar("T")

KINDS = {"parquet": "a Parquet file", "npy": "a .npy file of numbers"}
BLOCK_BYTES = 1 << 18  # of a remote file, at least so many at a time


def count_rows(uri: str) -> int:
    """Rows of embeddings in a file of any of the formats."""
    if uri.endswith(".parquet"):
        return int(_from(uri, lambda file: pq.read_metadata(file).num_rows))
    if uri.endswith(".npy"):
        return len(read_npy(uri, EMBEDDINGS)) if storage.is_local(uri) else _from(uri, _npy_rows)
    return read_arrow(uri).num_rows if storage.is_local(uri) else _from(uri, arrow_rows.count)


def read(uri: str, only: Collection[str] | None = None) -> pa.Table:
    """Columns of a shard, where nothing else is said all but its embeddings; of a remote one little
    else is read. Names that it has none of are left out."""

    def wanted(names: list[str]) -> list[str]:
        return [n for n in names if (n not in ("embedding", INT8) if only is None else n in only)]

    def of_parquet(file: BinaryIO) -> pa.Table:
        table = pq.ParquetFile(file)
        return table.read(wanted(table.schema_arrow.names))

    if uri.endswith(".npy"):
        found = pa.table({})
    elif uri.endswith(".parquet"):
        found = _from(uri, of_parquet)
    elif storage.is_local(uri):
        table = read_arrow(uri)
        found = table.select(wanted(table.column_names))
    else:
        found = _from(uri, partial(_arrow_columns, wanted))
    if found.column_names or only is not None:
        return found
    return pa.table({"row": pa.array(np.arange(count_rows(uri)))})


def schema(uri: str) -> pa.Schema:
    """Of an Arrow IPC file, from its last few KB."""
    return _from(uri, lambda file: pa.ipc.open_file(file).schema)


def _arrow_columns(wanted: Callable[[list[str]], list[str]], file: BinaryIO) -> pa.Table:
    try:
        names = pa.ipc.open_file(file).schema.names
    except pa.ArrowInvalid:
        file.seek(0)
        table = pa.ipc.open_stream(file).read_all()
        return table.select(wanted(table.column_names))
    included = [number for number, name in enumerate(names) if name in wanted(names)]
    if not included:
        return pa.table({})
    file.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=included)
    return pa.ipc.open_file(file, options=options).read_all()


def _from(uri: str, act: Callable[[BinaryIO], T]) -> T:
    """What `act` makes of some bytes of a file."""

    def attempt() -> T:
        with storage.open_seekable(uri, BLOCK_BYTES) as file:
            try:
                return act(file)
            except (pa.ArrowException, ValueError) as error:
                kind = KINDS.get(uri.rpartition(".")[2], "an Arrow IPC file")
                raise CurateError(f"{uri}: not {kind}: {one_line(error, 160)}") from error

    try:
        return storage.own_read(uri, attempt)
    except FileNotFoundError:
        raise CurateError(f"{uri}: no such file") from None


def npy_rows(uri: str, rows: slice) -> NDArray[np.floating]:
    """Some rows of a remote matrix, and no others. Raises CurateError as `shards.read_npy`."""

    def act(file: BinaryIO) -> NDArray[np.floating]:
        shape, by_column, kind = _npy_header(file)
        if len(shape) != 2 or kind.kind != "f" or by_column:
            raise CurateError(f"{uri}: {EMBEDDINGS} by rows, not {kind} {shape}")
        file.seek(file.tell() + rows.start * shape[1] * kind.itemsize)
        data = file.read((rows.stop - rows.start) * shape[1] * kind.itemsize)
        return np.frombuffer(data, kind).reshape(-1, shape[1])

    return _from(uri, act)


def _npy_rows(file: BinaryIO) -> int:
    shape, _, _ = _npy_header(file)
    return int(shape[0]) if len(shape) == 2 else 1  # reading it says what is wrong


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    major, _ = np.lib.format.read_magic(file)
    headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    return headers[min(major, 2)](file)
