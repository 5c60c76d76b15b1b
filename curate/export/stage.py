"""`curate export`: a manifest's images and rows in another format, piece by piece on Ray tasks.

manifest ──> pieces of its rows ──> each read, written, and noted as done ──> export.json
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from ray import ObjectRef

from curate import storage
from curate.cluster import results
from curate.coreset import manifest
from curate.coreset.drawn import rows_at
from curate.errors import CurateError, one_line
from curate.export import atlas, fiftyone
from curate.export.formats import (
    FORMATS,
    WITHOUT_IMAGES,
    Format,
    Image,
    Row,
    card,
    csv_of,
    files_of,
    path_of,
)
from curate.runfiles import shards
from curate.runfiles.files import ExportFiles
from curate.runfiles.memo import Memo
from curate.runfiles.run import Run
from curate.runfiles.shards import Reject, Shard
from curate.settings import ImageSettings, SourceSettings
from curate.sources.located import read_located

PIECE_ROWS = 1000  # of a manifest, that one task exports


@dataclass(frozen=True)
class Job:
    """What every piece needs to know."""

    form: Format
    files: ExportFiles
    manifest: str
    pieces: int
    piece_rows: int
    sources: Mapping[str, SourceSettings]
    limits: ImageSettings


def export(output: str, form: str, to: str, manifest_uri: str | None = None) -> str:
    """Write the run's coreset, or another manifest of its images, below `to`, and return a line on
    what came of it. A call that was cut short goes on with the pieces that are missing.

    Raises CurateError for another format, a place where another export is, and where too many
    images cannot be read any more.
    """
    started = time.monotonic()
    known = next((one for one in FORMATS if one == form), None)
    if known is None:
        raise CurateError(f"--format {form}: must be one of {', '.join(FORMATS)}")
    run = Run.open(output)
    uri = manifest_uri or run.files.manifest
    rows = len(manifest.read(uri, ["position"]))
    files, memo = ExportFiles(to), Memo(ExportFiles(to).memo)
    request = {"manifest": _digest_of(uri), "format": form}
    if memo.read() is not None and memo.found(request) is None:
        raise CurateError(f"{to}: another export is there; name another place, or remove it")
    if (memo.read() or {}).get("whole"):
        return f"{to}: was exported before"
    memo.write(request, whole=False)
    settings = run.settings
    pieces = -(-rows // PIECE_ROWS)
    sources = {source.name: source for source in settings.open}
    job = Job(known, files, uri, pieces, PIECE_ROWS, sources, settings.images)
    lost = 0
    if known in WITHOUT_IMAGES:
        results([_write_csv.remote(job)])
    else:
        placed = _map_of(run, uri) if known == "atlas" else None
        lost = _write_images(job, placed, settings.images.max_rejected_fraction, rows)
    about = f"Selected by curate, method {settings.coreset.method}."
    if known == "hf":
        storage.write_bytes(files.card, card(rows - lost, about))
    elif known == "atlas":
        results([_join_atlas.remote(job)])
    elif known == "fiftyone":
        results([_join_samples.remote(job)])
        storage.write_json(files.metadata, fiftyone.metadata(about))
    memo.write(request, whole=True, images=rows - lost, rejected=lost)
    storage.remove_tree(files.making)
    seconds = time.monotonic() - started
    gone = f", {lost:,} could not be read: {files.rejected}" if lost else ""
    return f"{rows - lost:,} images{gone}; {seconds:.1f} s: {to}"


def _digest_of(uri: str) -> str:
    """A file's sha256."""

    def read() -> str:
        digest = hashlib.sha256()
        with storage.open_seekable(uri) as file:
            while data := file.read(8 << 20):
                digest.update(data)
        return digest.hexdigest()

    return storage.own_read(uri, read)


def _map_of(run: Run, uri: str) -> ObjectRef:
    """Raises CurateError for too many images, and a selection from other embeddings."""
    found = run.embedded()
    position = manifest.read(uri, ["position"], found.fingerprint)["position"].to_numpy()
    if len(position) > atlas.MOST_IMAGES:
        raise CurateError(
            f"--format atlas: {len(position):,} images, of at most {atlas.MOST_IMAGES:,}; name a "
            "smaller --manifest, as `curate recut` makes them"
        )
    return _map.remote(found.open, position)


@ray.remote
def _map(open_set: list[Shard], position: NDArray[np.int64]) -> atlas.Map:
    order = np.argsort(position)
    rows = rows_at(open_set, position[order])
    return atlas.map_of(rows[np.argsort(order)])


