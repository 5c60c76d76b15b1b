"""One piece of a training set → its parts, on a Ray task. What is done is written beside them."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa
import ray

from curate import storage
from curate.dataset.sample import taken
from curate.dataset.smaller import smaller
from curate.dataset.training_set import SCHEMA, Span, write_part
from curate.dataset.wanted import Piece, read_piece
from curate.errors import one_line
from curate.privacy import public
from curate.runfiles import shards
from curate.runfiles.files import TrainingSetFiles
from curate.runfiles.shards import Reject
from curate.settings import ImageSettings, SourceSettings
from curate.sources import Changed, Item, read_unit
from curate.sources.located import read_located

PART_BYTES = 256 << 20  # of images in one file, and so in memory of one task
Sources = Mapping[str, SourceSettings]  # by name

ATTEMPTS = 5  # at a piece whose input does not answer
PAUSE_S = 2.0  # after the first; twice as long after each other one


class Part(NamedTuple):
    name: str
    images: int
    digest: str  # of the images' digests and labels
    span: Span


@dataclass(frozen=True)
class Copied:
    parts: list[Part]
    rejects: int
    reduced: int = 0  # images that were larger

    @staticmethod
    def read(uri: str) -> Copied:
        found = storage.read_json(uri)
        parts = [
            Part(name, images, digest, Span(*span)) for name, images, digest, span in found["parts"]
        ]
        return Copied(parts, found["rejects"], found.get("reduced", 0))


@dataclass(frozen=True)
class NotNow:
    """Why a piece cannot be copied now, though it may be later. changed: when it is listed anew."""

    reason: str
    changed: bool = False


@dataclass(frozen=True)
class _Image:
    """A row of the training set's SCHEMA."""

    source: str
    key: str
    label: str | None
    sha256: str
    image: bytes


@ray.remote
def copy_piece(
    files: TrainingSetFiles,
    number: int,
    sources: Sources,
    limits: ImageSettings,
    side_px: int | None,
) -> Copied | NotNow:
    return copy(files, number, sources, limits, side_px)


def copy(
    files: TrainingSetFiles,
    number: int,
    sources: Sources,
    limits: ImageSettings,
    side_px: int | None = None,
) -> Copied | NotNow:
    """What is damaged or gone is rejected; what does not answer is tried again for a while.

    side_px: what is larger is copied in that size; as it is where None.
    """
    piece = read_piece(files.list, number)
    for attempt in range(ATTEMPTS):
        try:
            last = attempt == ATTEMPTS - 1
            items = _items(piece, sources, limits.max_bytes, last)
            parts, rejects, reduced = _parts(files, number, items, limits, side_px)
            break
        except Changed as error:
            return NotNow(one_line(error, 200), changed=True)
        except storage.Unavailable as error:
            reason = one_line(error, 200)
            if not last:
                time.sleep(random.uniform(0.5, 1) * PAUSE_S * 2**attempt)
    else:
        return NotNow(reason)
    if rejects:
        shards.write_parquet(files.rejects_of(number), shards.reject_table(rejects))
    copied = Copied(parts, len(rejects), reduced)
    storage.write_json(files.done(number), asdict(copied))  # last: where it is, the parts are
    return copied


def _parts(
    files: TrainingSetFiles,
    number: int,
    items: Iterable[tuple[str, Item]],
    limits: ImageSettings,
    side_px: int | None,
) -> tuple[list[Part], list[Reject], int]:
    reduced = 0
    parts: list[Part] = []
    rejects: list[Reject] = []
    waiting: list[_Image] = []
    waiting_bytes = 0

    def write() -> None:
        nonlocal waiting, waiting_bytes
        uri = files.part_of(number, len(parts))
        span = write_part(uri, pa.Table.from_pylist([vars(one) for one in waiting], SCHEMA))
        known = "".join(f"{one.sha256} {one.label}\n" for one in waiting)
        digest = hashlib.sha256(known.encode()).hexdigest()
        parts.append(Part(uri.rpartition("/")[2], len(waiting), digest, span))
        waiting, waiting_bytes = [], 0

    for source, item in items:
        if item.data is None:
            reason = item.error or "no bytes"
            rejects.append(Reject(source, item.key, item.uri, "read", reason))
            continue
        digest = hashlib.sha256(item.data).hexdigest()  # of what was found
        image = item.data if side_px is None else smaller(item.data, side_px, limits)
        reduced += image is not item.data
        waiting.append(_Image(source, public(item.key), item.label, digest, image))
        waiting_bytes += len(image)
        if waiting_bytes >= PART_BYTES:
            write()
    if waiting:
        write()
    return parts, rejects, reduced


def _items(
    piece: Piece, sources: Sources, max_bytes: int, last_attempt: bool
) -> Iterable[tuple[str, Item]]:
    if piece.unit is not None:
        source = sources[piece.source]
        items = read_unit(source, piece.unit, max_bytes, last_attempt=last_attempt)
        if piece.sample is not None:
            items = iter(taken(items, piece.sample, piece.source))
        for item in items:
            yield piece.source, item
        return
    located = read_located(piece.rows, sources, max_bytes, last_attempt=last_attempt)
    for row, item in zip(piece.rows, located, strict=True):
        yield row["source"], item
