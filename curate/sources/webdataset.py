"""WebDataset tars: `key.jpg` with `key.cls` and other sidecars, sorted by key or not."""

from __future__ import annotations

import json
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import BinaryIO

import ray

from curate import listing, names, storage
from curate.cluster import over_tasks
from curate.errors import CurateError, one_line
from curate.listing import FileInfo
from curate.privacy import public
from curate.settings import WebDatasetSettings
from curate.sources.base import IMAGE_EXTENSIONS, Item, Row, within
from curate.sources.units import Unit, check_unchanged, digest_of

HEADER_BYTES = 8 << 10  # read at a time where headers alone are wanted
LABEL_BYTES = 4096  # a longer sidecar is no label
SIDECAR_BYTES = 1 << 20  # a longer .json is left out
BLOCK = 512  # bytes; a tar is headers and padded files in such blocks, and two empty ones to end


def plan(source: WebDatasetSettings, unit_images: int, place: str) -> list[Unit]:
    """One unit a tar. Only a limit makes it look inside, at headers, as far as the limit goes."""
    files = listing.expand(source.path)
    for file in files:
        if not file.uri.endswith(".tar"):
            raise CurateError(f"{file.uri}: not a .tar; decompress archives, or narrow the pattern")
    if source.limit is None:
        return [_unit(file) for file in files]
    units, left, wave = [], source.limit, 4
    while files and left:
        some, files = files[:wave], files[wave:]
        for file, images in zip(some, over_tasks(_count, some, 1), strict=True):
            if images and left:
                units.append(_unit(file, min(left, images), whole=images <= left))
                left -= min(left, images)
        wave *= 2
    return units


def _unit(file: FileInfo, images: int | None = None, whole: bool = True) -> Unit:
    stop = None if whole else images
    digest = digest_of("webdataset", public(file.uri), file.size, file.stamp, stop)
    return Unit(file.uri, digest, 0, stop, images, file.size, file.stamp)


@ray.remote
def _count(files: list[FileInfo]) -> int:
    """Images of one tar. Of a remote one, headers are read and bodies stepped over."""
    [file] = files

    def count() -> int:
        with storage.open_seekable(file.uri, block_bytes=HEADER_BYTES) as tar:
            return len(_items_of(tar, file.uri, labelled=False))

    return storage.with_retries(file.uri, count)


def read(
    source: WebDatasetSettings, unit: Unit, max_bytes: int, last_attempt: bool
) -> Iterator[Item]:
    """Images sorted by key; a damaged archive gives what it still holds, then an item with the
    damage. Raises Changed for another archive than was planned."""
    with _local_copy(unit.uri) as file:
        check_unchanged(unit)
        for item in _items_of(file, unit.uri)[unit.start : unit.stop]:
            yield _with_bytes(within(item, max_bytes), file)


def metadata(
    source: WebDatasetSettings, unit: Unit, columns: Sequence[str]
) -> Iterator[tuple[Item, Row]]:
    """As `read`, without images: each with what its `.json` says of these columns."""
    with _local_copy(unit.uri) as file:
        check_unchanged(unit)
        items = _items_of(file, unit.uri)[unit.start : unit.stop]
        sidecars = _sidecars_of(file)
    for item in items:
        said = sidecars.get(item.key) or sidecars.get(_split(item.key)[0]) or {}
        yield item, {column: said.get(column) for column in columns}


def columns_of(unit: Unit) -> list[str]:
    with _local_copy(unit.uri) as file:
        return sorted({name for said in _sidecars_of(file).values() for name in said})


def _sidecars_of(file: BinaryIO) -> dict[str, Row]:
    """What is in each `.json` that holds an object, by the key of its image."""
    members, _ = _members_of(file)
    found = {}
    for name, place in _places_of(members):
        stem, middle, extension = _split(names.escaped(name))
        if extension != "json" or isinstance(place, str) or place.size > SIDECAR_BYTES:
            continue
        file.seek(place.offset_data)
        with suppress(ValueError, RecursionError):  # one that is damaged says nothing
            said = json.loads(file.read(place.size))
            if isinstance(said, dict):
                found[stem + middle] = said
    return found


def _with_bytes(item: Item, file: BinaryIO) -> Item:
    if item.error or item.offset is None or item.size is None:
        return item
    file.seek(item.offset)
    data = file.read(item.size)
    if len(data) < item.size:
        return replace(item, error="the archive ends inside this image")
    return replace(item, data=data)


