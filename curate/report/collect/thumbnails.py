"""Small pictures of the images that a report shows, made once, on Ray tasks.

A file is named by what the image is, never by what the web calls it; a rerun finds it there.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from typing import Any

import ray
from PIL import Image, ImageFile

from curate import storage
from curate.cluster import results
from curate.images import FORMATS, Refused, decode
from curate.report import publish
from curate.settings import SourceSettings
from curate.sources.located import read_located

SIDE_PX = 112
QUALITY = 75
PER_TASK = 64

Row = dict[str, Any]


def name_of(row: Row) -> str:
    """Of the file of an image's thumbnail."""
    known = row["sha256"] or f"{row['uri']} {row['offset']} {row['row']}"
    return f"{hashlib.sha256(f'{known} {SIDE_PX}'.encode()).hexdigest()[:24]}.webp"


def make(
    rows: Iterable[Row], sources: dict[str, SourceSettings], folder: str, max_pixels: int
) -> dict[str, str]:
    """Thumbnails of rows of a manifest into `folder`; returns why some could not be made.

    sources: settings by name. Those that are there are left as they are. A row with `refused` is of
    an image that the run did not take: whatever can be seen of it is shown.
    """
    there = storage.names_in(folder)
    wanted = {name: row for row in rows if (name := name_of(row)) not in there}
    # Those of one file together, in its order
    order = sorted(
        wanted.values(),
        key=lambda row: (row["source"], row["uri"], row["row"] or 0, row["offset"] or 0),
    )
    tasks = [
        _make.remote(order[i : i + PER_TASK], sources, folder, max_pixels)
        for i in range(0, len(order), PER_TASK)
    ]
    return {name: why for part in results(tasks) for name, why in part.items()}


def remove_others(folder: str, kept: set[str]) -> None:
    """Thumbnails of an earlier report that this one does not show."""
    for name in storage.names_in(folder) - kept:
        if name.endswith(".webp"):
            storage.remove_tree(storage.join(folder, name))


@ray.remote
def _make(
    rows: list[Row], sources: dict[str, SourceSettings], folder: str, max_pixels: int
) -> dict[str, str]:
    troubles = {}
    for row, item in zip(rows, read_located(rows, sources), strict=True):
        name = name_of(row)
        try:
            if item.data is None:
                raise Refused(item.error or "no bytes")
            if row.get("refused"):
                picture = forgiving(item.data, max_pixels)
            else:
                picture = decode(item.data, min_px=1, max_pixels=max_pixels, target_px=SIDE_PX).rgb
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
