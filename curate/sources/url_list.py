"""A list of URLs or paths: a text file with one a line, or a CSV or TSV with a header.

Plan order is the order of the lines. A unit is a run of bytes of the list, which its reader reads
again: nowhere are the URLs of a whole list held, or written.
"""

from __future__ import annotations

import csv
import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import ray

from curate import listing, names, storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.settings import UrlListSettings
from curate.sources.base import Item, Row, missing_column, place_beside, read_files
from curate.sources.records import Range, Record, read_bytes, split
from curate.sources.units import Changed, Unit, cuts, digest_of

RANGE_BYTES = 16 << 20  # of a list that one task cuts into units
RANGES_AT_ONCE = 4
HEADER_BYTES = 1 << 20
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # 007 is a name
DELIMITERS = {"csv": ",", "tsv": "\t"}


def plan(source: UrlListSettings, unit_images: int, place: str) -> list[Unit]:
    ranges: list[Range] = []
    for file in listing.expand(source.path):
        end = file.size or len(storage.read_bytes(file.uri))  # some servers do not say
        table = _delimiter(file.uri) is not None
        first = _check_header(source, file.uri) if table else 0
        starts = range(first, end, RANGE_BYTES)
        own = [Range(file.uri, at, min(at + RANGE_BYTES, end), end, table) for at in starts]
        ranges += _with_quotes(own) if table else own
    groups = over_tasks(_units_of, ranges, RANGES_AT_ONCE, source, unit_images)
    return _limited(source, [unit for group in groups for unit in group])


def read(source: UrlListSettings, unit: Unit, max_bytes: int, last_attempt: bool) -> Iterator[Item]:
    """Raises Changed where the list does not say any more what was planned."""
    yield from read_files(
        [item for item, _ in _listed(source, unit)],
        max_bytes,
        allow_private=source.allow_private,
        listed_in=unit.uri,
        last_attempt=last_attempt,
    )


def metadata(
    source: UrlListSettings, unit: Unit, columns: Sequence[str]
) -> Iterator[tuple[Item, Row]]:
    """As `read`, without images: each with these columns, as far as the list has them; numbers
    where all of a column's cells in the unit are."""
    listed = _listed(source, unit)
    typed = [_typed([row.get(column) or None for _, row in listed]) for column in columns]
    for (item, _), values in zip(listed, zip(*typed, strict=True), strict=True):
        yield item, dict(zip(columns, values, strict=True))


def _typed(cells: list[str | None]) -> Sequence[str | int | float | None]:
    if not all(cell is None or NUMBER.fullmatch(cell) for cell in cells):
        return cells
    whole = all(cell is None or cell.lstrip("-").isdigit() for cell in cells)
    return [None if cell is None else int(cell) if whole else float(cell) for cell in cells]


def columns_of(unit: Unit) -> list[str]:
    return _header(unit.uri)


def _listed(source: UrlListSettings, unit: Unit) -> list[tuple[Item, Row]]:
    """Raises Changed."""
    records, header = _records_of(unit), _header(unit.uri)
    if _digest(source, unit.uri, header, records) != unit.digest:
        raise Changed(f"{unit.uri}: changed since it was planned")
    return list(_items(source, unit.uri, header, records))


def says_still(source: UrlListSettings, unit: Unit) -> bool:
    """Whether the list says where the unit was what it said then, whatever was added to it."""
    try:
        records, header = _records_of(unit), _header(unit.uri)
    except FileNotFoundError:
        return False
    return _digest(source, unit.uri, header, records) == unit.digest


def _limited(source: UrlListSettings, units: list[Unit]) -> list[Unit]:
    left = source.limit
    if left is None:
        return units
    kept: list[Unit] = []
    for unit in units:
        images = unit.images or 0
        if images > left:
            unit = _unit(source, unit.uri, _header(unit.uri), _records_of(unit)[:left])
        kept.append(unit)
        left -= unit.images or 0
        if not left:
            break
    return kept


def _with_quotes(ranges: list[Range]) -> list[Range]:
    """Ranges of one CSV, each knowing whether it begins inside of quotes."""
    counts = [count for group in over_tasks(_quotes, ranges, RANGES_AT_ONCE) for count in group]
    before = [0, *accumulate(counts)]
    if before[-1] % 2:
        raise CurateError(f"{ranges[0].uri}: a quote in it is never closed; mend the list")
    return [replace(one, inside=bool(n % 2)) for one, n in zip(ranges, before, strict=False)]