@contextmanager
def _local_copy(uri: str) -> Iterator[BinaryIO]:
    """A tar open for random reads. A remote one is downloaded once, since its index lies all
    through it."""
    if storage.is_local(uri):
        with storage.open_seekable(uri) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:

        def download() -> None:
            copy.seek(0)
            copy.truncate()
            with storage.open_seekable(uri) as remote:
                shutil.copyfileobj(remote, copy, 8 << 20)

        storage.with_retries(uri, download)
        yield copy


def _items_of(file: BinaryIO, uri: str, *, labelled: bool = True) -> list[Item]:
    """Every image, with the label from its sidecar if wanted, sorted by key."""
    members, damage = _members_of(file)
    named = [(*_split(names.escaped(name)), place) for name, place in _places_of(members)]
    plain = {stem for stem, middle, ext, _ in named if not middle and ext in IMAGE_EXTENSIONS}
    images: list[tuple[str, Item]] = []
    labels: dict[str, str] = {}
    for stem, middle, extension, place in named:
        key = stem + middle
        if extension == "cls" and not isinstance(place, str) and place.size < LABEL_BYTES:
            if not labelled:
                continue
            file.seek(place.offset_data)
            label = file.read(place.size)
            if len(label) == place.size:
                labels[key] = label.decode("utf-8", "replace").strip()
        elif extension in IMAGE_EXTENSIONS and not (middle and stem in plain):
            if isinstance(place, str):
                images.append((stem, Item(key=key, uri=uri, error=place)))
            else:
                offset, size = int(place.offset_data), int(place.size)
                images.append((stem, Item(key=key, uri=uri, offset=offset, size=size)))
    images.sort(key=lambda image: (image[1].key, image[1].offset or 0))
    items = [replace(item, label=labels.get(item.key, labels.get(stem))) for stem, item in images]
    if damage:
        items.append(Item(key="", uri=uri, error=f"archive damaged: {damage}; the rest is lost"))
    return items


def _split(name: str) -> tuple[str, str, str]:
    """`a/0001.seg.png` → (`a/0001`, `.seg`, `png`).

    WebDataset's keys end at the first dot: beside a/0001.jpg this is a sidecar of its. With no
    such image it is one itself, of key a/0001.seg, for not all who pack tars know that rule.
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, rest = base.partition(".")
    middle, last_dot, extension = rest.rpartition(".")
    return folder + slash + stem, (dot + middle) if last_dot else "", extension.lower()


def _members_of(file: BinaryIO) -> tuple[list[tarfile.TarInfo], str | None]:
    """All in a tar but its folders, and what is wrong with it if anything is."""
    members: list[tarfile.TarInfo] = []
    file.seek(0)
    try:
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8")
        while (member := archive.next()) is not None:
            if not member.isdir():
                members.append(member)
    except (tarfile.TarError, ValueError) as error:
        return members, one_line(error)
    # tarfile takes a broken header after the first for the end, without a word
    file.seek(archive.offset)
    ending = file.read(BLOCK)
    if ending != bytes(BLOCK):
        return members, f"no end marker at byte {archive.offset}"
    return members, None


def _places_of(members: list[tarfile.TarInfo]) -> Iterator[tuple[str, tarfile.TarInfo | str]]:
    """(name, the file that it stands for, or why there is none) of each member.

    A hard link means the member of that name that came before it, a symbolic one the path from the
    folder where it is, and the last member of that name.
    """
    by_path: dict[str, tarfile.TarInfo] = {}
    named = []
    for member in members:
        path = posixpath.normpath(member.name)
        if member.islnk():
            member = by_path.get(posixpath.normpath(member.linkname), member)
        by_path[path] = member
        named.append((path, member))
    for (path, member), listed in zip(named, members, strict=True):
        yield listed.name, _file_of(path, member, by_path)


def _file_of(
    path: str, member: tarfile.TarInfo, by_path: dict[str, tarfile.TarInfo]
) -> tarfile.TarInfo | str:
    followed: set[str] = set()
    found: tarfile.TarInfo | None = member
    while found is not None and found.issym() and path not in followed:
        followed.add(path)
        member = found
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
        found = by_path.get(path)
    if found is not None and found.isfile():
        return found
    if member.issym() or member.islnk():
        link = one_line(names.escaped(member.linkname), 200)
        return f"a link to {link}, which is no file of the archive"
    return "not a regular file"
