"""Image sets in: one module a kind, each with

plan(settings, unit_images)     → units, in plan order: what is there, without reading any pixel
read(settings, unit, max_bytes) → items, in plan order: one for every image of the unit
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from curate.errors import CurateError, one_line
from curate.settings import SourceSettings
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
    except Exception as error:  # object stores' clients have exceptions of their own
        raise CurateError(
            f"source {source.name}: {type(error).__name__}: {one_line(error)}; "
            "check path and credentials"
        ) from error
    if not units:
        raise CurateError(f"source {source.name}: no images at {source.path}; check the path")  # type: ignore[attr-defined]
    return units


def read_unit(source: SourceSettings, unit: Unit, max_bytes: int) -> Iterator[Item]:
    """The images of one unit; what cannot be read is an item with an `error`, no exception, and so
    is an image of more than max_bytes.

    As many items as the plan expects, where it does: an image that has gone since is one of them.
    """
    reason = "gone since the run was planned"
    given = 0
    try:
        for item in KINDS[source.kind].read(source, unit, max_bytes):  # type: ignore[attr-defined]
            given += 1
            yield item
    except Exception as error:  # whatever a filesystem or a damaged file raises
        reason = f"not readable: {type(error).__name__}: {one_line(error, 200)}; the rest is lost"
        if unit.images is None:
            yield Item(key="", uri=unit.uri, error=reason)
    for missing in range(given, unit.images or 0):
        yield Item(key=f"#{missing}", uri=unit.uri, error=reason)
