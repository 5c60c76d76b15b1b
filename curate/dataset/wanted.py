"""What a training set is copied from, listed once, piece by piece, by one task.

A piece is a unit of a source, or rows of a manifest; each is a record batch of an Arrow file, from
which the task that copies the piece reads that batch alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from curate import storage
from curate.dataset.sample import drawn
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.files import TrainingSetFiles
from curate.settings import SourceSettings
from curate.sources import Unit, plan_source
from curate.sources.base import Row
from curate.storage import Document

UNIT_IMAGES = 1000  # files of a folder that one task copies
ROWS_AT_ONCE = 65_536  # of a manifest, that are read
PIECE_ROWS = 4096  # of a manifest, that one task copies
OF_MANIFESTS = ["source", "key", "uri", "offset", "size", "row", "label", "sha256"]
SCHEMA = pa.schema(
    {
        "source": pa.string(),
        **{name: shards.IMAGE_FIELDS[name] for name in OF_MANIFESTS[1:]},
    }
)


@dataclass(frozen=True)
class Asked:
    """A set that is to be copied: sources, or a manifest and its digest."""

    sources: tuple[SourceSettings, ...] = ()
    manifest: str = ""
    digest: str = ""
    of_open: bool = False
    sample: int | None = None  # images of the sources, all together; all where None


@dataclass(frozen=True)
class Listed:
    """Of each piece: its images, -1 where only reading it tells; whether the open set's."""

    images: list[int]
    of_open: list[bool]


@dataclass(frozen=True)
class Piece:
    """A unit of a source, or rows of a manifest."""

    source: str
    unit: Unit | None
    rows: list[Row]
    sample: int | None = None  # images of the unit; all where None


def digest_of(uri: str) -> str:
    """Of what a manifest says of its images, in its order: the same whatever wrote the file, and
    what else it says. Raises CurateError for what is no manifest."""

    def read() -> str:
        digest = hashlib.sha256()
        with storage.open_seekable(uri) as file, _as_manifest(uri):
            table = pq.ParquetFile(file)
            _check_columns(uri, table.schema_arrow.names)
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=OF_MANIFESTS):
                digest.update(_said(batch))
        return digest.hexdigest()

    return storage.own_read(uri, read)


def _said(rows: pa.RecordBatch) -> bytes:
    lines = _joined(rows.column(name) for name in OF_MANIFESTS).to_pylist()
    return "".join(f"{line}\n" for line in lines).encode()


@contextmanager
def _as_manifest(uri: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise CurateError(f"{uri}: not a Parquet file: {one_line(error)}") from error


def _check_columns(uri: str, names: list[str]) -> None:
    missing = [column for column in OF_MANIFESTS if column not in names]
    if missing:
        raise CurateError(f"{uri}: not a manifest: it has no column {', '.join(missing)}")


@ray.remote
def write_list(files: TrainingSetFiles, asked: list[Asked]) -> Listed:
    """Raises CurateError for what is no manifest, and for sources with nothing to read."""
    images: list[int] = []
    of_open: list[bool] = []
    taken = pa.array([], pa.string())

    def add(batch: pa.RecordBatch, unit: Document | None, count: int | None) -> None:
        writer.write_batch(batch, custom_metadata={"unit": json.dumps(unit)})
        images.append(-1 if count is None else count)
        of_open.append(one.of_open)

    none = pa.RecordBatch.from_pylist([], SCHEMA)
    with storage.open_whole(files.list) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for number, one in enumerate(asked):
            units = [
                (source.name, unit)
                for source in one.sources
                for unit in plan_source(source, UNIT_IMAGES, files.planned(number, source.name))
            ]
            all_of = ((unit, None) for unit in units)
            for (name, unit), most in drawn(units, one.sample) if one.sample else all_of:
                count = unit.images if most is None else most
                add(none, {"source": name, "sample": most, **asdict(unit)}, count)
            if not one.manifest:
                continue
            rows = _rows_of(one)
            # Two coresets may share images
            places = _places(rows)
            rows = rows.filter(pc.invert(pc.is_in(places, value_set=taken)))
            taken = pa.concat_arrays([taken, places])
            for batch in _sorted(rows).to_batches(PIECE_ROWS):
                add(batch, None, batch.num_rows)
    return Listed(images, of_open)


def _sorted(rows: pa.Table) -> pa.Table:
    """Those of one file together, so that it is opened once; a selection's order is of no use."""
    order = {column: rows[column].fill_null(0) for column in ("offset", "row")}
    keys = pa.table({"uri": rows["uri"], **order})
    rows = rows.take(pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names]))
    return rows.cast(SCHEMA).combine_chunks()


def _places(rows: pa.Table) -> pa.Array:
    """Where each image lies, as one string."""
    return _joined(rows[name] for name in ("uri", "offset", "row")).combine_chunks()


def _joined(columns: Iterable[Any]) -> Any:
    """Texts and numbers, line by line."""
    texts = [pc.cast(column, pa.string()) for column in columns]
    return pc.binary_join_element_wise(*texts, "\n", null_handling="replace", null_replacement="-")


def _rows_of(asked: Asked) -> pa.Table:
    uri = asked.manifest
    data = storage.read_bytes(uri)
    with _as_manifest(uri):
        table = pq.read_table(pa.BufferReader(data))
    _check_columns(uri, table.column_names)
    rows = table.select(OF_MANIFESTS)
    digest = hashlib.sha256(b"".join(map(_said, rows.to_batches(ROWS_AT_ONCE))))
    if digest.hexdigest() != asked.digest:
        raise CurateError(f"{uri}: was written anew just now; run the same command again")
    nowhere = rows.filter(pc.equal(pc.fill_null(rows["uri"], ""), ""))
    if len(nowhere):
        raise CurateError(f"{uri}: {nowhere['key'][0]} has no uri that leads to its image")
    return rows


def read_piece(uri: str, number: int) -> Piece:
    """One piece of what `write_list` wrote."""

    def read() -> tuple[pa.RecordBatch, pa.KeyValueMetadata]:
        with storage.open_seekable(uri, block_bytes=1 << 20) as file:
            found = pa.ipc.open_file(file).get_batch_with_custom_metadata(number)
            return found.batch, found.custom_metadata

    batch, about = storage.own_read(uri, read)
    unit = json.loads(about[b"unit"])
    if unit is None:
        return Piece("", None, batch.to_pylist())
    source, sample = unit.pop("source"), unit.pop("sample", None)
    return Piece(source, Unit(**unit), [], sample)
