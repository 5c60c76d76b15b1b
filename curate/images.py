"""Bytes → RGB uint8, strictly: an image is decoded whole and right, or refused with a reason."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from simplejpeg import decode_jpeg

from curate.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# EXIF's orientation → what sets the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8]}  # width becomes height


@dataclass(frozen=True)
class Preprocessing:
    """Upright RGB uint8 → what the module takes."""

    image_px: int
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Refused(Exception):
    """Why an image cannot be used: one short line."""


def decode(
    data: bytes,
    *,
    min_px: int,
    max_pixels: int,
    target_px: int | Callable[[int, int], int] | None = None,
) -> Decoded:
    """Decode one image; of an animation, its first picture.

    target_px: where set, a JPEG may be decoded at a fraction of its size (libjpeg's scaled DCT),
    as long as the shorter side stays at least twice this: resizing from there costs no quality
    that anyone can see, and a third of the time. A function gives it for an image's width and
    height as it stands upright, and is called once.

    Raises Refused for bytes that are empty, truncated or no image; an image whose shorter side is
    under min_px, or whose width × height is over max_pixels (before its pixels are allocated).
    """
    if not data:
        raise Refused("empty")
    size = _webp_size(data)
    if size:
        _check_size(*size, min_px, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is decided here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            _check_size(width, height, min_px, max_pixels)
            if callable(target_px) and image.format in ("JPEG", "MPO"):
                sideways = _turn(image) in SIDEWAYS
                target_px = target_px(*((height, width) if sideways else (width, height)))
            pixels = _pixels(data, image, None if callable(target_px) else target_px)
            turn = _turn(image)  # asked of a TIFF before its pixels, it would be forgotten
            upright = pixels if turn is None else pixels.transpose(turn)
            if callable(target_px):  # others than JPEGs come in one size
                target_px(*upright.size)
            return Decoded(_rgb(upright), width, height)
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        raise Refused("too many pixels for Pillow: a decompression bomb?") from error
    except UnidentifiedImageError as error:
        raise Refused("not an image in a known format") from error
    except Exception as error:  # Pillow's decoders raise anything at all of damaged data
        # Without the counts in brackets, so that reasons can be counted
        reason = re.sub(r" \(.*\)", "", one_line(error, 200))
        raise Refused(f"damaged: {reason}") from error


class Decoded:
    """rgb: a Pillow image of mode RGB, upright; width and height as the file states them, px."""

    __slots__ = ("height", "rgb", "width")

    def __init__(self, rgb: Image.Image, width: int, height: int) -> None:
        self.rgb, self.width, self.height = rgb, width, height


def resize_crop(image: Image.Image, image_px: int, crop_fraction: float) -> NDArray[np.uint8]:
    """Shorter side to image_px / crop_fraction, centre crop → (image_px, image_px, 3) uint8."""
    width, height = image.size
    resized_px = round(image_px / crop_fraction)
    # The crop in the source's own coordinates, so that only what is kept is resampled
    side = min(width, height) * image_px / resized_px
    left, top = (width - side) / 2, (height - side) / 2
    crop = image.resize(
        (image_px, image_px),
        Image.Resampling.BICUBIC,
        box=(left, top, left + side, top + side),
        reducing_gap=2.0,
    )
    return np.asarray(crop)


def _check_size(width: int, height: int, min_px: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refused(f"{width}×{height} is over max_pixels {max_pixels}")
    if min(width, height) < min_px:
        raise Refused(f"{width}×{height} is under min_px {min_px}")


def _pixels(data: bytes, image: Image.Image, target_px: int | None) -> Image.Image:
    """The picture with its pixels, by a decoder that forgives no damage.

    Pillow takes what libjpeg makes of a JPEG that ends early, and looks at no checksum of a PNG's
    pixels. BMP and uncompressed TIFF have nothing that would show a flipped bit.
    """
    if image.format in ("JPEG", "MPO"):
        if image.mode != "CMYK":
            side = 0 if target_px is None else 2 * target_px
            pixels = decode_jpeg(data, "RGB", min_height=side, min_width=side, strict=True)
            return Image.fromarray(pixels)
        decode_jpeg(data, "CMYK", strict=True)  # Pillow knows which of these are inverted
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    image.load()
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the picture upright, by its EXIF. EXIF that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as damaged pictures do
        orientation = None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes to RGB: transparency over white, 16 bits to their upper 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise Refused("grey values beyond 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
    if image.mode in ("LAB", "HSV"):
        raise Refused(f"{image.mode} colours")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a WebP's header; None for anything else.

    Pillow's decoder allocates the canvas when it opens the file, which is too late to refuse it.
    Source: RFC 9649, sections 2.5 to 2.7.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return None
