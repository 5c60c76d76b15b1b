"""Target, coresets and open set, in any union → a training set on disk, byte for byte, on Ray."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from curate import storage
from curate.cluster import results
from curate.dataset.training_set import SCHEMA, Index, read_index
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.files import RunFiles, TrainingSetFiles
from curate.runfiles.memo import Inputs
from curate.runfiles.shards import Reject
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
    rows: pa.Table | None = None
    of_open: bool = False


@dataclass(frozen=True)
class _Copied:
    parts: list[tuple[str, int, str]]  # file name, images, digest of their digests
    rejects: list[Reject]


def request(settings: RunSettings, data: list[str]) -> Inputs:
    """What a training set is to be made from: equal requests give equal sets."""
    return _request(settings, data, _manifests(settings, data))


def _request(settings: RunSettings, data: list[str], manifests: dict[str, bytes]) -> Inputs:
    asked: Inputs = {}
    for name in data:
        if name == "target":
            asked[name] = settings.target.model_dump(mode="json")
        elif name == "open":
            asked[name] = [source.model_dump(mode="json") for source in settings.open]
        else:
            asked[name] = hashlib.sha256(manifests[name]).hexdigest()
    return asked


def check(settings: RunSettings, data: list[str]) -> None:
    """Raises CurateError where a manifest that `data` names is not there."""
    for name in data:
        if name not in ("target", "open"):
            uri = _manifest_uri(settings, name)
            if not storage.exists(uri):
                raise _no_manifest(uri, name)


def training_images(settings: RunSettings, data: list[str], folder: str) -> Index:
    """The images of `data`, in that order, as a training set under `folder`.

    Raises CurateError for what cannot be found, and where too many images cannot be read.
    """
    manifests = _manifests(settings, data)
    made_from = _request(settings, data, manifests)
    return _materialise(
        settings, made_from, lambda: _pieces(settings, data, manifests, folder), folder
    )


def labelled_images(settings: RunSettings, source: SourceSettings, folder: str) -> Index:
    """One source's images, for a probe."""
    place = TrainingSetFiles(folder).part("files")
    pieces = lambda: map(partial(_Piece, source), plan_source(source, UNIT_IMAGES, place))  # noqa: E731
    return _materialise(settings, {source.name: source.model_dump(mode="json")}, pieces, folder)


