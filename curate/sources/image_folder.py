"""A tree of image files. The first folder below the root is the label, any depth is fine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from curate import listing
from curate.errors import CurateError
from curate.settings import ImageFolderSettings
from curate.sources.base import IMAGE_EXTENSIONS, Item, Unit, file_units, read_files

log = logging.getLogger(__name__)


def plan(source: ImageFolderSettings, unit_images: int) -> list[Unit]:
    try:
        files = listing.find(source.path)
    except FileNotFoundError:
        raise CurateError(f"{source.path}: no such folder") from None
    items = []
    left_out: Counter[str] = Counter()
    for file in files:
        if file.path.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS:
            left_out["without an image's extension"] += 1
        elif not file.regular:
            left_out["not a regular file"] += 1
        else:
            label = file.path.split("/", 1)[0] if "/" in file.path else None
            items.append(Item(key=file.path, uri=file.uri, size=file.size, label=label))
    if left_out:
        reasons = ", ".join(f"{files} {reason}" for reason, files in sorted(left_out.items())[::-1])
        log.info("source %s: left out %d files: %s", source.name, left_out.total(), reasons)
    return file_units(source.path.rstrip("/"), items[: source.limit], unit_images)


def read(source: ImageFolderSettings, unit: Unit, max_bytes: int) -> Iterator[Item]:
    yield from read_files(unit.items or (), max_bytes)
