"""Masks of images: PNGs whose palette or grey values are classes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.errors import CurateError, one_line
from curate.evaluate.annotated import Size, bytes_of, files_below
from curate.settings import AnnotatedSettings
from curate.sources.base import IMAGE_EXTENSIONS

GREY_STEPS = {2: 85, 4: 17}  # Pillow stretches 2 and 4 bits to 0…255; by that much


@dataclass(frozen=True)
class Masked:
    """An image and its mask: URIs."""

    image: str
    mask: str


def read_masks(settings: AnnotatedSettings, key: str) -> list[Masked]:
    """Every PNG in the folder of masks, with the image of the same path but for its extension;
    images without a mask are left out.

    key: the setting, named in errors. Raises CurateError where there is no mask, and for a mask
    without an image.
    """
    named = f"{key}.annotations={settings.annotations}"
    masks = {
        path.rpartition(".")[0]: uri
        for path, uri in files_below(settings.annotations, f"{key}.annotations").items()
        if path.lower().endswith(".png")
    }
    if not masks:
        raise CurateError(f"{named}: no mask in it; name a folder of .png files")
    images: dict[str, str] = {}
    for path, uri in files_below(settings.images, f"{key}.images").items():
        stem, _, extension = path.rpartition(".")
        if extension.lower() not in IMAGE_EXTENSIONS or uri == masks.get(stem):
            continue
        if stem in images and stem in masks:
            raise CurateError(f"{images[stem]}, {uri}: one mask for both; keep one of them")
        images[stem] = uri
    for stem, uri in masks.items():
        if stem not in images:
            raise CurateError(
                f"{uri}: no image {stem}.* in {key}.images={settings.images}; "
                "add it, or take the mask out"
            )
    return [Masked(images[stem], uri) for stem, uri in masks.items()]


def read_mask(uri: str, size: Size | None = None) -> NDArray[np.uint8]:
    """A PNG's palette or grey values (H, W), as they are written in it.

    size: of its image, which it must have. Raises CurateError for another size, for a file that
    cannot be read, and for colours.
    """
    data = bytes_of(uri)
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # its checksums, and it is used up
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        if size is not None and image.size != size:
            raise CurateError(
                f"{uri}: {_of(image.size)}, and its image is {_of(size)}; make them alike"
            )
        if image.mode not in ("P", "L", "1"):
            raise CurateError(
                f"{uri}: {image.mode} pixels; masks are PNGs of palette or 8-bit grey values"
            )
        values = np.asarray(image, np.uint8)
    except CurateError:
        raise
    except Exception as error:  # Pillow's decoders raise anything at all of damaged data
        raise CurateError(
            f"{uri}: not a whole PNG: {one_line(error, 160)}; save it again"
        ) from error
    bits = data[24]  # of IHDR, which comes first
    return values // GREY_STEPS[bits] if image.mode == "L" and bits in GREY_STEPS else values


def _of(size: Size) -> str:
    return f"{size[0]}×{size[1]} px"
