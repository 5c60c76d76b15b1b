"""A training set on disk: encoded images byte for byte, in shards, at random access.

Parts hold the images, an index says what there is. Random reads through a
web-scale set do not serve many epochs; a copy of what is trained on does.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import storage
from curate.dataset.cache import Cache
from curate.dataset.cache import Part as CachedPart
from curate.errors import CurateError, one_line
from curate.runfiles import columns, shards
from curate.runfiles.files import TrainingSetFiles
from curate.runfiles.memo import Inputs, Memo
from curate.storage import read_range

COLUMNS_AT_ONCE = 16  # parts, where they are remote

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "key": pa.string(),
        "label": pa.string(),
        "sha256": pa.string(),
        "image": pa.large_binary(),  # as it was found
    }
)


class Span(NamedTuple):
    """Where in a part's file its images lie: image i is the bytes from data + ends[i] to
    data + ends[i + 1], and ends are numbers of 8 bytes from `ends` on."""

    ends: int
    data: int
    size: int  # of the file


def write_part(uri: str, images: pa.Table) -> Span:
    """images: rows of SCHEMA."""
    written = shards.to_ipc(images)
    storage.write_bytes(uri, written)
    column = pa.ipc.open_file(written).get_batch(0).column("image")  # not copied: it lies in there
    _, ends, data = column.buffers()
    return Span(ends.address - written.address, data.address - written.address, written.size)


@dataclass(frozen=True)
class Index:
    """What a training set holds, and what it was made from."""

    made_from: Inputs
    parts: list[tuple[str, int]]  # file name, images
    images: int
    open_images: int
    rejected: int
    fingerprint: str  # over every image's bytes and label, in order
    spans: list[Span] = field(default_factory=list)  # of the parts; of a remote set needed
    reduced: int = 0  # images that were larger

    def write(self, folder: str) -> None:
        rest = asdict(self)
        Memo(TrainingSetFiles(folder).index).write(rest.pop("made_from"), **rest)


def read_index(folder: str, made_from: Inputs | None = None) -> Index | None:
    """None where there is no finished training set, or none made from these inputs."""
    memo = Memo(TrainingSetFiles(folder).index)
    document = memo.read() if made_from is None else memo.found(made_from)
    if document is None:
        return None
    try:
        found: dict[str, Any] = {"spans": [], "reduced": 0, **document}
        found = {name: found[name] for name in Index.__dataclass_fields__}
        found["parts"] = [(name, rows) for name, rows in found["parts"]]
        found["spans"] = [Span(*span) for span in found["spans"]]
        return Index(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise CurateError(
            f"{memo.uri}: damaged: {one_line(error)}; start over with --fresh"
        ) from error


class TrainingSet:
    """Images by their place, 0 … len - 1. Local parts are mapped, not read; of remote ones the
    bytes of an image are fetched until the machine has a copy of its part."""

    def __init__(self, folder: str, cache_gb: float | None = None) -> None:
        """cache_gb: at most so much of a remote set is kept on this disk; SHARE of what is free
        where None."""
        self.folder, self.cache_gb, self.files = folder, cache_gb, TrainingSetFiles(folder)
        index = read_index(folder)
        if index is None:
            raise CurateError(
                f"{folder}: no training set here; output must be one place for all machines"
            )
        self.index = index
        self._parts = self._mapped() if storage.is_local(folder) else self._remote()
        self._ends = np.cumsum([part.images for part in self._parts])
        if int(self._ends[-1]) != index.images:
            raise CurateError(f"{folder}: its parts do not hold {index.images} images; --fresh")

    def _mapped(self) -> list[_Mapped]:
        tables = [shards.read_arrow(self.files.part(name)) for name, _ in self.index.parts]
        # Chunks as they are: to combine them would copy them into memory
        return [_Mapped(column) for table in tables for column in table["image"].chunks]

    def _remote(self) -> list[_Remote]:
        if len(self.index.spans) < len(self.index.parts):
            raise CurateError(f"{self.folder}: of an older version; remove it and run again")
        known = storage.read_bytes(self.files.index)
        cache = Cache.of(hashlib.sha256(known).hexdigest()[:32])
        parts = [
            _Remote(CachedPart(self.files.part(name), name, span.size), images, span, cache)
            for (name, images), span in zip(self.index.parts, self.index.spans, strict=True)
        ]
        cache.fill([part.part for part in parts], self.cache_gb)
        return parts

    def __len__(self) -> int:
        return self.index.images

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingSet, (self.folder, self.cache_gb)  # another process opens the files itself

    @cached_property
    def classes(self) -> list[str]:
        """The labels that there are, sorted."""
        return sorted({label for label in self._named if label is not None})

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,): each image's place in `classes`, -1 where it has no label."""
        numbers: dict[str | None, int] = {one: number for number, one in enumerate(self.classes)}
        return np.array([numbers.get(label, -1) for label in self._named])

    @cached_property
    def _named(self) -> list[str | None]:
        return self._column("label")

    def keys(self) -> list[str]:
        """Each image's key in its source, read anew: few ask for them."""
        return self._column("key")

    def _column(self, name: str) -> list[Any]:
        """Of all images, from the parts, without the images themselves."""
        uris = [self.files.part(part) for part, _ in self.index.parts]
        with ThreadPoolExecutor(COLUMNS_AT_ONCE) as pool:
            tables = pool.map(lambda uri: columns.read(uri, [name]), uris)
            return [value for table in tables for value in table[name].to_pylist()]

    def image(self, place: int) -> bytes:
        """Raises CurateError where it cannot be read."""
        part = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        return self._parts[part].image(place - first)


class _Mapped:
    """A part, or a chunk of one, on this disk."""

    def __init__(self, column: pa.Array) -> None:
        self.column, self.images = column, len(column)

    def image(self, row: int) -> bytes:
        data: bytes = self.column[row].as_py()
        return data


class _Remote:
    """A part of a remote set: read by ranges, until this machine has a copy."""

    def __init__(self, part: CachedPart, images: int, span: Span, cache: Cache) -> None:
        self.part, self.images, self.span, self.cache = part, images, span, cache
        self.copy: _Mapped | None = None
        self.ends: NDArray[np.int64] | None = None

    def image(self, row: int) -> bytes:
        if self.copy is None and self.cache.has(self.part):
            (column,) = shards.read_arrow(str(self.cache.path(self.part)))["image"].chunks
            self.copy, self.ends = _Mapped(column), None
        if self.copy is not None:
            return self.copy.image(row)
        if self.ends is None:
            self.ends = np.frombuffer(self._read(self.span.ends, 8 * (self.images + 1)), np.int64)
        low, high = self.ends[row : row + 2].tolist()
        return self._read(self.span.data + low, high - low)

    def _read(self, start: int, size: int) -> bytes:
        uri = self.part.uri
        try:
            data = storage.own_read(uri, partial(read_range, uri, start, size)) if size else b""
        except FileNotFoundError:
            raise CurateError(f"{uri}: no such file; remove the training set, run again") from None
        if len(data) != size:
            raise CurateError(f"{uri}: cut short; remove the training set and run again")
        return data
