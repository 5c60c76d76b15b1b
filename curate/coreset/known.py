"""What is known of the images of an open set: by its shards, and by the tables beside them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from curate.errors import CurateError
from curate.runfiles import columns
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard

SHARDS_AT_ONCE = 64  # that one task opens


@dataclass(frozen=True)
class Known:
    """Of one shard's images. beside, schema: None where there is nothing beside it."""

    shard: Shard
    source: str
    beside: Shard | None = None
    schema: pa.Schema | None = None

    def texts(self, name: str) -> pa.Array:
        """One column, as text. Raises CurateError where there is none."""
        return self.table({name})[name].combine_chunks().cast(pa.string())

    def table(self, names: Collection[str]) -> pa.Table:
        """Some columns. Raises CurateError for one that there is none of."""
        beside = {} if self.schema is None else {f.name: f.type for f in self.schema}
        made: dict[str, pa.Array] = {}
        if own := {*names} - {"source"} - beside.keys():
            table = columns.read(self.shard.uri, own)
            rows = table.slice(self.shard.start, self.shard.rows)
            made |= {name: rows[name].combine_chunks() for name in rows.column_names}
        if "source" in names:
            made["source"] = pa.array([self.source] * self.shard.rows, pa.string())
        if self.beside is not None and beside.keys() & {*names}:
            wanted = [name for name in beside if name in names]
            table = columns.read(self.beside.uri, wanted)
            rows = table.slice(self.beside.start, self.beside.rows)
            made |= {name: rows[name].combine_chunks().cast(beside[name]) for name in wanted}
        missing = sorted({*names} - made.keys())
        if missing:
            raise CurateError(
                f"{self.shard.uri}: no column {missing[0]!r}, which the selection needs"
            )
        return pa.table(made)


def of(found: Embedded) -> list[Known]:
    """Of each shard of the open set."""
    beside = found.beside
    tables = [None] * len(found.open) if beside is None else beside.tables
    schema = None if beside is None else beside.schema
    each = zip(found.open, found.open_sources, tables, strict=True)
    return [Known(shard, source, table, schema) for shard, source, table in each]


def schema_of(found: Embedded, names: Collection[str]) -> pa.Schema:
    """Types of some columns: of tables beside the shards, or, of embeddings of others, their own.

    Raises CurateError as `Known.table` does.
    """
    if found.beside is not None:
        return pa.schema([found.beside.schema.field(name) for name in names])
    if not names or not found.open:
        return pa.schema([])
    schema = of(found)[0].table(names).schema
    return pa.schema([schema.field(name) for name in names])
