"""A training set on disk: encoded images byte for byte, in shards, at random access.

Parts hold the images, an index says what there is. Random reads through a
web-scale set do not serve many epochs; a copy of what is trained on does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curate import storage
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.files import TrainingSetFiles
from curate.runfiles.memo import Inputs, Memo

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
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(images.combine_chunks())
    written = sink.getvalue()
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
        found: dict[str, Any] = {"spans": [], **document}
        found = {name: found[name] for name in Index.__dataclass_fields__}
        found["parts"] = [(name, rows) for name, rows in found["parts"]]
        found["spans"] = [Span(*span) for span in found["spans"]]
        return Index(**found)
    except (ValueError, TypeError, KeyError) as error:
        raise CurateError(
            f"{memo.uri}: damaged: {one_line(error)}; start over with --fresh"
        ) from error


class TrainingSet:
    """Images by their place, 0 … len - 1, from files that are mapped, not read."""

    def __init__(self, folder: str) -> None:
        """folder: a local one; see `on_this_machine`."""
        self.folder, self.files = folder, TrainingSetFiles(folder)
        index = read_index(folder)
        if index is None:
            raise CurateError(
                f"{folder}: no training set here; output must be one place for all machines"
            )
        self.index = index
        tables = [shards.read_arrow(self.files.part(name)) for name, _ in index.parts]
        # Chunks as they are: to combine them would copy them into memory
        self._images = [column for table in tables for column in table["image"].chunks]
        self._ends = np.cumsum([len(column) for column in self._images])
        if int(self._ends[-1]) != index.images:
            raise CurateError(f"{folder}: its parts do not hold {index.images} images; --fresh")
        named = [label for table in tables for label in table["label"].to_pylist()]
        self.classes = sorted({label for label in named if label is not None})
        numbers = {label: number for number, label in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.array([numbers.get(label, -1) for label in named])

    def __len__(self) -> int:
        return self.index.images

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingSet, (self.folder,)  # another process maps the files itself

    def keys(self) -> list[str]:
        """Each image's key in its source, read anew: few ask for them."""
        uris = [self.files.part(name) for name, _ in self.index.parts]
        return [key for uri in uris for key in shards.read_arrow(uri)["key"].to_pylist()]

    def image(self, place: int) -> bytes:
        part = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        data: bytes = self._images[part][place - first].as_py()
        return data


def on_this_machine(folder: str) -> str:
    """A training set's folder as a local one. A remote one is copied, once a machine, whichever of
    its workers comes first; the copies lie in the temporary folder, named after the set's index."""
    if storage.is_local(folder):
        return storage.filesystem(folder)[1]
    index = read_index(folder)
    if index is None:
        raise CurateError(f"{folder}: no training set here")
    files = TrainingSetFiles(folder)
    known = storage.read_bytes(files.index)
    copy = os.path.join(
        tempfile.gettempdir(), f"curate-data-{hashlib.sha256(known).hexdigest()[:32]}"
    )
    os.makedirs(copy, exist_ok=True)
    with open(f"{copy}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        local = TrainingSetFiles(copy)
        if not os.path.exists(local.index):
            for name, _ in index.parts:
                _download(files.part(name), local.part(name))
            index.write(copy)
    return copy


def _download(uri: str, path: str) -> None:
    try:
        with storage.open_seekable(uri) as remote, open(f"{path}.part", "wb") as file:
            shutil.copyfileobj(remote, file, 8 << 20)
        os.replace(f"{path}.part", path)
    except OSError as error:
        raise CurateError(
            f"{uri}: not copied to {path}: {one_line(error)}; TMPDIR names another place"
        ) from error