@ray.remote
def _quotes(ranges: list[Range]) -> list[int]:
    return [one.quotes() for one in ranges]


@ray.remote
def _units_of(ranges: list[Range], source: UrlListSettings, unit_images: int) -> list[Unit]:
    units = []
    for one in ranges:
        records, header = one.records(), _header(one.uri)
        hashes = np.array([zlib.crc32(record.text) for record in records], np.uint32)
        groups = [records[low:high] for low, high in cuts(hashes, unit_images)]
        units += [_unit(source, one.uri, header, group) for group in groups]
    return units


def _unit(source: UrlListSettings, uri: str, header: list[str], records: list[Record]) -> Unit:
    digest = _digest(source, uri, header, records)
    return Unit(uri, digest, records[0].start, records[-1].stop, len(records))


def _records_of(unit: Unit) -> list[Record]:
    assert unit.stop is not None
    data = read_bytes(unit.uri, unit.start, unit.stop)
    return split(data, unit.start, _delimiter(unit.uri) is not None)


def _digest(source: UrlListSettings, uri: str, header: list[str], records: list[Record]) -> str:
    """Of what the records say; and of where the list lies, if they speak of places beside it."""
    options = source.model_dump(mode="json", exclude={"name", "path", "limit"})
    lines = [record.text for record in records]
    absolute = not header and all(b"://" in line or line.startswith(b"/") for line in lines)
    beside = "" if absolute else uri.rpartition("/")[0]
    said = hashlib.sha256(b"\n".join(lines)).hexdigest()
    return digest_of("url_list", options, header, beside, said)


def _items(
    source: UrlListSettings, uri: str, header: list[str], records: list[Record]
) -> Iterator[tuple[Item, Row]]:
    """One a record, and the cells of its row. Nothing in a list need be UTF-8."""
    texts = [record.text.decode("utf-8", "surrogateescape") for record in records]
    delimiter = _delimiter(uri)
    if delimiter is None:
        yield from ((_item(uri, text), {}) for text in texts)
        return
    for record, text in zip(records, texts, strict=True):
        nameless = Item(key=f"byte {record.start}", uri=uri)
        try:
            row = dict(zip(header, next(csv.reader([text], delimiter=delimiter)), strict=False))
        except csv.Error as error:
            yield replace(nameless, error=f"not readable as CSV: {one_line(error)}"), {}
            continue
        cell = {setting: row.get(column) for setting, column in _columns(source).items()}
        url = (cell["url_column"] or "").strip()  # a short row lacks some
        if url:
            yield _item(uri, url, cell.get("key_column"), cell.get("label_column")), row
        else:
            yield replace(nameless, error="no URL in this row"), row


def _item(listed_in: str, url: str, key: str | None = None, label: str | None = None) -> Item:
    return Item(
        key=names.escaped(key or url),
        uri=place_beside(listed_in, url),
        label=names.escaped(label) if label else None,
    )


def _delimiter(uri: str) -> str | None:
    """Of a table; None for a text."""
    return DELIMITERS.get(uri.rpartition(".")[2].lower())


def _header(uri: str) -> list[str]:
    """A table's columns; none of a text."""
    delimiter = _delimiter(uri)
    if delimiter is None:
        return []
    texts = [record.text.decode("utf-8", "surrogateescape") for record in _first_record(uri)]
    return [names.escaped(name) for name in next(csv.reader(texts, delimiter=delimiter), [])]


def _first_record(uri: str) -> list[Record]:
    """Of a table; none of an empty one."""
    return split(read_bytes(uri, 0, HEADER_BYTES), 0, csv=True)[:1]


def _check_header(source: UrlListSettings, uri: str) -> int:
    """Where a table's header ends."""
    header = _header(uri)
    for setting, column in _columns(source).items():
        if column not in header:
            raise missing_column(uri, setting, column, header)
    return _first_record(uri)[0].stop


def _columns(source: UrlListSettings) -> dict[str, str]:
    """Setting → the column that it names."""
    columns = {
        "url_column": source.url_column,
        "key_column": source.key_column,
        "label_column": source.label_column,
    }
    return {setting: column for setting, column in columns.items() if column}
