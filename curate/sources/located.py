"""Images by where a manifest says they lie: a file, a range of an archive, a row of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby

from curate import storage
from curate.faults import is_web
from curate.privacy import restored
from curate.settings import ParquetSettings, SourceSettings
from curate.sources import is_damage, parquet, paths_of
from curate.sources.base import Item, Row, read_ahead, read_files, trouble, within

ROWS_APART = 1000  # rows of a table further apart than this are read apart


def read_located(
    rows: list[Row],
    sources: Mapping[str, SourceSettings],
    max_bytes: int,
    *,
    last_attempt: bool = True,
) -> Iterator[Item]:
    """rows of a manifest, those of one file together → items with their bytes, in order; what
    cannot be read, is over max_bytes, or is not the image that was selected, is an item with an
    `error`.

    sources: settings by name, which know the columns of tables. last_attempt: whether nobody will
    try again what a web server does not give now.

    Raises storage.Unavailable where some cannot be read now; some items may have come by then.
    """
    for (source, kind, uri), group in groupby(rows, key=lambda row: _way(row, sources)):
        images = list(group)
        items = _read(kind, uri, images, sources.get(source), max_bytes, last_attempt)
        for row, item in zip(images, items, strict=True):
            yield _checked(item, row["sha256"])


def _way(row: Row, sources: Mapping[str, SourceSettings]) -> tuple[str, str, str]:
    """The source, how the image is read, and, where images of one file alone are read together,
    the file: neighbours alike go together."""
    source = sources.get(row["source"])
    if row["offset"] is not None:
        return row["source"], "range", ""
    # A row of a table may name another file, and then that is the URI
    names_files = isinstance(source, ParquetSettings) and source.path_column is not None
    if row["row"] is None or names_files:
        return row["source"], "file", ""
    return row["source"], "row", row["uri"]


def _read(
    kind: str,
    uri: str,
    rows: list[Row],
    source: SourceSettings | None,
    max_bytes: int,
    last_attempt: bool,
) -> Iterator[Item]:
    names = ("key", "uri", "offset", "size", "row", "label")
    given = [] if source is None else paths_of(source)
    uri = restored(uri, given)
    items = [Item(**{name: row[name] for name in names}) for row in rows]
    items = [replace(item, uri=restored(item.uri, given)) for item in items]
    if kind == "range":
        read = partial(_read_range, last_attempt=last_attempt)
        yield from read_ahead((within(item, max_bytes) for item in items), read)
    elif kind == "row" and _is_table(uri):
        yield from _read_rows(uri, items, source, max_bytes)
    else:
        allow_private = getattr(source, "allow_private", True)
        yield from read_files(
            items, max_bytes, allow_private=allow_private, last_attempt=last_attempt
        )


def _is_table(uri: str) -> bool:
    try:
        return storage.with_retries(uri, lambda: storage.read_range(uri, 0, 4)).startswith(b"PAR1")
    except storage.Unavailable:
        raise
    except Exception:  # reading the file says what is wrong
        return False


def _read_range(item: Item, last_attempt: bool) -> Item:
    offset, size = item.offset, item.size
    assert offset is not None and size is not None
    if item.error:
        return item
    try:
        read = lambda: storage.read_range(item.uri, offset, size)  # noqa: E731
        data = storage.with_retries(item.uri, read)
    except storage.Unavailable as error:
        if not (is_web(item.uri) and last_attempt):
            raise
        return replace(item, error=trouble(error))
    except Exception as error:  # whatever a filesystem raises is this one image's trouble
        return replace(item, error=trouble(error))
    if len(data) > size:  # from a server that knows no ranges: the whole file
        data = data[offset : offset + size]
    return replace(item, data=data)


def _read_rows(
    uri: str, items: list[Item], source: SourceSettings | None, max_bytes: int
) -> Iterator[Item]:
    settings = source if isinstance(source, ParquetSettings) else None
    if settings is None:
        settings = ParquetSettings(name="table", kind="parquet", path=[uri])
    wanted = {item.row for item in items if item.row is not None}
    found: dict[int | None, Item] = {}
    error = "no such row"
    try:
        for first, last in _runs(sorted(wanted)):
            images = parquet.read_rows(settings, uri, range(first, last + 1), max_bytes)
            for item in read_files(images, max_bytes):
                if item.row in wanted:
                    found[item.row] = item
    except storage.Unavailable:
        raise
    except Exception as failure:  # whatever a filesystem or a damaged file raises
        if not is_damage(failure, uri):
            raise storage.Unavailable(f"{uri}: {trouble(failure)}") from failure
        error = trouble(failure)
    for item in items:
        image = found.get(item.row)
        if image is None:
            yield replace(item, error=error)
        else:
            yield replace(item, data=image.data, error=image.error)


def _runs(rows: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of rows that are near enough to be read in one go."""
    first = last = rows[0]
    for row in rows[1:]:
        if row - last > ROWS_APART:
            yield first, last
            first = row
        last = row
    yield first, last


def _checked(item: Item, sha256: str | None) -> Item:
    if item.data is None or sha256 is None:
        return item
    if hashlib.sha256(item.data).hexdigest() != sha256:
        return replace(item, data=None, error="not the image that was selected: its bytes changed")
    return item
