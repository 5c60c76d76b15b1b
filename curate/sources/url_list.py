"""A list of URLs or paths: a text file with one a line, or a CSV or TSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from curate import listing, names, storage
from curate.errors import CurateError
from curate.settings import UrlListSettings
from curate.sources.base import (
    Item,
    Unit,
    file_units,
    missing_column,
    place_beside,
    read_files,
)


def plan(source: UrlListSettings, unit_images: int) -> list[Unit]:
    units: list[Unit] = []
    left = source.limit
    for file in listing.expand(source.path):
        text = storage.read_bytes(file.uri).decode("utf-8-sig", "surrogateescape")
        suffix = file.uri.rpartition(".")[2].lower()
        if suffix in ("csv", "tsv"):
            try:
                items = _rows(source, file.uri, text, "," if suffix == "csv" else "\t")
            except csv.Error as error:
                raise CurateError(f"{file.uri}: not readable as {suffix}: {error}") from error
        else:
            lines = [line.strip() for line in text.splitlines()]
            items = [_item(file.uri, line) for line in lines if line]
        items.sort(key=lambda item: (item.key, item.uri))
        items = items[:left]
        if left is not None:
            left -= len(items)
        units.extend(file_units(file.uri, items, unit_images))
    return units


def read(source: UrlListSettings, unit: Unit, max_bytes: int) -> Iterator[Item]:
    yield from read_files(
        unit.items or (), max_bytes, allow_private=source.allow_private, listed_in=unit.uri
    )


def _rows(source: UrlListSettings, uri: str, text: str, delimiter: str) -> list[Item]:
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    header = [names.escaped(name) for name in table.fieldnames or []]
    columns = {
        "url_column": source.url_column,
        "key_column": source.key_column,
        "label_column": source.label_column,
    }
    for setting, column in columns.items():
        if column and column not in header:
            raise missing_column(uri, setting, column, header)
    items = []
    for record in table:
        url = (record[source.url_column] or "").strip()
        if url:  # a short row has None for what it lacks
            key = record[source.key_column] if source.key_column else None
            label = record[source.label_column] if source.label_column else None
            items.append(_item(uri, url, key, label))
    return items


def _item(listed_in: str, url: str, key: str | None = None, label: str | None = None) -> Item:
    """Of a line or row, of which nothing need be UTF-8."""
    return Item(
        key=names.escaped(key or url),
        uri=place_beside(listed_in, url),
        label=names.escaped(label) if label else None,
    )
