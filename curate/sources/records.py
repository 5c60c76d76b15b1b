"""A list's bytes → its records, from any range of it: lines of a text, or of a CSV, whose quoted
fields may have line feeds in them.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate import storage

MORE_BYTES = 1 << 16  # read at a time beyond a range, to the end of its last record


@dataclass(frozen=True)
class Record:
    """start, stop: where it lies in the list, bytes; text: without the white space around a line,
    without the line end of a row, whose first cell may be empty."""

    start: int
    stop: int
    text: bytes


@dataclass(frozen=True)
class Range:
    """Bytes of a list; its records are those that begin in it."""

    uri: str
    start: int
    stop: int
    end: int  # of the list
    csv: bool
    inside: bool = False  # of quotes, where it begins

    def quotes(self) -> int:
        return read_bytes(self.uri, self.start, self.stop).count(b'"')

    def records(self) -> list[Record]:
        """Those that are not blank."""
        first = max(self.start - 1, 0)  # the record before may end there
        data = read_bytes(self.uri, first, self.stop)
        inside = self.inside != (self.start > 0 and data[:1] == b'"')
        while True:
            ends = _ends(data, self.csv, inside) + first
            read = first + len(data)
            if read >= self.end or (len(ends) and ends[-1] >= self.stop - 1):
                break
            data += read_bytes(self.uri, read, min(read + MORE_BYTES, self.end))
        if self.start and not len(ends):
            return []
        begin = int(ends[0]) + 1 if self.start else 0
        if begin >= self.stop:
            return []
        beyond = ends[ends >= self.stop - 1]
        last = int(beyond[0]) if len(beyond) else self.end
        return split(data[begin - first : last - first], begin, self.csv)


def split(data: bytes, first: int, csv: bool) -> list[Record]:
    """Records that are not blank, of bytes that begin with one, at `first` of their list."""
    start = len(codecs.BOM_UTF8) if not first and data.startswith(codecs.BOM_UTF8) else 0
    found = []
    for end in [*_ends(data, csv, False).tolist(), len(data)]:
        text = data[start:end].strip(b"\r\n" if csv else None)
        if text:
            found.append(Record(first + start, first + end, text))
        start = end + 1
    return found


def _ends(data: bytes, csv: bool, inside: bool) -> NDArray[np.intp]:
    """Where records end: line feeds, in a CSV those outside of quotes."""
    array = np.frombuffer(data, np.uint8)
    feeds = np.flatnonzero(array == ord("\n"))
    if not csv:
        return feeds
    quotes = np.flatnonzero(array == ord('"'))
    return feeds[(np.searchsorted(quotes, feeds) + inside) % 2 == 0]


def read_bytes(uri: str, start: int, stop: int) -> bytes:
    read = lambda: storage.read_range(uri, start, stop - start)  # noqa: E731
    data = storage.with_retries(uri, read)
    # From a server that knows no ranges: the whole file
    return data[start:stop] if len(data) > stop - start else data
