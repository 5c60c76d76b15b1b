"""Parquet files with encoded images, or with paths to images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from curate import listing, storage
from curate.errors import CurateError, one_line
from curate.settings import ParquetSettings
from curate.sources.base import Item, Row, Unit, missing_column, place_beside, read_files, within

FOOTERS_AT_ONCE = 32  # planning reads one footer a file
ROWS_AT_ONCE = 128


def plan(source: ParquetSettings, unit_images: int) -> list[Unit]:
    """Units of `unit_images` rows or more: whole row groups, the least that Parquet reads."""
    files = listing.expand(source.path)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        groups_of = list(pool.map(lambda file: _row_groups(source, file.uri), files))
    left = source.limit
    units: list[Unit] = []
    for file, groups in zip(files, groups_of, strict=True):
        start = end = 0
        for rows in groups:
            end += rows
            if end - start >= unit_images:
                units.append(Unit(file.uri, start=start, stop=end))
                start = end
        if end > start:
            units.append(Unit(file.uri, start=start, stop=end))
    if left is None:
        return units
    kept = []
    for unit in units:
        rows = min(left, unit.images or 0)
        if rows:
            kept.append(Unit(unit.uri, start=unit.start, stop=unit.start + rows))
        left -= rows
    return kept


def read(source: ParquetSettings, unit: Unit, max_bytes: int) -> Iterator[Item]:
    images = (_image_of(source, unit.uri, row, record) for row, record in _records(source, unit))
    yield from read_files(
        (within(image, max_bytes) for image in images),
        max_bytes,
        allow_private=source.allow_private,
        listed_in=unit.uri,
    )


def _row_groups(source: ParquetSettings, uri: str) -> list[int]:
    """Rows in each row group, after a look at the columns."""
    try:
        with storage.open_seekable(uri) as file:
            footer = pq.read_metadata(file)
    except pa.ArrowException as error:
        raise CurateError(f"{uri}: not a Parquet file: {one_line(error)}") from error
    names = footer.schema.to_arrow_schema().names
    for setting, column in _columns(source).items():
        if column not in names:
            raise missing_column(uri, setting, column, names)
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def _columns(source: ParquetSettings) -> dict[str, str]:
    """Setting → the column that it names."""
    columns = {
        "image_column": None if source.path_column else source.image_column,
        "path_column": source.path_column,
        "key_column": source.key_column,
        "label_column": source.label_column,
    }
    return {setting: column for setting, column in columns.items() if column}


def _records(source: ParquetSettings, unit: Unit) -> Iterator[tuple[int, Row]]:
    """(row in file, its columns) for the rows of the unit."""
    with storage.open_seekable(unit.uri) as file:
        table = pq.ParquetFile(file)
        row, first = 0, 0
        groups: list[int] = []
        for i in range(table.num_row_groups):
            rows = table.metadata.row_group(i).num_rows
            if row + rows > unit.start and (unit.stop is None or row < unit.stop):
                if not groups:
                    first = row
                groups.append(i)
            row += rows
        if not groups:
            return
        row = first
        columns = sorted(set(_columns(source).values()))
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
            for record in batch.to_pylist():
                if row >= unit.start and (unit.stop is None or row < unit.stop):
                    yield row, record
                row += 1


def _image_of(source: ParquetSettings, uri: str, row: int, record: Row) -> Item:
    """The image of one row, with its bytes where the row has them, else with the file's URI."""

    def text(column: str | None) -> str | None:
        value = record.get(column) if column else None
        return None if value is None else str(value)

    key = text(source.key_column) or f"{uri.rpartition('/')[2]}:{row}"
    label = text(source.label_column)
    image = record.get(source.path_column or source.image_column)
    if isinstance(image, dict):  # Hugging Face's Image feature
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes) and image:
        return Item(key=key, uri=uri, size=len(image), row=row, label=label, data=image)
    if isinstance(image, str) and image:
        return Item(key=key, uri=place_beside(uri, image), row=row, label=label)
    reason = f"a {type(image).__name__}, no encoded image" if image else "no image in this row"
    return Item(key=key, uri=uri, row=row, label=label, error=reason)
