"""What flows from readers to actors: parts of units, decoded, cropped, and all of one size.

Full-size images never enter Ray's object store, and no part is larger than PART_BYTES.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle

from curate.embedding.careful import OUT_OF_MEMORY, Bounds, Careful, at_most
from curate.images import EncodedImage, Pixels, Preprocessing, Refused, load_resize
from curate.privacy import public
from curate.runfiles import plan, shards
from curate.runfiles.files import PlanFiles
from curate.runfiles.plan import PlannedUnit, SetName
from curate.runfiles.shards import Reject, Stage
from curate.settings import ImageSettings, SourceSettings
from curate.sources import Changed, Item, lost, read_unit
from curate.storage import Unavailable

_Image = tuple[Any, ...]  # values of shards.IMAGE_FIELDS
PART_BYTES = 160 << 20  # of pixels: 1,000 images of 224 px
KEPT_BYTES = 1 << 30  # of two parts' room, and more than they ever touch
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
MOST_DEATHS = 5  # of readers on one unit, of which no image is found to be the reason


@dataclass(frozen=True)
class Reading:
    """What a reader needs to know beside its units."""

    plan: PlanFiles
    sources: dict[tuple[SetName, str], SourceSettings]
    images: ImageSettings
    preprocessing: Preprocessing
    last_attempt: bool  # whether a unit that cannot be read now is given up
    bounds: Bounds


def read_parts(batch: pa.Table, reading: Reading, watch: ActorHandle) -> Iterator[pa.Table]:
    """Rows of the plan → rows of parts: decoded pixels, and what is known of each image. A unit
    that cannot be read ends in a part that says so, with nothing in it."""
    _keep_memory()
    load_resize()  # seconds, which are no image's
    seen = reading.preprocessing
    capacity = max(1, PART_BYTES // (math.prod(seen.shape) * seen.dtype.itemsize))
    held = 0.0  # seconds since the part before was ready, that nobody took it
    for planned in plan.from_table(batch, reading.plan):
        try:
            for part in _parts_of(planned, reading, watch, capacity):
                table = part.to_table(held)
                ready = time.monotonic()
                yield table
                held = time.monotonic() - ready
        except (Unavailable, Changed) as error:
            part = _Part(planned, 0, capacity, seen)
            part.trouble, part.again = str(error), isinstance(error, Unavailable)
            yield part.to_table(0.0)
        except MemoryError:  # as where the system is not asked but kills
            os._exit(OUT_OF_MEMORY)
        watch.ended.remote(planned.unit.digest)


@cache
def _keep_memory() -> None:
    """What a part took stays with this process, for the next: the kernel would hand it out, and
    zero it, page by page, a seventh of a reader's time. glibc alone is asked."""
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _parts_of(
    planned: PlannedUnit, reading: Reading, watch: ActorHandle, capacity: int
) -> Iterator[_Part]:
    """Raises as `read_unit` does."""
    source, unit = reading.sources[planned.set, planned.source], planned.unit
    seen, limits = reading.preprocessing, reading.images
    deaths = cast("int", ray.get(watch.begun.remote(unit.digest)))
    if deaths > MOST_DEATHS:
        raise Unavailable(f"{unit.uri}: its reader died {deaths} times, of no image by itself")
    careful = Careful(source, unit, limits, reading.preprocessing, reading.bounds)
    deadly, fatal = careful.deadly() if deaths > 1 else ({}, None)
    part = _Part(planned, 0, capacity, seen)
    if fatal is None:
        items = read_unit(source, unit, limits.max_bytes, last_attempt=reading.last_attempt)
    else:
        items = lost(unit, fatal)
    for place, item in enumerate(items):
        if part.full:
            yield part
            part = _Part(planned, part.number + 1, capacity, seen)
        if place in deadly:
            item = replace(item, data=None, error=deadly[place])
        with at_most(reading.bounds.seconds):
            _decode_into(part, item, limits, reading.preprocessing)
    part.last = True
    yield part


def _decode_into(
    part: _Part, item: Item, images: ImageSettings, preprocessing: Preprocessing
) -> None:
    if item.data is None:
        part.reject(item, "read", item.error or "no bytes")
        return
    sha256 = hashlib.sha256(item.data).hexdigest()  # while the bytes are in the CPU's cache
    try:
        image = EncodedImage(item.data, images)
        pixels = preprocessing.pixels(image)
    except Refused as reason:
        part.reject(item, "decode", str(reason))
        return
    part.add(item, image.width, image.height, sha256, pixels)


class _Part:
    """Images of one unit on their way to an actor: at most `capacity` of them."""

    def __init__(
        self, planned: PlannedUnit, number: int, capacity: int, seen: Preprocessing
    ) -> None:
        self.planned, self.number = planned, number
        self.capacity = capacity
        self.started = time.monotonic()
        self.last = False
        self.failed: str | None = None  # why the unit gives no more images than these
        self.trouble: str | None = None  # why the unit could not be read to its end, this time
        self.again = False  # whether that may pass
        # Memory that is never written to is never there
        self.pixels = np.empty((capacity, *seen.shape), seen.dtype)
        self.images: list[_Image] = []
        self.rejects: list[Reject] = []

    @property
    def full(self) -> bool:
        return len(self.images) + len(self.rejects) >= self.capacity

    def add(self, item: Item, width: int, height: int, sha256: str, pixels: Pixels) -> None:
        self.pixels[len(self.images)] = pixels
        names = (public(item.key), public(item.uri))
        known = (*names, item.offset, item.size, item.row, item.label)
        self.images.append((*known, width, height, sha256))

    def reject(self, item: Item, stage: Stage, reason: str) -> None:
        if not item.key:  # what is wrong is the whole unit
            self.failed = reason
        self.rejects.append(Reject(self.planned.source, item.key, item.uri, stage, reason))

    def to_table(self, held: float) -> pa.Table:
        """held: seconds that its reader could not go on before it."""
        return pa.table(
            {
                "unit": [self.planned.unit.digest],
                "part": [self.number],
                "last": [self.last],
                "seconds": [time.monotonic() - self.started],
                "held": [held],
                "failed": pa.array([self.failed], pa.string()),
                "trouble": pa.array([self.trouble], pa.string()),
                "again": [self.again],
                "pixels": _one_binary(self.pixels[: len(self.images)]),
                "images": [_to_ipc(_image_table(self.images))],
                "rejects": [_to_ipc(shards.reject_table(self.rejects))],
            }
        )


def _image_table(images: list[_Image]) -> pa.Table:
    columns = zip(*images, strict=True) if images else ([] for _ in shards.IMAGE_SCHEMA)
    typed = [pa.array(c, f.type) for c, f in zip(columns, shards.IMAGE_SCHEMA, strict=True)]
    return pa.Table.from_arrays(typed, schema=shards.IMAGE_SCHEMA)


def _one_binary(pixels: Pixels) -> pa.Array:
    """A column of one row that holds the array's bytes, without copying them."""
    ends = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)])


def pixels_of(part: pa.Table, seen: Preprocessing) -> Pixels:
    """(N, side, side, C) of a table of one part, where they lie: as an Arrow scalar they would be
    copied."""
    [column] = part.column("pixels").chunks
    _, ends, data = column.buffers()
    first, last = np.frombuffer(ends, np.int64)[column.offset : column.offset + 2]
    return np.frombuffer(data, np.uint8)[first:last].view(seen.dtype).reshape(-1, *seen.shape)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
