"""Image sets in: one module a kind, each with

plan(settings, unit_images) → units, in plan order: what is there, without reading any pixel
read(settings, unit)        → items, in plan order: one for every image of the unit
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from curate.config import SourceSettings
from curate.errors import CurateError
from curate.sources import image_folder, parquet, url_list, webdataset
from curate.sources.base import Item, Unit

KINDS: dict[str, ModuleType] = {
    "image_folder": image_folder,
    "webdataset": webdataset,
    "parquet": parquet,
    "url_list": url_list,
}

__all__ = ["KINDS", "Item", "Unit", "plan_source", "read_unit"]


def plan_source(source: SourceSettings, unit_images: int) -> list[Unit]:
    """The units of one source.

    Raises CurateError naming the source where there is nothing to read, or no reading it.
    """
    try:
        units: list[Unit] = KINDS[source.kind].plan(source, unit_images)  # type: ignore[attr-defined]
    except CurateError as error:
        raise CurateError(f"source {source.name}: {error}") from error
    except OSError as error:
        raise CurateError(
            f"source {source.name}: {type(error).__name__}: {error}; check path and credentials"
        ) from error
    if not units:
        raise CurateError(f"source {source.name}: no images at {source.path}; check the path")  # type: ignore[attr-defined]
    return units


def read_unit(source: SourceSettings, unit: Unit) -> Iterator[Item]:
    """The images of one unit. What cannot be read is an item with an `error`, never an exception."""
    yield from KINDS[source.kind].read(source, unit)  # type: ignore[attr-defined]
