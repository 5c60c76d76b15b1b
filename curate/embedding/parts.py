"""What flows from readers to actors: parts of units, decoded, cropped, and all of one size.

Full-size images never enter Ray's object store, and no part is larger than PART_BYTES.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate.images import EncodedImage, Preprocessing, Refused, resize_crop
from curate.runfiles import plan, shards
from curate.runfiles.files import RunFiles
from curate.runfiles.plan import PlannedUnit
from curate.runfiles.shards import Reject, Stage
from curate.settings import ImageSettings, SourceSettings
from curate.sources import Item, read_unit

_Image = tuple[Any, ...]  # values of shards.IMAGE_FIELDS
PART_BYTES = 160 << 20  # of pixels: 1,000 images of 224 px


def read_parts(
    batch: pa.Table,
    files: RunFiles,
    sources: dict[tuple[str, str], SourceSettings],
    images: ImageSettings,
    preprocessing: Preprocessing,
) -> Iterator[pa.Table]:
    """Rows of the plan → rows of parts: decoded pixels, and what is known of each image."""
    side = preprocessing.image_px
    capacity = max(1, PART_BYTES // (side * side * 3))
    for planned in plan.from_table(batch):
        part = _Part(planned, files, 0, capacity, side)
        source = sources[planned.set, planned.source]
        for item in read_unit(source, planned.unit, images.max_bytes):
            if part.full:
                yield part.to_table(last=False)
                part = _Part(planned, files, part.number + 1, capacity, side)
            _decode_into(part, item, images, preprocessing)
        yield part.to_table(last=True)


def _decode_into(
    part: _Part, item: Item, images: ImageSettings, preprocessing: Preprocessing
) -> None:
    if item.data is None:
        part.reject(item, "read", item.error or "no bytes")
        return
    resized_px = round(preprocessing.image_px / preprocessing.crop_fraction)
    try:
        image = EncodedImage(item.data, images)
        rgb = image.decode(resized_px)
    except Refused as reason:
        part.reject(item, "decode", str(reason))
        return
    pixels = resize_crop(rgb, preprocessing.image_px, preprocessing.crop_fraction)
    part.add(item, image.width, image.height, pixels)


class _Part:
    """Images of one unit on their way to an actor: at most `capacity` of them."""

    def __init__(
        self, planned: PlannedUnit, files: RunFiles, number: int, capacity: int, side: int
    ) -> None:
        self.planned, self.files, self.number = planned, files, number
        self.capacity, self.side = capacity, side
        self.started = time.monotonic()
        self.failed: str | None = None  # why the unit gives no more images than these
        self.pixels: list[NDArray[np.uint8]] = []
        self.images: list[_Image] = []
        self.rejects: list[Reject] = []

    @property
    def full(self) -> bool:
        return len(self.images) + len(self.rejects) >= self.capacity

    def add(self, item: Item, width: int, height: int, pixels: NDArray[np.uint8]) -> None:
        assert item.data is not None
        self.pixels.append(pixels)
        known = (item.key, item.uri, item.offset, item.size, item.row, item.label)
        self.images.append((*known, width, height, hashlib.sha256(item.data).hexdigest()))

    def reject(self, item: Item, stage: Stage, reason: str) -> None:
        if not item.key:  # what is wrong is the whole unit
            self.failed = reason
        self.rejects.append(Reject(self.planned.source, item.key, item.uri, stage, reason))

    def to_table(self, *, last: bool) -> pa.Table:
        shape = (len(self.pixels), self.side, self.side, 3)
        pixels = np.stack(self.pixels) if self.pixels else np.empty(shape, np.uint8)
        return pa.table(
            {
                "unit": [self.planned.number],
                "source": [self.planned.source],
                "shard": [self.files.shard(self.planned.set, self.planned.number, self.number)],
                "rejected": [self.files.rejects(self.planned.number, self.number)],
                "part": [self.number],
                "last": [last],
                "seconds": [time.monotonic() - self.started],
                "failed": pa.array([self.failed], pa.string()),
                "pixels": _one_binary(pixels),
                "images": [_to_ipc(_image_table(self.images))],
                "rejects": [_to_ipc(shards.reject_table(self.rejects))],
            }
        )


def _image_table(images: list[_Image]) -> pa.Table:
    columns = zip(*images, strict=True) if images else ([] for _ in shards.IMAGE_SCHEMA)
    typed = [pa.array(c, f.type) for c, f in zip(columns, shards.IMAGE_SCHEMA, strict=True)]
    return pa.Table.from_arrays(typed, schema=shards.IMAGE_SCHEMA)


def _one_binary(pixels: NDArray[np.uint8]) -> pa.Array:
    """A column of one row that holds the array's bytes, without copying them."""
    ends = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)])


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
