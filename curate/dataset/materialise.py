"""Target, coresets and open set, in any union → a training set on disk, byte for byte, on Ray.

list ──> pieces, each copied by a task of its own ──> index

What is made lies beside what it is made from, piece by piece: a call that finds the same request
half made goes on with the pieces that are missing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from curate import storage
from curate.cluster import over_tasks, results
from curate.dataset.copying import Copied, NotNow, Sources, copy_piece
from curate.dataset.training_set import Index, read_index
from curate.dataset.wanted import Asked, Listed, digest_of, write_list
from curate.errors import CurateError, one_line
from curate.privacy import public_document
from curate.runfiles import shards
from curate.runfiles.files import RunFiles, TrainingSetFiles
from curate.runfiles.memo import Inputs, Memo
from curate.settings import RunSettings, SourceSettings

log = logging.getLogger(__name__)

FILES_AT_ONCE = 256  # small ones, that one task reads
SOURCES = ("target", "open")  # what is no manifest


def request(
    settings: RunSettings, data: list[str], sample: int | None = None, side_px: int | None = None
) -> Inputs:
    """What a training set is to be made from: equal requests give equal sets."""
    return _request(settings, data, _asked(settings, data, sample), side_px)


def _request(
    settings: RunSettings, data: list[str], asked: list[Asked], side_px: int | None = None
) -> Inputs:
    made_from: Inputs = {} if side_px is None else {"side_px": side_px}
    if side_px is not None and settings.images.channels != 3:
        made_from |= {"channels": settings.images.channels, "bits": settings.images.bits}
    for name, one in zip(data, asked, strict=True):
        dumps = [public_document(source.model_dump(mode="json")) for source in one.sources]
        made_from[name] = one.digest or (dumps if name == "open" else dumps[0])
        if one.sample is not None:
            made_from["open_sample"] = one.sample
    return made_from


def check(settings: RunSettings, data: list[str]) -> None:
    """Raises CurateError where a manifest that `data` names is not there."""
    for name in data:
        if name not in SOURCES:
            uri = _manifest_uri(settings, name)
            if not storage.exists(uri):
                raise _no_manifest(uri, name)


def training_images(
    settings: RunSettings,
    data: list[str],
    folder: str,
    sample: int | None = None,
    side_px: int | None = None,
) -> Index:
    """The images of `data`, in that order, as a training set under `folder`.

    sample: of the open set, so many alone. side_px: images whose shorter side is larger are made so
    large; all are as they were found where None.

    Raises CurateError for what cannot be found, where too many images cannot be read, and where
    some of them cannot be read now: running again goes on with these.
    """
    asked = _asked(settings, data, sample)
    return _materialise(settings, _request(settings, data, asked, side_px), asked, folder, side_px)


def labelled_images(settings: RunSettings, source: SourceSettings, folder: str) -> Index:
    """One source's images, for a probe. Raises CurateError as `training_images` does."""
    made_from = {source.name: public_document(source.model_dump(mode="json"))}
    return _materialise(settings, made_from, [Asked(sources=(source,))], folder)


def _asked(settings: RunSettings, data: list[str], sample: int | None = None) -> list[Asked]:
    asked = []
    for name in data:
        if name == "target":
            asked.append(Asked(sources=(settings.target,)))
        elif name == "open":
            asked.append(Asked(sources=tuple(settings.open), of_open=True, sample=sample))
        else:
            uri = _manifest_uri(settings, name)
            asked.append(Asked(manifest=uri, digest=_digest(uri, name), of_open=True))
    return asked


def _manifest_uri(settings: RunSettings, name: str) -> str:
    return RunFiles(settings.output).manifest if name == "coreset" else name


def _digest(uri: str, name: str) -> str:
    try:
        return digest_of(uri)
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


def _materialise(
    settings: RunSettings,
    made_from: Inputs,
    asked: list[Asked],
    folder: str,
    side_px: int | None = None,
) -> Index:
    files = TrainingSetFiles(folder)
    index = read_index(folder, made_from)
    if index is None:
        index = _make(settings, made_from, asked, files, side_px)
        index.write(folder)  # last: where it is, the set is whole
        log.info(
            "training set: %d images, %d unreadable, at %s", index.images, index.rejected, folder
        )
        if index.reduced:
            log.info("training set: %d images reduced to %s px", index.reduced, side_px)
        for sample in (one.sample for one in asked if one.sample):
            if index.open_images < sample:
                log.info("open_sample=%d: made of %d images", sample, index.open_images)
    storage.remove_tree(files.making)
    return index