def _write_images(job: Job, placed: ObjectRef | None, most_lost: float, rows: int) -> int:
    """Returns how many images could not be read."""
    there = storage.names_in(job.files.making)
    missing = [
        number
        for number in range(job.pieces)
        if job.files.done(number).rpartition("/")[2] not in there
    ]
    shared = ray.put(job)
    results([_write_piece.remote(shared, number, placed) for number in missing])
    tables = [
        pq.read_table(pa.BufferReader(storage.read_bytes(job.files.done(number))))
        for number in range(job.pieces)
    ]
    rejects = pa.concat_tables([shards.reject_table([]), *tables])
    storage.remove_tree(job.files.rejected)
    if len(rejects):
        shards.write_parquet(job.files.rejected, rejects)
    if len(rejects) > most_lost * rows:
        for number, table in enumerate(tables):
            if len(table):  # next time they may be there
                storage.remove_tree(job.files.done(number))
        raise CurateError(
            f"images.max_rejected_fraction={most_lost}: {len(rejects)} of {rows} images cannot be "
            f"read; {job.files.rejected} says why"
        )
    return len(rejects)


@ray.remote
def _write_piece(job: Job, number: int, placed: atlas.Map | None) -> None:
    write_piece(job, number, placed)


def write_piece(job: Job, number: int, placed: atlas.Map | None = None) -> None:
    """Its files, then, as its mark, the images that could not be read. placed: of an atlas."""
    first = number * job.piece_rows
    table = _rows(job, number)
    rows: list[Row] = table.to_pylist()
    # Those of one file together, so that it is opened once
    order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
    try:
        items = list(read_located([rows[i] for i in order], job.sources, job.limits.max_bytes))
    except storage.Unavailable as error:
        raise CurateError(f"{one_line(error)}; run the same command again, it goes on") from error
    images, rejects = [], []
    for i, item in zip(order, items, strict=True):
        if item.data is None:
            reason = item.error or "no bytes"
            rejects.append(Reject(rows[i]["source"], item.key, item.uri, "read", reason))
        else:
            images.append(Image(rows[i], first + i, item.data))
    images.sort(key=lambda image: image.number)
    if placed is not None:
        pictures = {image.number: atlas.thumbnail(image.data, job.limits) for image in images}
        piece = atlas.table_of(table, first, pictures, placed)
        shards.write_parquet(job.files.piece(number, "parquet"), piece)
    else:
        for path, data in files_of(job.form, number, job.pieces, images, table.schema):
            storage.write_bytes(storage.join(job.files.folder, path), data)
    if job.form == "fiftyone":
        samples = [fiftyone.sample_of(one.row, path_of(job.form, one)) for one in images]
        storage.write_bytes(job.files.piece(number, "jsonl"), fiftyone.lines_of(samples))
    shards.write_parquet(job.files.done(number), shards.reject_table(rejects))


def _rows(job: Job, number: int) -> pa.Table:
    """Of a piece, in the manifest's order."""
    first = number * job.piece_rows
    stop = first + job.piece_rows
    with storage.open_seekable(job.manifest) as file:
        table = pq.ParquetFile(file)
        found, row = [table.schema_arrow.empty_table()], 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if row < stop and row + rows > first:
                whole = table.read_row_group(group)
                found.append(whole.slice(max(first - row, 0), stop - max(first, row)))
            row += rows
    return pa.concat_tables(found)


def _place(row: Row) -> tuple[str, str, int, int]:
    return row["source"], row["uri"], row["offset"] or 0, row["row"] or 0


@ray.remote
def _join_atlas(job: Job) -> None:
    """One file, since neighbours are counted by its rows."""
    with ExitStack() as open_files:
        out: pq.ParquetWriter | None = None
        file = open_files.enter_context(storage.open_whole(job.files.atlas))
        for number in range(job.pieces):
            data = storage.read_bytes(job.files.piece(number, "parquet"))
            table = pq.read_table(pa.BufferReader(data))
            if out is None:
                out = open_files.enter_context(pq.ParquetWriter(file, table.schema))
            out.write_table(table)


@ray.remote
def _join_samples(job: Job) -> None:
    with storage.open_whole(job.files.samples) as file:
        file.write(b'{"samples": [')
        lines = (
            line
            for number in range(job.pieces)
            for line in storage.read_bytes(job.files.piece(number, "jsonl")).splitlines()
        )
        for number, line in enumerate(lines):
            file.write(b",\n" * (number > 0) + line)
        file.write(b"]}\n")


@ray.remote
def _write_csv(job: Job) -> None:
    with storage.open_whole(job.files.csv) as file:
        for number in range(max(job.pieces, 1)):
            table = _rows(job, number)
            file.write(csv_of(table.to_pylist(), table.column_names, header=number == 0))
