"""A list of URLs or paths: a text file with one a line, or a CSV or TSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from curate import storage
from curate.config import UrlListSettings
from curate.errors import CurateError
from curate.sources.base import Item, Unit, file_units, read_files


def plan(source: UrlListSettings, unit_images: int) -> list[Unit]:
    units: list[Unit] = []
    left = source.limit
    for file in storage.expand(source.path):
        text = storage.read_bytes(file.uri).decode("utf-8-sig", "replace")
        suffix = file.uri.rpartition(".")[2].lower()
        if suffix in ("csv", "tsv"):
            items = _rows(source, file.uri, text, "," if suffix == "csv" else "\t")
        else:
            lines = [line.strip() for line in text.splitlines()]
            items = [Item(key=line, uri=_place(line, file.uri)) for line in lines if line]
        items.sort(key=lambda item: (item.key, item.uri))
        items = items[:left]
        if left is not None:
            left -= len(items)
        units.extend(file_units(file.uri, items, unit_images))
    return units


def read(source: UrlListSettings, unit: Unit) -> Iterator[Item]:
    yield from read_files(unit.items or ())


def _rows(source: UrlListSettings, uri: str, text: str, delimiter: str) -> list[Item]:
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    names = table.fieldnames or []
    columns = {
        "url_column": source.url_column,
        "key_column": source.key_column,
        "label_column": source.label_column,
    }
    for setting, column in columns.items():
        if column and column not in names:
            raise CurateError(
                f"{uri}: no column {column!r}; set {setting} to one of {', '.join(names)}"
            )
    items = []
    for record in table:
        url = (record[source.url_column] or "").strip()
        if url:
            key = record[source.key_column] if source.key_column else url
            label = record[source.label_column] if source.label_column else None
            items.append(Item(key=key, uri=_place(url, uri), label=label))
    return items


def _place(url: str, list_uri: str) -> str:
    """A path in a list is relative to the list."""
    if "://" in url or url.startswith("/"):
        return url
    return storage.join(list_uri.rpartition("/")[0] or ".", url)
