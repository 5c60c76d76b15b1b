"""Bytes → RGB uint8, strictly: an image is decoded whole and right, or refused with a reason."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class Refused(Exception):
    """Why an image cannot be used: one short line."""


def decode(data: bytes, *, min_px: int, max_pixels: int, target_px: int | None = None) -> Decoded:
    """Decode one image.

    target_px: where set, a JPEG may be decoded at a fraction of its size (libjpeg's scaled DCT),
    as long as the shorter side stays at least twice this: resizing from there costs no quality
    that anyone can see, and a third of the time.

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
            if target_px is not None:
                image.draft("RGB", (2 * target_px, 2 * target_px))
            image.load()
            return Decoded(_rgb(ImageOps.exif_transpose(image)), width, height)
    except Image.DecompressionBombError as error:
        raise Refused("too large for any decoder: a decompression bomb?") from error
    except UnidentifiedImageError as error:
        raise Refused("not an image in a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError) as error:
        # Pillow's decoders say all of these of damaged data
        raise Refused(f"damaged: {error or type(error).__name__}") from error


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
