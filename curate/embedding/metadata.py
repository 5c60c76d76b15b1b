"""What sources know of images beside them: columns of tables and lists, `.json` beside images in
tars. Read when a selection asks for it, and kept beside the embeddings, row by row.

It decides nothing of an embedding: for one more column no image is embedded anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import ray

from curate import storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.privacy import public
from curate.runfiles import columns as shard_columns
from curate.runfiles import shards
from curate.runfiles.files import EmbeddingFiles
from curate.runfiles.memo import digest
from curate.runfiles.plan import PlannedUnit, by_name
from curate.runfiles.run import Beside, Run
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings, SourceSettings
from curate.sources import Changed, Item, columns_of, read_metadata

UNITS_AT_ONCE = 4
IDENTITY = ("key", "uri", "offset", "row")  # of a shard's row, which is an image of its source
PLAIN = (str, bool, int, float, date, datetime)

Schema = dict[str, pa.DataType]


@dataclass(frozen=True)
class Asked:
    """Rows of a unit's shards, one after the other."""

    source: SourceSettings
    planned: PlannedUnit
    parts: list[int]


def beside(run: Run, columns: Sequence[str]) -> Beside:
    """These columns of the open set's images, in the order of `run.embedded().open`.

    What an earlier call for the same columns made is used again. Raises CurateError for a column
    that no source has, and for sources that are not any more what was embedded.
    """
    sources = by_name(run.settings)
    table, rows = run.ledger.rows_of(run.plan.digests)
    parts_of = table["shards"].take(rows).to_pylist()
    asked = [
        Asked(sources[one.set, one.source], one, [part["rows"] for part in parts])
        for one, parts in zip(run.plan.units(), parts_of, strict=True)
        if one.set == "open"
    ]
    distinct = list({one.planned.unit.digest: one for one in asked}.values())
    files, ordered = run.embeddings, sorted(set(columns))
    made = over_tasks(_make, distinct, UNITS_AT_ONCE, files, ordered)
    schema = _unified(ordered, (one for group in made for one in group))
    _refuse_unknown(schema, asked)
    return Beside(_tables(asked, files, ordered), pa.schema(schema))


def asked_of(coreset: CoresetSettings) -> list[str]:
    """Columns that its settings name, of those that are not in a run's own shards."""
    return sorted(coreset.columns - {"source", *shards.IMAGE_FIELDS})


def check(run: Run) -> None:
    """Before an image is read: raises CurateError for a column that no source has. What is beside
    images in a tar only reading it tells."""
    wanted, known = asked_of(run.settings.coreset), set()
    if not wanted or any(source.kind == "webdataset" for source in run.settings.open):
        return
    first = {one.source: one for one in reversed(run.plan.units()) if one.set == "open"}
    for source in run.settings.open:
        known |= {*columns_of(source, first[source.name].unit)}
    _refuse_missing([name for name in wanted if name not in known], known)


def _tables(asked: list[Asked], files: EmbeddingFiles, columns: list[str]) -> list[Shard]:
    tables: list[Shard] = []
    first = 0
    for one in asked:
        uri, start = _uri(one, files, columns), 0
        for rows in one.parts:
            if rows:
                tables.append(Shard(uri, start, rows, first))
            start, first = start + rows, first + rows
    return tables


def _uri(one: Asked, files: EmbeddingFiles, columns: list[str]) -> str:
    return files.metadata_of(one.planned.unit.digest, digest({"columns": columns})[:16])


@ray.remote
def _make(asked: list[Asked], files: EmbeddingFiles, columns: list[str]) -> list[Schema]:
    """Types of what is in each unit's table, which is written where it is not there yet."""
    found = []
    for one in asked:
        uri = _uri(one, files, columns)
        if storage.exists(uri):
            schema = shard_columns.schema(uri)
        else:
            table = table_of(one, files, columns)
            shards.write_arrow(uri, table)
            schema = table.schema
        found.append({field.name: field.type for field in schema})
    return found


def table_of(one: Asked, files: EmbeddingFiles, columns: list[str]) -> pa.Table:
    """Of one unit, row by row with its shards. Raises CurateError."""
    unit = one.planned.unit
    embedded = [
        identity
        for number, rows in enumerate(one.parts)
        if rows
        for identity in _identities(files.shard(unit.digest, number))
    ]
    found: list[Mapping[str, Any]] = []
    knows = False
    try:
        for item, row in read_metadata(one.source, unit, columns):
            knows = True
            # Images that were rejected are in no shard; the others come in their order
            if len(found) < len(embedded) and _identity_of(item) == embedded[len(found)]:
                found.append(row)
    except storage.Unavailable as error:
        raise CurateError(f"{one_line(error)}; run the same command again, it goes on") from error
    except Changed as error:
        raise CurateError(f"{error}; run again, or leave out coreset.keep and where") from error
    if not knows:  # of a kind of source that knows nothing
        found = [{}] * len(embedded)
    if len(found) < len(embedded):
        raise CurateError(
            f"{unit.uri}: {len(found)} of its {len(embedded)} embedded images are there; run again"
        )
    return pa.table({name: column_of([row.get(name) for row in found]) for name in columns})


def _identities(uri: str) -> list[tuple[Any, ...]]:
    rows = shard_columns.read(uri, IDENTITY).select(IDENTITY).to_pylist()
    return [_identity(row["key"], row["uri"], row["offset"], row["row"]) for row in rows]


def _identity_of(item: Item) -> tuple[Any, ...]:
    return _identity(public(item.key), public(item.uri), item.offset, item.row)


def _identity(key: str, uri: str, offset: int | None, row: int | None) -> tuple[Any, ...]:
    """By its row, else its place, else its name: what its kind of source has."""
    if row is not None:
        return (row,)
    return (offset,) if offset is not None else (key, uri)


def column_of(values: Sequence[Any]) -> pa.Array:
    """Numbers, times, true and false as they are; everything else, and what is mixed, as text."""
    plain = [_plain(value) for value in values]
    try:
        return pa.array(plain)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in plain], pa.string())


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return public(value)
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return json.dumps(value, default=str, ensure_ascii=False)


def _unified(columns: Sequence[str], schemas: Iterable[Schema]) -> Schema:
    """A type for each column: of numbers the wider, text where they differ otherwise."""
    found: dict[str, set[pa.DataType]] = {name: set() for name in columns}
    for schema in schemas:
        for name, kind in schema.items():
            found[name].add(kind)
    return {name: _wider(kinds) for name, kinds in found.items()}


def _wider(kinds: set[pa.DataType]) -> pa.DataType:
    known = kinds - {pa.null()}
    if not known:
        return pa.null()
    if len(known) == 1:
        return next(iter(known))
    numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in known)
    return pa.float64() if numbers else pa.string()


def _refuse_unknown(schema: Schema, asked: list[Asked]) -> None:
    missing = [name for name, kind in schema.items() if pa.types.is_null(kind)]
    if not missing:
        return
    first = {one.planned.source: one for one in reversed(asked)}
    known = {name for one in first.values() for name in columns_of(one.source, one.planned.unit)}
    _refuse_missing([name for name in missing if name not in known], known)


def _refuse_missing(unknown: list[str], known: set[str]) -> None:
    if unknown:
        others = f"there are {', '.join(sorted(known))}" if known else "there are none"
        raise CurateError(f"coreset: no image has a column {unknown[0]!r}; {one_line(others)}")
