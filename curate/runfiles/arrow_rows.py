"""How many rows an Arrow IPC file or stream has, by the metadata of its messages alone.

pyarrow reads the messages whole, and so the embeddings in them. A file is a magic string, then a
stream: messages of (mark, size of the metadata, metadata, body), of which the metadata is a
flatbuffer that says how long the body is, and how many rows a record batch has.
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

MAGIC = b"ARROW1\0\0"
MARK = -1  # of a message; before Arrow 0.15 there was none
RECORD_BATCH = 3  # of the kinds of message


def count(file: BinaryIO) -> int:
    """Rows in the file. Raises ValueError for one that is no Arrow IPC file or stream."""
    first = file.read(len(MAGIC))
    if first != MAGIC:
        file.seek(0)
    rows = messages = 0
    try:
        while size := _size_of_metadata(file):
            message = file.read(size)
            if len(message) < size:
                raise ValueError(f"message {messages} is cut short")
            root = _at(message, "I", 0)
            kind = _field(message, root, 1, "B", 0)
            if kind == RECORD_BATCH:
                header = _place(message, root, 2)
                rows += _field(message, header + _at(message, "I", header), 0, "q", 0)
            file.seek(_field(message, root, 3, "q", 0), 1)
            messages += 1
    except struct.error as error:
        raise ValueError(f"message {messages} cannot be read: {error}") from error
    if not messages:
        raise ValueError("there is no message in it")
    return rows


def _size_of_metadata(file: BinaryIO) -> int:
    """Of the next message, bytes; 0 after the last one."""
    head = file.read(4)
    if head and _at(head, "i", 0) == MARK:
        head = file.read(4)
    return _at(head, "i", 0) if head else 0  # a stream need not say that it ends


def _at(data: bytes, kind: str, place: int) -> Any:
    return struct.unpack_from(f"<{kind}", data, place)[0]


def _place(data: bytes, table: int, number: int) -> int:
    """Where a table's field lies, 0 where it is left out: a table begins with how far before it the
    places of its fields are listed, after the sizes of list and table."""
    listed = table - _at(data, "i", table)
    slot = 4 + 2 * number
    offset = _at(data, "H", listed + slot) if slot < _at(data, "H", listed) else 0
    return table + offset if offset else 0


def _field(data: bytes, table: int, number: int, kind: str, default: int) -> int:
    place = _place(data, table, number)
    return int(_at(data, kind, place)) if place else default
