"""The images that a report shows: small pictures of them, made once, on Ray tasks.

A file is named by what the image is, never by what the web calls it; a rerun finds it there.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import ray
from PIL import Image, ImageFile

from curate import storage
from curate.cluster import over_tasks
from curate.images import FORMATS, EncodedImage, Refused
from curate.report import publish
from curate.report.collect.files import ImageRow
from curate.report.collect.settings import public
from curate.report.content import Tile
from curate.settings import ImageSettings, RunSettings, SourceSettings
from curate.sources.located import read_located

SIDE_PX = 112
QUALITY = 75
PER_TASK = 64


@dataclass(frozen=True)
class Tiles:
    """Those of one report, whose thumbnails lie in `folder`."""

    settings: RunSettings
    folder: str
    troubles: dict[str, str | None] = field(default_factory=dict)  # of each thumbnail asked for

    def of_target(self, rows: list[ImageRow]) -> list[Tile]:
        return self._of(rows, [self.settings.target])

    def of_open(self, rows: list[ImageRow]) -> list[Tile]:
        """Of rejects too, which may be the target's."""
        return self._of(rows, [self.settings.target, *self.settings.open])

    def remove_others(self) -> None:
        """Thumbnails of an earlier report that this one does not show."""
        for name in storage.names_in(self.folder) - self.troubles.keys():
            if name.endswith(".webp"):
                storage.remove_tree(storage.join(self.folder, name))

    def _of(self, rows: list[ImageRow], sources: list[SourceSettings]) -> list[Tile]:
        fresh = [row for row in rows if name_of(row) not in self.troubles]
        by_name = {source.name: source for source in sources}
        troubles = make(fresh, by_name, self.folder, self.settings.images)
        for name in map(name_of, fresh):
            self.troubles[name] = troubles.get(name)
        return [self._tile(row) for row in rows]

    def _tile(self, row: ImageRow) -> Tile:
        name = name_of(row)
        trouble = self.troubles[name]
        return Tile(
            None if trouble else name,
            public(trouble) if trouble else None,
            row.key,
            row.source,
            row.label,
            row.round,
            row.centroid,
            row.similarity,
        )


def name_of(row: ImageRow) -> str:
    """Of the file of an image's thumbnail."""
    known = row.sha256 or f"{row.uri} {row.offset} {row.row}"
    return f"{hashlib.sha256(f'{known} {SIDE_PX}'.encode()).hexdigest()[:24]}.webp"


def make(
    rows: Iterable[ImageRow], sources: dict[str, SourceSettings], folder: str, limits: ImageSettings
) -> dict[str, str]:
    """Thumbnails into `folder`, but those that are there; returns why some could not be made.

    sources: settings by name. Of an image that the run refused, whatever can be seen is shown.
    """
    made = storage.names_in(folder)
    wanted = {name: row for row in rows if (name := name_of(row)) not in made}
    # Those of one file together, in its order
    order = sorted(
        wanted.values(),
        key=lambda row: (row.source, row.uri, row.row or 0, row.offset or 0),
    )
    parts = over_tasks(_make, order, PER_TASK, sources, folder, limits)
    return {name: why for part in parts for name, why in part.items()}


@ray.remote
def _make(
    rows: list[ImageRow], sources: dict[str, SourceSettings], folder: str, limits: ImageSettings
) -> dict[str, str]:
    troubles = {}
    limits = limits.model_copy(update={"min_px": 1})  # small ones can be shown
    located = read_located([vars(row) for row in rows], sources, limits.max_bytes)
    for row, item in zip(rows, located, strict=True):
        name = name_of(row)
        try:
            if item.data is None:
                raise Refused(item.error or "no bytes")
            if row.refused:
                picture = forgiving(item.data, limits.max_pixels)
            else:
                picture = EncodedImage(item.data, limits).decode(SIDE_PX)
        except Refused as reason:
            troubles[name] = str(reason)
            continue
        publish.write(storage.join(folder, name), small(picture))
    return troubles


def forgiving(data: bytes, max_pixels: int) -> Image.Image:
    """What can be seen of an image that the run refused: as much as there is of a damaged one."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > max_pixels:
                raise Refused("too large to show")
            return picture.convert("RGB")
    except Refused:
        raise
    except Exception as error:  # Pillow's decoders raise anything at all of damaged data
        raise Refused("nothing of it can be shown") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def small(picture: Image.Image) -> bytes:
    """WebP, SIDE_PX at most; what is smaller stays as it is."""
    picture = picture.copy()
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue()
