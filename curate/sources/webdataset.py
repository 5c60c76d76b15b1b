"""WebDataset tars: `key.jpg` with `key.cls` and other sidecars, sorted by key or not."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

from curate import storage
from curate.config import WebDatasetSettings
from curate.errors import CurateError, one_line
from curate.sources.base import IMAGE_EXTENSIONS, Item, Unit

BLOCK = 512  # bytes; a tar is headers and padded files in such blocks, and two empty ones to end


def plan(source: WebDatasetSettings, unit_images: int) -> list[Unit]:
    """One unit a tar. Only a limit makes it look inside, as far as the limit goes."""
    files = storage.expand(source.path)
    for file in files:
        if not file.uri.endswith(".tar"):
            raise CurateError(f"{file.uri}: not a .tar; decompress archives, or narrow the pattern")
    if source.limit is None:
        return [Unit(file.uri) for file in files]
    units, left = [], source.limit
    for file in files:
        images = len(_index(file.uri))
        units.append(Unit(file.uri, stop=min(left, images)))
        left -= min(left, images)
        if left == 0:
            break
    return units


def read(source: WebDatasetSettings, unit: Unit) -> Iterator[Item]:
    """Images sorted by key. A damaged archive gives what it still holds, then an item that says so."""
    try:
        with _local_copy(unit.uri) as file:
            for item in _items_of(file, unit.uri)[unit.start : unit.stop]:
                if item.error or item.offset is None or item.size is None:
                    yield item
                    continue
                file.seek(item.offset)
                data = file.read(item.size)
                if len(data) < item.size:
                    yield replace(item, error="the archive ends inside this image")
                else:
                    yield replace(item, data=data)
    except OSError as error:
        yield Item(
            key="", uri=unit.uri, error=f"archive not readable: {type(error).__name__}: {error}"
        )


def _index(uri: str) -> list[Item]:
    with _local_copy(uri) as file:
        return _items_of(file, uri)


@contextmanager
def _local_copy(uri: str) -> Iterator[BinaryIO]:
    """A tar open for random reads. A remote one is downloaded once, since its index lies all
    through it."""
    if storage.is_local(uri):
        with storage.open_seekable(uri) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy, storage.open_seekable(uri) as remote:
        shutil.copyfileobj(remote, copy, 8 << 20)
        yield copy


def _items_of(file: BinaryIO, uri: str) -> list[Item]:
    """Every image member, with the label from its sidecar, sorted by key."""
    members, damage = _members_of(file)
    images: list[Item] = []
    labels: dict[str, str] = {}
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key = f"{folder}{slash}{stem}"
        if extension.lower() in IMAGE_EXTENSIONS:
            images.append(
                Item(key=key, uri=uri, offset=int(member.offset_data), size=int(member.size))
            )
        elif extension.lower() == "cls" and member.size < 4096:
            file.seek(member.offset_data)
            labels[key] = file.read(member.size).decode("utf-8", "replace").strip()
    images.sort(key=lambda item: (item.key, item.offset))
    items = [replace(item, label=labels.get(item.key)) for item in images]
    if damage:
        items.append(Item(key="", uri=uri, error=f"archive damaged: {damage}; the rest is lost"))
    return items


def _members_of(file: BinaryIO) -> tuple[list[tarfile.TarInfo], str | None]:
    """The files in a tar, and what is wrong with it if anything is."""
    members: list[tarfile.TarInfo] = []
    file.seek(0)
    try:
        archive = tarfile.TarFile(fileobj=file)
        while (member := archive.next()) is not None:
            if member.isfile():
                members.append(member)
    except (tarfile.TarError, ValueError) as error:
        return members, one_line(error)
    # tarfile takes a broken header after the first for the end, without a word
    file.seek(archive.offset)
    ending = file.read(BLOCK)
    if ending != bytes(BLOCK):
        return members, f"no end marker at byte {archive.offset}"
    return members, None
