"""Images that annotations speak of: where they lie, and how they are read.

Everything is about the image as it stands upright, by its EXIF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from curate import listing, storage
from curate.errors import CurateError, one_line
from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings

Size = tuple[int, int]  # width, height

LONGEST = 5 / 3  # longer side for a shorter one of 1, at most: COCO's usual 1333 for 800
ANNOTATION_BYTES = 8 << 30  # of one file at most; those of COCO's training set are 450 MB


@dataclass(frozen=True)
class Upright:
    rgb: Image.Image  # may have been decoded at a fraction of its size
    size: Size  # in full


def read_image(uri: str, limits: ImageSettings, px: Callable[[int, int], int]) -> Upright:
    """px: the shorter side that is wanted of an image of this width and height; a JPEG may come
    smaller than it is, but at least twice that.

    Raises CurateError for an image that cannot be read, or is beyond the limits.
    """
    try:
        image = EncodedImage(bytes_of(uri, max_bytes=limits.max_bytes), limits)
        return Upright(image.decode(px(*image.size)), image.size)
    except Refused as refused:
        raise CurateError(f"{uri}: {refused}; mend it, or take out its annotations") from refused


def fitted(width: float, height: float, px: int) -> Size:
    """What an image is resized to: its shorter side to px, or less where the longer one would go
    over LONGEST × px."""
    scale = min(px / min(width, height), round(LONGEST * px) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def files_below(folder: str, key: str) -> dict[str, str]:
    """Path below the folder → URI, sorted."""
    try:
        return {file.path: file.uri for file in listing.find(folder) if file.regular}
    except OSError as error:
        what = "no such folder" if isinstance(error, FileNotFoundError) else one_line(error)
        raise CurateError(f"{key}={folder}: {what}; check the path") from error


def bytes_of(uri: str, key: str = "", max_bytes: int = ANNOTATION_BYTES) -> bytes:
    """key: of the setting that names the file, in front of it in errors."""
    try:
        return storage.with_retries(uri, lambda: storage.read_file(uri, max_bytes))
    except FileNotFoundError:
        raise CurateError(f"{key}{uri}: no such file; check the path") from None
    except Exception as error:  # object stores' clients have exceptions of their own
        raise CurateError(f"{key}{uri}: cannot be read: {one_line(error, 160)}") from error
