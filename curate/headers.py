"""What is read of an image file's own bytes, before any decoder has them."""

from __future__ import annotations

import re

# A JPEG's marker may have any number of FF before it; FF 00 is none
MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
START_OF_SCAN = b"\xda"
WITHOUT_LENGTH = {b"\x01", *(bytes([code]) for code in range(0xD0, 0xDA))}  # TEM, RST, SOI, EOI


def without_stray_bytes(data: bytes) -> bytes:
    """A JPEG without what lies between its segments, up to its first scan; anything else as it is.

    libjpeg steps over such bytes, and says so in a warning, of which damage to the picture is
    another. Which bytes these are is libjpeg's own rule (jdmarker.c, next_marker).
    """
    if not data.startswith(b"\xff\xd8"):
        return data
    kept: list[slice] = []
    first = place = 2  # of what is kept next, and of what is looked at
    while marker := MARKER.search(data, place):
        if marker.start() != place:
            kept.append(slice(first, place))
            first = marker.start()
        if marker[1] == START_OF_SCAN:
            kept.append(slice(first, None))
            break
        place = marker.end()
        if marker[1] not in WITHOUT_LENGTH:
            length = int.from_bytes(data[place : place + 2], "big")
            if length < 2:
                return data  # damaged, which libjpeg says
            place += length
    else:
        return data  # no scan, no picture
    return data if len(kept) == 1 else b"".join([data[:2], *(data[part] for part in kept)])


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a WebP's header; None for anything else.

    Pillow's decoder allocates the canvas when it opens the file, which is too late to refuse it.
    Source: RFC 9649, sections 2.5 to 2.7.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return None
