"""A tree of image files. The first folder below the root is the label, any depth is fine."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from curate import storage
from curate.errors import CurateError
from curate.settings import ImageFolderSettings
from curate.sources.base import IMAGE_EXTENSIONS, Item, Unit, file_units, read_files

log = logging.getLogger(__name__)


def plan(source: ImageFolderSettings, unit_images: int) -> list[Unit]:
    root = source.path.rstrip("/")
    try:
        files = storage.find(root)
    except FileNotFoundError:
        raise CurateError(f"{source.path}: no such folder") from None
    prefix = len(_common_root(root, files))
    items = []
    for file in files:
        key = file.uri[prefix:].lstrip("/")
        if key.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            label = key.split("/", 1)[0] if "/" in key else None
            items.append(Item(key=key, uri=file.uri, size=file.size, label=label))
    if len(items) < len(files):
        log.info(
            "source %s: left out %d files without an image's extension",
            source.name,
            len(files) - len(items),
        )
    return file_units(root, items[: source.limit], unit_images)


def read(source: ImageFolderSettings, unit: Unit) -> Iterator[Item]:
    yield from read_files(unit.items or ())


def _common_root(root: str, files: list[storage.FileInfo]) -> str:
    """The root as the filesystem spells it: a local one comes back absolute."""
    _, path = storage.filesystem(root)
    if files and files[0].uri.startswith(root + "/"):
        return root
    return path if storage.is_local(root) else f"{root.split('://', 1)[0]}://{path}"
