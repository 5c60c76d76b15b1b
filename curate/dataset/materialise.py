"""Target, coresets and open set, in any union → a training set on disk, byte for byte, on Ray."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate import storage
from curate.cluster import results
from curate.dataset.training_set import SCHEMA, Index, read_index
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.settings import RunSettings, SourceSettings
from curate.sources import Item, Unit, plan_source, read_unit
from curate.sources.located import read_located

log = logging.getLogger(__name__)

PART_BYTES = 256 << 20  # of images in one file, and so in memory of one task
UNIT_IMAGES = 1000  # files of a folder that one task copies
ROWS_AT_ONCE = 4096  # of a manifest, one task's


@dataclass(frozen=True)
class _Piece:
    """What one task copies: a unit of a source, or rows of a manifest."""

    source: SourceSettings | None = None
    unit: Unit | None = None
    rows: tuple[dict[str, Any], ...] = ()
    of_open: bool = False


@dataclass(frozen=True)
class _Copied:
    parts: list[tuple[str, int, str]]  # file name, images, digest of their digests
    rejects: list[dict[str, Any]]


def request(settings: RunSettings, data: list[str]) -> dict[str, Any]:
    """What a training set is to be made from: equal requests give equal sets."""
    asked: dict[str, Any] = {}
    for name in data:
        if name == "target":
            asked[name] = settings.target.model_dump(mode="json")
        elif name == "open":
            asked[name] = [source.model_dump(mode="json") for source in settings.open]
        else:
            asked[name] = hashlib.sha256(_manifest_bytes(settings, name)).hexdigest()
    return asked


def training_images(settings: RunSettings, data: list[str], folder: str) -> Index:
    """The images of `data`, in that order, as a training set under `folder`.

    Raises CurateError for what cannot be found, and where too many images cannot be read.
    """
    return _materialise(settings, request(settings, data), lambda: _pieces(settings, data), folder)


def labelled_images(settings: RunSettings, source: SourceSettings, folder: str) -> Index:
    """One source's images, for a probe."""
    pieces = lambda: map(partial(_Piece, source), plan_source(source, UNIT_IMAGES))  # noqa: E731
    return _materialise(settings, {source.name: source.model_dump(mode="json")}, pieces, folder)


def _materialise(
    settings: RunSettings,
    made_from: dict[str, Any],
    listed: Callable[[], Iterable[_Piece]],
    folder: str,
) -> Index:
    index = read_index(folder)
    # As lists: another order is another set
    if index is not None and list(index.made_from.items()) == list(made_from.items()):
        return index
    storage.remove_tree(folder)
    pieces = list(listed())
    named: dict[str, SourceSettings] = {source.name: source for source in settings.open}
    copied: list[_Copied] = results(
        [
            _copy.remote(piece, named, folder, number, settings.images.max_bytes)
            for number, piece in enumerate(pieces)
        ]
    )
    rejects = [row for one in copied for row in one.rejects]
    if rejects:
        table = pa.Table.from_pylist(rejects, shards.REJECT_SCHEMA)
        shards.write_parquet(storage.join(folder, "rejected.parquet"), table)
    parts = [part for one in copied for part in one.parts]
    images = sum(rows for _, rows, _ in parts)
    seen, limit = images + len(rejects), settings.images.max_rejected_fraction
    if len(rejects) > limit * seen or not images:
        raise CurateError(
            f"images.max_rejected_fraction={limit}: {len(rejects)} of {seen} images to train on "
            f"cannot be read; {storage.join(folder, 'rejected.parquet')} says why"
        )
    of_open = [
        sum(rows for _, rows, _ in one.parts)
        for piece, one in zip(pieces, copied, strict=True)
        if piece.of_open
    ]
    index = Index(
        made_from,
        [(name, rows) for name, rows, _ in parts],
        images,
        sum(of_open),
        len(rejects),
        hashlib.sha256("".join(digest for _, _, digest in parts).encode()).hexdigest(),
    )
    index.write(folder)  # last: where it is, the set is whole
    log.info("training set: %d images, %d unreadable, at %s", images, len(rejects), folder)
    return index


