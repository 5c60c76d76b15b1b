"""A tree of image files. The first folder below the root is the label, any depth is fine."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate import listing, storage
from curate.cluster import results
from curate.errors import CurateError
from curate.listing import FileBelow
from curate.settings import ImageFolderSettings
from curate.sources.base import IMAGE_EXTENSIONS, Item, read_files
from curate.sources.units import Changed, Unit, cuts, digest_of

log = logging.getLogger(__name__)

# What the plan keeps of single files, a row group a unit
FILES = pa.schema(
    {
        "key": pa.string(),
        "uri": pa.string(),
        "label": pa.string(),
        "size": pa.int64(),
        "stamp": pa.string(),
    }
)
UNITS_A_FILE = 100


def plan(source: ImageFolderSettings, unit_images: int, place: str) -> list[Unit]:
    """In one task: the driver never holds the files' names."""
    units, left_out = results([_plan.remote(source, unit_images, place)])[0]
    if left_out:
        reasons = ", ".join(f"{files} {reason}" for reason, files in sorted(left_out.items())[::-1])
        log.info("source %s: left out %d files: %s", source.name, left_out.total(), reasons)
    return list(units)


@ray.remote
def _plan(
    source: ImageFolderSettings, unit_images: int, place: str
) -> tuple[list[Unit], Counter[str]]:
    try:
        found = listing.find(source.path)
    except FileNotFoundError:
        raise CurateError(f"{source.path}: no such folder") from None
    files = []
    left_out: Counter[str] = Counter()
    for file in found:
        if file.path.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS:
            left_out["without an image's extension"] += 1
        elif not file.regular:
            left_out["not a regular file"] += 1
        else:
            files.append(file)
    files = files[: source.limit]
    hashes = np.array([zlib.crc32(file.path.encode()) for file in files], np.uint32)
    units: list[Unit] = []
    groups = [files[low:high] for low, high in cuts(hashes, unit_images)]
    for start in range(0, len(groups), UNITS_A_FILE):
        number = start // UNITS_A_FILE
        units += _write(f"{place}-{number:06d}.parquet", groups[start : start + UNITS_A_FILE])
    return units, left_out


def _write(uri: str, groups: list[list[FileBelow]]) -> Iterator[Unit]:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, FILES, compression="zstd") as writer:
        for files in groups:
            rows = [(f.path, f.uri, _label(f.path), f.size, f.stamp) for f in files]
            columns = zip(*rows, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, FILES, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=FILES))
    storage.write_bytes(uri, sink.getvalue())
    first = 0
    for files in groups:
        known = hashlib.sha256()
        for file in files:
            known.update(f"{file.path}\n{file.uri}\n{file.size} {file.stamp}\n".encode())
        yield Unit(
            uri,
            digest_of("image_folder", known.hexdigest()),
            first,
            first + len(files),
            len(files),
            sum(file.size for file in files),
        )
        first += len(files)


def _label(path: str) -> str | None:
    return path.split("/", 1)[0] if "/" in path else None


def read(
    source: ImageFolderSettings, unit: Unit, max_bytes: int, last_attempt: bool
) -> Iterator[Item]:
    rows = files_of(unit).to_pylist()
    items = [Item(row["key"], row["uri"], size=row["size"], label=row["label"]) for row in rows]
    read = read_files(items, max_bytes, last_attempt=last_attempt)
    for row, item in zip(rows, read, strict=True):
        yield _as_planned(item, row["size"], row["stamp"])


def files_of(unit: Unit) -> pa.Table:
    """The single files of a unit, as the plan has them."""
    assert unit.stop is not None
    with storage.open_seekable(unit.uri, block_bytes=1 << 20) as file:
        table = pq.ParquetFile(file)
        first = 0
        for group in range(table.num_row_groups):
            if first == unit.start:
                return table.read_row_group(group)
            first += table.metadata.row_group(group).num_rows
    raise Changed(f"{unit.uri}: holds no unit at {unit.start}; run again")


def _as_planned(item: Item, size: int, stamp: str) -> Item:
    """Raises Changed for a file that is not the one that was planned."""
    if item.error == "no such file" and stamp:  # and no link that never led anywhere
        raise Changed(f"{item.uri}: gone since it was planned")
    local = storage.is_local(item.uri)
    if item.data is not None and (
        len(item.data) != size
        or (local and str(os.stat(storage.filesystem(item.uri)[1]).st_mtime_ns) != stamp)
    ):
        raise Changed(f"{item.uri}: changed since it was planned")
    return replace(item, size=size)