def _materialise(
    settings: RunSettings,
    made_from: Inputs,
    listed: Callable[[], Iterable[_Piece]],
    folder: str,
) -> Index:
    index = read_index(folder, made_from)
    if index is not None:
        return index
    files = TrainingSetFiles(folder)
    storage.remove_tree(folder)
    pieces = list(listed())
    named: dict[str, SourceSettings] = {source.name: source for source in settings.open}
    copied: list[_Copied] = results(
        [
            _copy.remote(piece, named, files, number, settings.images.max_bytes)
            for number, piece in enumerate(pieces)
        ]
    )
    rejects = [row for one in copied for row in one.rejects]
    if rejects:
        shards.write_parquet(files.rejected, shards.reject_table(rejects))
    parts = [part for one in copied for part in one.parts]
    images = sum(rows for _, rows, _ in parts)
    seen, limit = images + len(rejects), settings.images.max_rejected_fraction
    if len(rejects) > limit * seen or not images:
        raise CurateError(
            f"images.max_rejected_fraction={limit}: {len(rejects)} of {seen} images to train on "
            f"cannot be read; {files.rejected} says why"
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


def _pieces(
    settings: RunSettings, data: list[str], manifests: dict[str, bytes], folder: str
) -> Iterator[_Piece]:
    taken = pa.array([], pa.string())
    for name in data:
        if name in ("target", "open"):
            sources = [settings.target] if name == "target" else settings.open
            for source in sources:
                place = TrainingSetFiles(folder).part(f"{name}-{source.name}")
                for unit in plan_source(source, UNIT_IMAGES, place):
                    yield _Piece(source, unit, of_open=name == "open")
            continue
        rows = _rows_of(_manifest_uri(settings, name), manifests[name])
        # Two coresets may share images
        places = _places(rows)
        fresh = rows.filter(pc.invert(pc.is_in(places, value_set=taken)))
        taken = pa.concat_arrays([taken, places])
        # Those of one file together, so that it is opened once; a selection's order is of no use
        order = {column: fresh[column].fill_null(0) for column in ("offset", "row")}
        keys = pa.table({"uri": fresh["uri"], **order})
        fresh = fresh.take(pc.sort_indices(keys, [(key, "ascending") for key in keys.column_names]))
        for start in range(0, len(fresh), ROWS_AT_ONCE):
            yield _Piece(rows=fresh.slice(start, ROWS_AT_ONCE).combine_chunks(), of_open=True)


def _places(rows: pa.Table) -> pa.Array:
    """Where each image lies, as one string."""
    columns = [pc.cast(rows[name], pa.string()) for name in ("uri", "offset", "row")]
    joined = pc.binary_join_element_wise(
        *columns, "\n", null_handling="replace", null_replacement="-"
    )
    return joined.combine_chunks()


def _manifests(settings: RunSettings, data: list[str]) -> dict[str, bytes]:
    """The manifests that `data` names, each read once."""
    return {
        name: _manifest_bytes(settings, name) for name in data if name not in ("target", "open")
    }


def _manifest_uri(settings: RunSettings, name: str) -> str:
    return RunFiles(settings.output).manifest if name == "coreset" else name


def _manifest_bytes(settings: RunSettings, name: str) -> bytes:
    uri = _manifest_uri(settings, name)
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise _no_manifest(uri, name) from None
    except OSError as error:
        raise CurateError(f"{uri}: not readable: {one_line(error)}") from error


def _no_manifest(uri: str, name: str) -> CurateError:
    remedy = (
        "run `curate run` on this config first, or set pretrain.data to target"
        if name == "coreset"
        else "check the path in pretrain.data"
    )
    return CurateError(f"{uri}: no such manifest; {remedy}")


def _rows_of(uri: str, data: bytes) -> pa.Table:
    columns = ["source", "key", "uri", "offset", "size", "row", "label", "sha256"]
    try:
        table = pq.read_table(pa.BufferReader(data))
        missing = [column for column in columns if column not in table.column_names]
        if missing:
            raise CurateError(f"{uri}: not a manifest: it has no column {', '.join(missing)}")
        rows = table.select(columns)
    except pa.ArrowException as error:
        raise CurateError(f"{uri}: not a Parquet file: {one_line(error)}") from error
    nowhere = rows.filter(pc.equal(pc.fill_null(rows["uri"], ""), ""))
    if len(nowhere):
        raise CurateError(f"{uri}: {nowhere['key'][0]} has no uri that leads to its image")
    return rows


@dataclass(frozen=True)
class _Image:
    """A row of the training set's SCHEMA."""

    source: str
    key: str
    label: str | None
    sha256: str
    image: bytes


@ray.remote
def _copy(
    piece: _Piece,
    sources: dict[str, SourceSettings],
    files: TrainingSetFiles,
    number: int,
    max_bytes: int,
) -> _Copied:
    parts: list[tuple[str, int, str]] = []
    rejects: list[Reject] = []
    waiting: list[_Image] = []
    waiting_bytes = 0

    def write() -> None:
        nonlocal waiting, waiting_bytes
        name = f"part-{number:06d}-{len(parts):03d}.arrow"
        shards.write_arrow(
            files.part(name), pa.Table.from_pylist([vars(one) for one in waiting], SCHEMA)
        )
        known = "".join(f"{one.sha256} {one.label}\n" for one in waiting)
        digest = hashlib.sha256(known.encode()).hexdigest()
        parts.append((name, len(waiting), digest))
        waiting, waiting_bytes = [], 0

    for source, item in _items(piece, sources, max_bytes):
        if item.data is None:
            reason = item.error or "no bytes"
            rejects.append(Reject(source, item.key, item.uri, "read", reason))
            continue
        digest = hashlib.sha256(item.data).hexdigest()
        waiting.append(_Image(source, item.key, item.label, digest, item.data))
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
    rows = [] if piece.rows is None else piece.rows.to_pylist()
    for row, item in zip(rows, read_located(rows, sources, max_bytes), strict=True):
        yield row["source"], item
