"""The coreset on disk: one Parquet row an image, readable without this package."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate import storage
from curate.coreset import known, manifest_rows
from curate.coreset.rounds import Round, Selection
from curate.errors import CurateError, one_line
from curate.runfiles.run import Embedded
from curate.storage import Document


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


RESERVED = {*manifest_rows.SCHEMA.names, "image"}  # this one is an export's


def write(
    uri: str, found: Embedded, selection: Selection, about: Document, keep: Sequence[str] = ()
) -> dict[str, int]:
    """The manifest of a selection, in its order: by (round, centroid), a baseline's by plan.
    Returns its images by source.

    keep: columns that it has beside its own. `about` goes into the footer as JSON, under the key
    `curate`. The same selection and `about` give the same bytes.

    Raises CurateError for a column that it has anyway, or that there is none of.
    """
    refuse_own(keep)
    note = {b"curate": json.dumps(about, sort_keys=True).encode()}
    schema = pa.schema([*manifest_rows.SCHEMA, *known.schema_of(found, keep)], note)
    return manifest_rows.write(uri, known.of(found), selection, schema)


def refuse_own(keep: Sequence[str]) -> None:
    """Raises CurateError for columns that a manifest has anyway, and for one that comes twice."""
    for number, name in enumerate(keep):
        if name in RESERVED or name in keep[:number]:
            why = "every manifest has it" if name in RESERVED else "comes twice"
            raise CurateError(f"coreset.keep: {name}: {why}; leave it out")


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
    pq.write_table(table, file, compression="zstd", row_group_size=manifest_rows.ROW_GROUP_ROWS)
    storage.write_bytes(uri, file.getvalue())
