"""Image sets in: one module a kind, each with

plan(settings, unit_images, place)            → units, in plan order, without reading any pixel
read(settings, unit, max_bytes, last_attempt) → items, in plan order: one for every image of it
metadata(settings, unit, columns)             → the same without images, each with these columns of
columns_of(unit)                                what is known of it; where a kind has any
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

from curate import storage
from curate.errors import CurateError, one_line
from curate.privacy import restored
from curate.settings import SourceSettings
from curate.sources import image_folder, parquet, url_list, webdataset
from curate.sources.base import Item, Row
from curate.sources.units import Changed, Unit

KINDS: dict[str, ModuleType] = {
    "image_folder": image_folder,
    "webdataset": webdataset,
    "parquet": parquet,
    "url_list": url_list,
}

__all__ = [
    *("KINDS", "Changed", "Item", "Unit", "columns_of", "is_damage", "lost", "plan_source"),
    *("read_metadata", "read_unit"),
]


def plan_source(source: SourceSettings, unit_images: int, place: str) -> list[Unit]:
    """The units of one source, made by Ray tasks.

    place: beginning of the names of files that may be written, of what units are made of.

    Raises CurateError naming the source where there is nothing to read, or no reading it.
    """
    try:
        units: list[Unit] = KINDS[source.kind].plan(source, unit_images, place)  # type: ignore[attr-defined]
    except CurateError as error:
        raise CurateError(f"source {source.name}: {error}") from error
    except Exception as error:  # object stores' clients have exceptions of their own
        cause = getattr(error, "cause", error)  # a task's, without Ray's account of the task
        raise CurateError(
            f"source {source.name}: {type(cause).__name__}: {one_line(cause)}; "
            "check path and credentials"
        ) from error
    if not units:
        raise CurateError(f"source {source.name}: no images at {source.path}; check the path")  # type: ignore[attr-defined]
    return units


def read_unit(
    source: SourceSettings, unit: Unit, max_bytes: int, *, last_attempt: bool = True
) -> Iterator[Item]:
    """The images of one unit; one that is damaged, gone or of more than max_bytes is an item with
    an `error`, no exception. As many items as the plan expects, where it does.

    last_attempt: whether nobody will try again what a web server does not give now.

    Raises storage.Unavailable where it cannot be read now, Changed where it is not what was
    planned, MemoryError; some items may have come by then.
    """
    unit = replace(unit, uri=restored(unit.uri, paths_of(source)))
    given, reason = 0, "gone since the run was planned"
    try:
        for item in KINDS[source.kind].read(source, unit, max_bytes, last_attempt):  # type: ignore[attr-defined]
            given += 1
            yield item
    except (storage.Unavailable, Changed, MemoryError):
        raise
    except FileNotFoundError as error:
        raise Changed(f"{unit.uri}: gone since it was planned") from error
    except Exception as error:  # whatever a filesystem or a damaged file raises
        what = f"{type(error).__name__}: {one_line(error, 200)}"
        if not is_damage(error, unit.uri):
            raise storage.Unavailable(f"{unit.uri}: {what}") from error
        reason = f"not readable: {what}"
        if unit.images is None:
            yield from lost(unit, reason)
    if unit.images is not None:
        yield from lost(unit, reason, given)


def read_metadata(
    source: SourceSettings, unit: Unit, columns: Sequence[str]
) -> Iterator[tuple[Item, Row]]:
    """Of the images of one unit, without reading them: where each lies, and those of the columns
    that its source has; nothing of a kind of source that has none.

    Raises storage.Unavailable and Changed as `read_unit` does.
    """
    unit = replace(unit, uri=restored(unit.uri, paths_of(source)))
    kind = KINDS[source.kind]  # type: ignore[attr-defined]
    if not hasattr(kind, "metadata"):
        return
    try:
        yield from kind.metadata(source, unit, columns)
    except (storage.Unavailable, Changed, MemoryError):
        raise
    except FileNotFoundError as error:
        raise Changed(f"{unit.uri}: gone since it was planned") from error
    except Exception as error:  # whatever a filesystem or a damaged file raises
        if not is_damage(error, unit.uri):
            what = f"{type(error).__name__}: {one_line(error, 200)}"
            raise storage.Unavailable(f"{unit.uri}: {what}") from error


def columns_of(source: SourceSettings, unit: Unit) -> list[str]:
    """What `read_metadata` may be asked for, by one unit."""
    unit = replace(unit, uri=restored(unit.uri, paths_of(source)))
    kind = KINDS[source.kind]  # type: ignore[attr-defined]
    return list(kind.columns_of(unit)) if hasattr(kind, "columns_of") else []


def paths_of(source: SourceSettings) -> list[str]:
    """What the user gave, secrets and all: in what is stored there are none."""
    path: str | list[str] = source.path  # type: ignore[attr-defined]
    return [path] if isinstance(path, str) else path


def lost(unit: Unit, reason: str, given: int = 0) -> Iterator[Item]:
    """In place of the images that a unit does not give, beyond so many that it gave: as many items,
    where the plan knows how many, else one for all."""
    if unit.images is None:
        yield Item(key="", uri=unit.uri, error=f"{reason}; the rest is lost")
    for missing in range(given, unit.images or 0):
        yield Item(key=f"#{missing}", uri=unit.uri, error=reason)


# Whose exceptions speak of the bytes, not of the way to them
PARSERS = {"builtins", "pyarrow", "tarfile", "zlib", "struct", "_csv"}


def is_damage(error: Exception, uri: str) -> bool:
    """Whether what reading a file raised speaks of the file, so that trying again does not help."""
    if isinstance(error, OSError):
        # Arrow's own, of damaged bytes, has no number
        return (type(error) is OSError and error.errno is None) or storage.is_lasting(error, uri)
    return type(error).__module__.partition(".")[0] in PARSERS or storage.is_lasting(error, uri)
