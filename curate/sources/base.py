"""What every kind of source deals in: units, the images in them, and reading single files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from curate import names, storage
from curate.errors import CurateError, one_line

Row = dict[str, Any]  # of a table or a manifest, by column

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff"})

REMOTE_READS = 16  # single files in flight in one reader: latency, not bandwidth, is the limit


@dataclass(frozen=True)
class Item:
    """One image before decoding: where it lies, and its bytes or why there are none."""

    key: str  # unique enough inside its source to find the image again
    uri: str
    offset: int | None = None  # in an archive, bytes
    size: int | None = None  # encoded, bytes
    row: int | None = None  # in a Parquet file
    label: str | None = None
    data: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class Unit:
    """What one reader takes at a time, and one file of embeddings holds.

    Either `items` lists single files, or `uri` is an archive or table of which `start` to `stop`
    is meant: rows of a Parquet file, images of a tar (`stop` None: to its end).
    """

    uri: str
    items: tuple[Item, ...] | None = None
    start: int = 0
    stop: int | None = None

    @property
    def images(self) -> int | None:
        """How many images there will be, where that is known before reading."""
        if self.items is not None:
            return len(self.items)
        return None if self.stop is None else self.stop - self.start


def file_units(uri: str, items: list[Item], unit_images: int) -> list[Unit]:
    """Single files cut into units."""
    return [
        Unit(uri, items=tuple(items[start : start + unit_images]))
        for start in range(0, len(items), unit_images)
    ]


def place_beside(uri: str, path: str) -> str:
    """A path that stands in a list or table: relative to that file, unless it says otherwise."""
    path = names.escaped(path)
    if "://" in path or path.startswith("/"):
        return path
    return storage.join(uri.rpartition("/")[0] or ".", path)


def within(item: Item, max_bytes: int) -> Item:
    """The item, or, where its image is too large, why it has no bytes."""
    if item.size is None or item.size <= max_bytes:
        return item
    return replace(item, data=None, error=storage.too_large(item.size, max_bytes))


def missing_column(uri: str, setting: str, column: str, columns: Sequence[str]) -> CurateError:
    known = (
        f"set {setting} to one of {one_line(', '.join(columns))}"
        if columns
        else "it has no columns at all"
    )
    return CurateError(f"{uri}: no column {column!r}; {known}")


def read_files(items: Iterable[Item], max_bytes: int) -> Iterator[Item]:
    """Fill in the bytes of single files, in order; remote ones several at a time.

    Items that have their bytes, or an error, pass as they are. A file of more than max_bytes is not
    read.
    """
    waiting = iter(items)
    first = next(waiting, None)
    if first is None:
        return
    read = partial(_read_file, max_bytes=max_bytes)
    if storage.is_local(first.uri):
        yield read(first)
        yield from map(read, waiting)
        return
    with ThreadPoolExecutor(REMOTE_READS) as pool:
        in_flight: deque[Future[Item]] = deque([pool.submit(read, first)])
        in_flight.extend(pool.submit(read, item) for item in islice(waiting, 2 * REMOTE_READS))
        while in_flight:
            yield in_flight.popleft().result()
            in_flight.extend(pool.submit(read, item) for item in islice(waiting, 1))


def _read_file(item: Item, max_bytes: int) -> Item:
    """The item with its bytes, or with the reason why it has none."""
    if item.data is not None or item.error:
        return item
    try:
        data = storage.with_retries(item.uri, lambda: storage.read_file(item.uri, max_bytes))
        return replace(item, data=data, size=len(data))
    except FileNotFoundError:
        return replace(item, error="no such file")
    except Exception as error:  # whatever a filesystem raises is this one image's trouble
        return replace(item, error=trouble(error))


def trouble(error: Exception) -> str:
    """Why an image cannot be read: one short line."""
    if isinstance(error, storage.UnfitFile):
        return str(error)
    return f"{type(error).__name__}: {one_line(error, 200)}"