def _pieces(settings: RunSettings, data: list[str]) -> Iterator[_Piece]:
    taken: set[tuple[Any, ...]] = set()
    for name in data:
        if name in ("target", "open"):
            sources = [settings.target] if name == "target" else settings.open
            for source in sources:
                for unit in plan_source(source, UNIT_IMAGES):
                    yield _Piece(source, unit, of_open=name == "open")
            continue
        rows = _manifest_rows(settings, name)
        # Two coresets may share images
        places = [(row["uri"], row["offset"], row["row"]) for row in rows]
        fresh = [row for row, at in zip(rows, places, strict=True) if at not in taken]
        taken.update(places)
        # Those of one file together, so that it is opened once; a selection's order is of no use
        fresh.sort(key=lambda row: (row["uri"], row["offset"] or 0, row["row"] or 0))
        for start in range(0, len(fresh), ROWS_AT_ONCE):
            yield _Piece(rows=tuple(fresh[start : start + ROWS_AT_ONCE]), of_open=True)


def _manifest_uri(settings: RunSettings, name: str) -> str:
    return storage.join(settings.output, "coreset.parquet") if name == "coreset" else name


def _manifest_bytes(settings: RunSettings, name: str) -> bytes:
    uri = _manifest_uri(settings, name)
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        remedy = (
            "run `curate run` on this config first, or set pretrain.data to target"
            if name == "coreset"
            else "check the path in pretrain.data"
        )
        raise CurateError(f"{uri}: no such manifest; {remedy}") from None
    except OSError as error:
        raise CurateError(f"{uri}: not readable: {one_line(error)}") from error


def _manifest_rows(settings: RunSettings, name: str) -> list[dict[str, Any]]:
    columns = ["source", "key", "uri", "offset", "size", "row", "label", "sha256"]
    uri = _manifest_uri(settings, name)
    try:
        table = pq.read_table(io.BytesIO(_manifest_bytes(settings, name)))
        missing = [column for column in columns if column not in table.column_names]
        if missing:
            raise CurateError(f"{uri}: not a manifest: it has no column {', '.join(missing)}")
        rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    except pa.ArrowException as error:
        raise CurateError(f"{uri}: not a Parquet file: {one_line(error)}") from error
    nowhere = next((row for row in rows if not row["uri"]), None)
    if nowhere is not None:
        raise CurateError(f"{uri}: {nowhere['key']} has no uri that leads to its image")
    return rows


@ray.remote
def _copy(
    piece: _Piece, sources: dict[str, SourceSettings], folder: str, number: int, max_bytes: int
) -> _Copied:
    parts: list[tuple[str, int, str]] = []
    rejects: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    waiting_bytes = 0

    def write() -> None:
        nonlocal waiting, waiting_bytes
        name = f"part-{number:06d}-{len(parts):03d}.arrow"
        shards.write_arrow(storage.join(folder, name), pa.Table.from_pylist(waiting, SCHEMA))
        known = "".join(f"{row['sha256']} {row['label']}\n" for row in waiting)
        digest = hashlib.sha256(known.encode()).hexdigest()
        parts.append((name, len(waiting), digest))
        waiting, waiting_bytes = [], 0

    for source, item in _items(piece, sources, max_bytes):
        if item.data is None:
            reason = item.error or "no bytes"
            rejects.append(shards.reject_row(source, item.key, item.uri, "read", reason))
            continue
        digest = hashlib.sha256(item.data).hexdigest()
        waiting.append(
            {
                "source": source,
                "key": item.key,
                "label": item.label,
                "sha256": digest,
                "image": item.data,
            }
        )
        waiting_bytes += len(item.data)
        if waiting_bytes >= PART_BYTES:
            write()
    if waiting:
        write()
    return _Copied(parts, rejects)


def _items(
    piece: _Piece, sources: dict[str, SourceSettings], max_bytes: int
) -> Iterable[tuple[str, Item]]:
    if piece.unit is not None and piece.source is not None:
        for item in read_unit(piece.source, piece.unit, max_bytes):
            yield piece.source.name, item
        return
    items = read_located(list(piece.rows), sources, max_bytes)
    for row, item in zip(piece.rows, items, strict=True):
        yield row["source"], item
