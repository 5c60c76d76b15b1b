"""The coreset on disk: one Parquet row an image, readable without this package."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks
from curate.coreset.rounds import Round, Selection
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.shards import Shard
from curate.storage import Document

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
_IMAGE_COLUMNS = ["source", *shards.IMAGE_FIELDS]
SHARDS_AT_ONCE = 64  # that one task opens for their rows


def of_selection(shard_list: list[Shard], sources: list[str], selection: Selection) -> pa.Table:
    """The manifest of a selection, in its order: by (round, centroid), a baseline's by plan.

    sources: the name of each shard's source.
    """
    order = np.argsort(selection.position, kind="stable")
    table = rows_at(shard_list, sources, selection.position[order])
    table = table.take(pa.array(np.argsort(order)))
    for name in ("centroid", "round", "similarity", "position"):
        kind, values = SCHEMA.field(name).type, getattr(selection, name)
        column = pa.nulls(len(table), kind) if values is None else pa.array(values, kind)
        table = table.append_column(name, column)
    return table.cast(SCHEMA)


def by_source(table: pa.Table) -> dict[str, int]:
    """Images of each source in a manifest."""
    return {pair["values"]: pair["counts"] for pair in table["source"].value_counts().to_pylist()}


def rows_at(shard_list: list[Shard], sources: list[str], positions: NDArray[np.int64]) -> pa.Table:
    """What the shards know of the images at `positions`, which must be sorted."""
    firsts = np.array([shard.first for shard in shard_list], np.int64)
    which = np.searchsorted(firsts, positions, side="right") - 1
    bounds = np.flatnonzero(np.diff(which, prepend=-1, append=-1))
    wanted = []
    for low, high in pairwise(bounds):
        shard = shard_list[which[low]]
        rows = positions[low:high] - shard.first + shard.start
        wanted.append((shard.uri, sources[which[low]], rows))
    parts = over_tasks(_read_rows, wanted, SHARDS_AT_ONCE)
    return pa.concat_tables([SCHEMA.empty_table().select(_IMAGE_COLUMNS), *parts])


@ray.remote
def _read_rows(wanted: list[tuple[str, str, NDArray[np.int64]]]) -> pa.Table:
    parts = []
    for uri, source, rows in wanted:
        table = shards.read_columns(uri).take(pa.array(rows))
        columns = {"source": pa.array([source] * len(rows), pa.string())}
        for name, kind in shards.IMAGE_FIELDS.items():
            if name in table.column_names:
                columns[name] = pc.cast(table[name].combine_chunks(), kind)
            elif name == "key":  # the embeddings of others may have none
                columns[name] = pa.array([str(row) for row in rows], pa.string())
            elif name == "row":
                columns[name] = pa.array(rows, kind)
            else:
                columns[name] = pa.nulls(len(rows), kind)
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def read(uri: str, columns: list[str], fingerprint: str | None = None) -> pa.Table:
    """Some columns of a manifest. fingerprint: of the embeddings that it must be a selection from.

    Raises CurateError for a file that is not there, that is no manifest, or of other embeddings.
    """
    try:
        with storage.open_seekable(uri) as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            missing = [column for column in columns if column not in names]
            if missing:
                raise CurateError(f"{uri}: not a manifest: it has no column {', '.join(missing)}")
            if fingerprint is not None and _about(table).get("fingerprint") != fingerprint:
                raise CurateError(f"{uri}: a selection from other embeddings; name this run's own")
            return table.read(columns)
    except FileNotFoundError:
        raise none_there(uri) from None
    except (pa.ArrowException, OSError) as error:
        raise CurateError(f"{uri}: damaged, or not a manifest: {one_line(error)}") from error


def rows_of(uri: str, places: Sequence[int]) -> pa.Table:
    """Whole rows of a manifest, in the order of `places`; of the file, only the row groups that
    they are in."""
    wanted, which = np.unique(np.asarray(places, np.int64), return_inverse=True)
    with storage.open_seekable(uri) as file:
        table = pq.ParquetFile(file)
        found = [table.schema_arrow.empty_table()]
        first = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            low, high = np.searchsorted(wanted, [first, first + rows])
            if low < high:
                inside = pa.array(wanted[low:high] - first)
                found.append(table.read_row_group(group).take(inside))
            first += rows
    return pa.concat_tables(found).take(pa.array(which))


def none_there(uri: str) -> CurateError:
    return CurateError(f"{uri}: no such manifest; run `curate run` on this config first")


def _about(table: pq.ParquetFile) -> Document:
    note = (table.schema_arrow.metadata or {}).get(b"curate", b"{}")
    try:
        return dict(json.loads(note))
    except (ValueError, TypeError):
        return {}


def write(uri: str, table: pa.Table, about: Document) -> None:
    """`about` goes into the footer as JSON, under the key `curate`.

    The same table and `about` give the same bytes.
    """
    note = {b"curate": json.dumps(about, sort_keys=True).encode()}
    _write_parquet(uri, table.combine_chunks().replace_schema_metadata(note))


def write_rounds(uri: str, rounds: list[Round]) -> None:
    """round, objective f(S_t), added, total."""
    _write_parquet(
        uri,
        pa.table(
            {
                "round": pa.array([r.number for r in rounds], pa.int32()),
                "objective": pa.array([r.objective for r in rounds], pa.float64()),
                "added": pa.array([r.added for r in rounds], pa.int64()),
                "total": pa.array([r.total for r in rounds], pa.int64()),
            }
        ),
    )


def _write_parquet(uri: str, table: pa.Table) -> None:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    storage.write_bytes(uri, file.getvalue())
