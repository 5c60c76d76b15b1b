"""Images that annotations speak of: where they lie, and how they are read.

Everything is about the image as it stands upright, by its EXIF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from curate import storage
from curate.errors import CurateError, one_line
from curate.images import Refused, decode
from curate.settings import ImageSettings

Size = tuple[int, int]  # width, height

LONGEST = 5 / 3  # longer side for a shorter one of 1, at most: COCO's usual 1333 for 800


@dataclass(frozen=True)
class Upright:
    rgb: Image.Image  # may have been decoded at a fraction of its size
    size: Size  # in full


def read_image(uri: str, limits: ImageSettings, px: Callable[[int, int], int]) -> Upright:
    """px: the shorter side that is wanted of an image of this width and height; a JPEG may come
    smaller than it is, but at least twice that.

    Raises CurateError for an image that cannot be read, or is beyond the limits.
    """
    size = (0, 0)

    def wanted(width: int, height: int) -> int:
        nonlocal size
        size = (width, height)
        return px(width, height)

    try:
        image = decode(
            bytes_of(uri),
            min_px=limits.min_px,
            max_pixels=limits.max_pixels,
            target_px=wanted,
        ).rgb
    except Refused as refused:
        raise CurateError(f"{uri}: {refused}; mend it, or take out its annotations") from refused
    return Upright(image, size)


def fitted(width: int, height: int, px: int) -> Size:
    """What an image is resized to: its shorter side to px, or less where the longer one would go
    over LONGEST × px."""
    scale = min(px / min(width, height), round(LONGEST * px) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def files_below(folder: str, key: str) -> dict[str, str]:
    """Path below the folder → URI, sorted."""
    try:
        found = storage.find(folder)
        _, path = storage.filesystem(folder)
    except OSError as error:
        what = "no such folder" if isinstance(error, FileNotFoundError) else one_line(error)
        raise CurateError(f"{key}={folder}: {what}; check the path") from error
    root = path.rstrip("/") + "/"
    return {file.uri.partition(root)[2]: file.uri for file in found}


def bytes_of(uri: str, key: str = "") -> bytes:
    """key: of the setting that names the file, in front of it in errors."""
    try:
        return storage.with_retries(uri, lambda: storage.read_bytes(uri))
    except FileNotFoundError:
        raise CurateError(f"{key}{uri}: no such file; check the path") from None
    except Exception as error:  # object stores' clients have exceptions of their own
        raise CurateError(f"{key}{uri}: cannot be read: {one_line(error, 160)}") from error
