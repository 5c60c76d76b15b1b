"""A list of URLs or paths: a text file with one a line, or a CSV or TSV with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from curate import storage
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
    for file in storage.expand(source.path):
        text = storage.read_bytes(file.uri).decode("utf-8-sig", "replace")
        suffix = file.uri.rpartition(".")[2].lower()
        if suffix in ("csv", "tsv"):
            try:
                items = _rows(source, file.uri, text, "," if suffix == "csv" else "\t")
            except csv.Error as error:
                raise CurateError(f"{file.uri}: not readable as {suffix}: {error}") from error
        else:
            lines = [line.strip() for line in text.splitlines()]
            items = [Item(key=line, uri=place_beside(file.uri, line)) for line in lines if line]
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
            raise missing_column(uri, setting, column, names)
    items = []
    for record in table:
        url = (record[source.url_column] or "").strip()
        if url:  # a short row has None for what it lacks
            key = (record[source.key_column] if source.key_column else None) or url
            label = (record[source.label_column] if source.label_column else None) or None
            items.append(Item(key=key, uri=place_beside(uri, url), label=label))
    return items
