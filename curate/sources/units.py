"""Units: what one reader takes at a time, and by what they are known wherever they are met again.

A unit's digest says what will be read: kind and options of the source, where it lies, which part of
it, and what tells whether the file is still the same. Equal digests, equal embeddings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate import listing


class Changed(Exception):
    """What was planned is not there any more, or is another: one short line, with the URI."""


@dataclass(frozen=True)
class Unit:
    """Images of one source that lie together.

    uri: an archive, a table or a list, of which `start` to `stop` is meant: images of a tar, rows
    of a Parquet file, bytes of a list (`stop` None: to its end); of a folder the file of the plan
    that names its single files, and rows of that.
    images: how many there will be, where that is known before reading. size: bytes of the images,
    0 where unknown. stamp: of the file at `uri`, by `listing`.
    """

    uri: str
    digest: str
    start: int = 0
    stop: int | None = None
    images: int | None = None
    size: int = 0
    stamp: str = ""


def check_unchanged(unit: Unit) -> None:
    """Raises Changed where the file is not the one that was planned; its reader has it open."""
    if not unit.stamp:
        return  # its filesystem has none
    try:
        _, stamp = listing.stamp_of(unit.uri)
    except FileNotFoundError:
        raise Changed(f"{unit.uri}: gone since it was planned") from None
    if stamp != unit.stamp:
        raise Changed(f"{unit.uri}: changed since it was planned")


def digest_of(*known: Any) -> str:
    """128 bits over what decides a unit's images, as JSON, in 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]


def cuts(hashes: NDArray[np.uint32], mean: int) -> list[tuple[int, int]]:
    """Where a list of images is cut into units: (first, after the last) of each, all in order.

    hashes: of each image's key. A unit is between a quarter of `mean` and twice it, the last one
    may be smaller; the hashes alone decide where one ends, so that an image that comes to stand
    among the others changes the unit it falls into and, seldom, its neighbour.
    """
    found = []
    start, least, most = 0, mean // 4, 2 * mean
    while start < len(hashes):
        window = hashes[start + least : start + most]
        ends = np.flatnonzero(window % mean == 0)
        if len(ends):
            stop = start + least + int(ends[0]) + 1
        elif start + most < len(hashes):
            stop = start + least + int(np.argmin(window)) + 1
        else:
            stop = len(hashes)
        found.append((start, stop))
        start = stop
    return found
