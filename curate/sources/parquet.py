"""Parquet files with encoded images, or with paths to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate import listing, storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.listing import FileInfo
from curate.privacy import public
from curate.settings import ParquetSettings
from curate.sources.base import Item, Row, missing_column, place_beside, read_files, within
from curate.sources.units import Unit, check_unchanged, digest_of

FOOTERS_AT_ONCE = 32  # that one task reads while planning
ROWS_AT_ONCE = 128


def plan(source: ParquetSettings, unit_images: int, place: str) -> list[Unit]:
    """Units of `unit_images` rows or more: whole row groups, the least that Parquet reads."""
    files = listing.expand(source.path)
    found = over_tasks(_row_groups, files, FOOTERS_AT_ONCE, source)
    units: list[Unit] = []
    for file, groups in zip(files, (one for some in found for one in some), strict=True):
        start = end = size = 0
        for number, (rows, bytes_) in enumerate(groups, 1):
            end, size = end + rows, size + bytes_
            if end - start >= unit_images or (number == len(groups) and end > start):
                units.append(_unit(source, file, start, end, size))
                start, size = end, 0
    return units if source.limit is None else _limited(source, files, units)


def _limited(source: ParquetSettings, files: list[FileInfo], units: list[Unit]) -> list[Unit]:
    by_uri = {file.uri: file for file in files}
    kept, left = [], source.limit or 0
    for unit in units:
        rows = min(left, unit.images or 0)
        if rows:
            stop = unit.start + rows
            kept.append(_unit(source, by_uri[unit.uri], unit.start, stop, unit.size))
        left -= rows
    return kept


def _unit(source: ParquetSettings, file: FileInfo, start: int, stop: int, size: int) -> Unit:
    options = source.model_dump(mode="json", exclude={"name", "path", "limit"})
    digest = digest_of("parquet", options, public(file.uri), file.size, file.stamp, start, stop)
    return Unit(file.uri, digest, start, stop, stop - start, size, file.stamp)


def read(source: ParquetSettings, unit: Unit, max_bytes: int, last_attempt: bool) -> Iterator[Item]:
    """Raises Changed for another file than was planned."""
    check_unchanged(unit)
    assert unit.stop is not None
    images = read_rows(source, unit.uri, range(unit.start, unit.stop), max_bytes)
    yield from read_files(
        images,
        max_bytes,
        allow_private=source.allow_private,
        listed_in=unit.uri,
        last_attempt=last_attempt,
    )


def read_rows(source: ParquetSettings, uri: str, rows: range, max_bytes: int) -> Iterator[Item]:
    """The images of a run of rows, with their bytes where the table has them."""
    for row, record in _records(source, uri, rows):
        yield within(_image_of(source, uri, row, record), max_bytes)


@ray.remote
def _row_groups(files: list[FileInfo], source: ParquetSettings) -> list[list[tuple[int, int]]]:
    """Rows and bytes of each row group of each file."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda file: _row_groups_of(source, file.uri), files))


def _row_groups_of(source: ParquetSettings, uri: str) -> list[tuple[int, int]]:
    """Rows and bytes of each row group, after a look at the columns."""

    def read() -> pq.FileMetaData:
        with storage.open_seekable(uri, block_bytes=1 << 18) as file:
            try:
                return pq.read_metadata(file)
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                    raise  # not Arrow's own, of damaged bytes
                raise CurateError(f"{uri}: not a Parquet file: {one_line(error)}") from error

    footer = storage.with_retries(uri, read)
    names = footer.schema.to_arrow_schema().names
    for setting, column in _columns(source).items():
        if column not in names:
            raise missing_column(uri, setting, column, names)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _columns(source: ParquetSettings) -> dict[str, str]:
    """Setting → the column that it names."""
    columns = {
        "image_column": None if source.path_column else source.image_column,
        "path_column": source.path_column,
        "key_column": source.key_column,
        "label_column": source.label_column,
    }
    return {setting: column for setting, column in columns.items() if column}


def metadata(
    source: ParquetSettings, unit: Unit, columns: Sequence[str]
) -> Iterator[tuple[Item, Row]]:
    """As `read`, without images: of each its row, and these columns, as far as there are any."""
    check_unchanged(unit)
    assert unit.stop is not None
    for row, record in _records(source, unit.uri, range(unit.start, unit.stop), columns):
        yield Item(key="", uri=unit.uri, row=row), record


def columns_of(unit: Unit) -> list[str]:
    def read() -> list[str]:
        with storage.open_seekable(unit.uri, block_bytes=1 << 18) as file:
            return list(pq.read_schema(file).names)

    return storage.with_retries(unit.uri, read)


def _records(
    source: ParquetSettings, uri: str, wanted: range, only: Sequence[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """(row in file, its columns) of the wanted rows: those that the source names, or `only` some
    others."""
    with storage.open_seekable(uri) as file:
        # A row group of many images is read in slices
        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        row, first = 0, 0
        groups: list[int] = []
        for i in range(table.num_row_groups):
            rows = table.metadata.row_group(i).num_rows
            if row + rows > wanted.start and row < wanted.stop:
                if not groups:
                    first = row
                groups.append(i)
            row += rows
        if not groups:
            return
        row = first
        columns = sorted(
            set(_columns(source).values())
            if only is None
            else set(only) & set(table.schema_arrow.names)
        )
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
            for record in batch.to_pylist():
                if row in wanted:
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