def _make(
    settings: RunSettings,
    made_from: Inputs,
    asked: list[Asked],
    files: TrainingSetFiles,
    side_px: int | None,
) -> Index:
    max_bytes = settings.images.max_bytes
    listed, done = _begun({**made_from, "max_bytes": max_bytes}, asked, files)
    known = [*settings.open, *(source for one in asked for source in one.sources)]
    sources: Sources = {source.name: source for source in known}
    shared = ray.put(sources)
    missing = [number for number in range(len(listed.images)) if number not in done]
    limits = settings.images
    copied = results([copy_piece.remote(files, n, shared, limits, side_px) for n in missing])
    found = done | dict(zip(missing, copied, strict=True))
    whole = [one for _, one in sorted(found.items()) if isinstance(one, Copied)]
    if len(whole) < len(found):
        raise _incomplete(files, listed, found)
    _check_rejects(settings.images.max_rejected_fraction, whole, files)
    parts = [part for one in whole for part in one.parts]
    of_open = [
        sum(part.images for part in one.parts)
        for one, is_open in zip(whole, listed.of_open, strict=True)
        if is_open
    ]
    # Of an earlier try at a piece, that found more than the last
    for name in storage.names_in(files.folder) - {part.name for part in parts}:
        if name.startswith("part-"):
            storage.remove_tree(files.part(name))
    return Index(
        made_from,
        [(part.name, part.images) for part in parts],
        sum(part.images for part in parts),
        sum(of_open),
        sum(one.rejects for one in whole),
        hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
        [part.span for part in parts],
        sum(one.reduced for one in whole),
    )


def _begun(
    made_from: Inputs, asked: list[Asked], files: TrainingSetFiles
) -> tuple[Listed, dict[int, Copied | NotNow]]:
    """What is to be copied, and the pieces that an earlier call for the same has copied."""
    memo = Memo(files.request)
    begun = memo.found(made_from)
    if begun is None:
        storage.remove_tree(files.folder)
        (listed,) = results([write_list.remote(files, asked)])
        memo.write(made_from, **vars(listed))
        return listed, {}
    listed = Listed(begun["images"], begun["of_open"])
    there = storage.names_in(files.making)
    numbers = [
        number
        for number in range(len(listed.images))
        if files.done(number).rpartition("/")[2] in there
    ]
    done = [one for group in over_tasks(_read_done, numbers, FILES_AT_ONCE, files) for one in group]
    log.info("training set: going on, %d of %d pieces are there", len(done), len(listed.images))
    return listed, dict(zip(numbers, done, strict=True))


@ray.remote
def _read_done(numbers: Sequence[int], files: TrainingSetFiles) -> list[Copied]:
    return [Copied.read(files.done(number)) for number in numbers]


def _incomplete(
    files: TrainingSetFiles, listed: Listed, found: dict[int, Copied | NotNow]
) -> CurateError:
    for one in found.values():
        if isinstance(one, NotNow) and one.changed:
            Memo(files.request).forget()
            return CurateError(f"{one.reason}; run the same command again, which lists it anew")
    waiting = {n: one.reason for n, one in found.items() if isinstance(one, NotNow)}
    images = [listed.images[number] for number in waiting]
    known = f"{sum(images)} images" if min(images) >= 0 else "their images"
    return CurateError(
        f"{files.folder}: {len(waiting)} of {len(found)} pieces, {known}, cannot be read now "
        f"({next(iter(waiting.values()))}); running the same command again goes on with them"
    )


def _check_rejects(limit: float, copied: list[Copied], files: TrainingSetFiles) -> None:
    """Write down what cannot be used. Raises CurateError where that is too much."""
    with_rejects = [number for number, one in enumerate(copied) if one.rejects]
    storage.remove_tree(files.rejected)
    if with_rejects:
        results([_gather_rejects.remote(with_rejects, files)])
    images = sum(part.images for one in copied for part in one.parts)
    rejects = sum(one.rejects for one in copied)
    if rejects > limit * (images + rejects) or not images:
        for number in with_rejects:  # next time they may be there
            storage.remove_tree(files.done(number))
        raise CurateError(
            f"images.max_rejected_fraction={limit}: {rejects} of {images + rejects} images to "
            f"train on cannot be read; {files.rejected} says why"
        )


@ray.remote
def _gather_rejects(numbers: list[int], files: TrainingSetFiles) -> None:
    uris = [files.rejects_of(number) for number in numbers]
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(uri))) for uri in uris]
    shards.write_parquet(files.rejected, pa.concat_tables(tables))
