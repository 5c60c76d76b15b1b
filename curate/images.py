"""Bytes → pixels, strictly: an image is decoded whole and right, or refused with a reason.

Pixels are arrays (height, width, channels): three channels of uint8, RGB, or one, grey, of uint8 or
uint16, as `images.channels` and `images.bits` say.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from simplejpeg import decode_jpeg

from curate.errors import one_line
from curate.headers import webp_size, without_stray_bytes
from curate.settings import ImageSettings

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

Pixels = NDArray[Any]  # (height, width, channels) uint8 or uint16
# A JPEG is an array until something needs Pillow's image, which is another copy
_Picture = Image.Image | NDArray[np.uint8]

# Which way `Preprocessing.pixels` makes them: counts on with whatever changes their values, so that
# embeddings of one way are never taken for those of another
PIXELS = 3


@dataclass(frozen=True)
class Preprocessing:
    """Upright pixels → what the module takes."""

    image_px: int
    crop_fraction: float
    mean: tuple[float, ...]  # of each channel, of 0…1
    std: tuple[float, ...]
    bits: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_px, self.image_px, len(self.mean)

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(self.bits)

    @property
    def white(self) -> int:
        """The largest value of a pixel."""
        return (1 << self.bits) - 1

    def pixels(self, image: EncodedImage) -> Pixels:
        """Decoded, resized and cropped: (image_px, image_px, channels). Raises Refused."""
        resized_px = round(self.image_px / self.crop_fraction)
        return resize_crop(image.pixels(resized_px), self.image_px, self.crop_fraction)


def dtype_of(bits: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if bits == 16 else np.uint8)


class Refused(Exception):
    """Why an image cannot be used: one short line."""


class EncodedImage:
    """One image by its header, found to be within the limits; of an animation, its first picture.

    width, height: as the file states them, px.
    """

    def __init__(self, data: bytes, limits: ImageSettings) -> None:
        """Raises Refused for bytes that are empty or no image; an image whose shorter side is under
        limits.min_px, or whose width × height is over limits.max_pixels (before its pixels are
        allocated)."""
        if not data:
            raise Refused("empty")
        size = webp_size(data)
        if size:
            _check_size(*size, limits)
        self._data, self._limits = without_stray_bytes(data), limits
        with _refusing():
            self._image = Image.open(io.BytesIO(self._data), formats=FORMATS)
        self.width, self.height = self._image.size
        self._is_jpeg = self._image.format in ("JPEG", "MPO")
        _check_size(self.width, self.height, limits)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture as it stands upright, px.

        Of others than JPEGs it takes their pixels: what turns them may stand behind those. Raises
        Refused where they are damaged.
        """
        if not self._is_jpeg:
            return self._whole.size
        with _refusing():
            sideways = _turn(self._image) in SIDEWAYS
        return (self.height, self.width) if sideways else (self.width, self.height)

    def decode(self, target_px: int | None = None) -> Image.Image:
        """The upright picture, RGB of 8 bits, whatever its pixels are to be: to look at.

        target_px: where set, a JPEG may be decoded at a half, quarter or eighth of its size
        (libjpeg's scaled DCT), as long as the shorter side stays at least twice this: resizing from
        there costs no quality that anyone can see.

        Raises Refused for an image that is truncated or damaged.
        """
        with _refusing():
            return _rgb(self._upright(target_px))

    def pixels(self, target_px: int | None = None) -> Pixels:
        """The same in the channels and bits that the limits name: (height, width, channels)."""
        with _refusing():
            picture = self._upright(target_px)
            if self._limits.channels == 3:
                return picture if isinstance(picture, np.ndarray) else np.asarray(_rgb(picture))
            return _grey(picture, self._limits.bits)

    @cached_property
    def _whole(self) -> Image.Image:
        """Of others than JPEGs, which come in one size."""
        with _refusing():
            return _image_of(self._turned(None))

    def _upright(self, target_px: int | None) -> _Picture:
        return self._turned(target_px) if self._is_jpeg else self._whole

    def _turned(self, target_px: int | None) -> _Picture:
        picture = _decoded(self._data, self._image, target_px, self._limits.channels)
        turn = _turn(self._image)  # asked of a TIFF before its pixels, it would be forgotten
        return picture if turn is None else _image_of(picture).transpose(turn)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns whatever Pillow and libjpeg raise into Refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is decided here
            yield
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


def resize_crop(pixels: Pixels, image_px: int, crop_fraction: float) -> Pixels:
    """(H, W, C): shorter side to image_px / crop_fraction, centre crop → (image_px, image_px, C).

    Bicubic, over as many pixels of the source as one of the result stands for. The crop begins and
    ends between pixels of the source.
    """
    height, width = pixels.shape[:2]
    side = max(1, round(min(height, width) * image_px / round(image_px / crop_fraction)))
    # Where a pixel stands for 4 × 4 and more, means of whole blocks come first: half the work
    block = max(1, side // (2 * image_px))
    side -= side % block
    top, left = (height - side) // 2, (width - side) // 2
    crop = pixels[top : top + side, left : left + side]
    if block > 1:
        crop = _means(crop, block)
    return _resize(crop, image_px)


def _means(crop: Pixels, block: int) -> Pixels:
    """Of blocks of so many pixels a side, of which the crop has whole ones."""
    if crop.shape[2] == 3:
        return np.asarray(Image.fromarray(crop).reduce(block))
    height, width, channels = crop.shape
    blocks = crop.reshape(height // block, block, width // block, block, channels)
    return np.rint(blocks.mean((1, 3))).astype(crop.dtype)


def load_resize() -> None:
    """Loads what `resize_crop` needs, which takes seconds the first time."""
    _resize(np.zeros((1, 1, 3), np.uint8), 1)


def _resize(square: Pixels, image_px: int) -> Pixels:
    """By torch: its resize of uint8 is the fastest of the antialiasing ones."""
    import torch  # most commands resize nothing

    fine = square.dtype == np.uint16  # which torch resizes as floats alone
    source = square.astype(np.float32) if fine else square
    pixels = torch.from_numpy(np.require(source, requirements=("C", "W")))  # W: or torch warns
    # With the strides of a batch whose channels are last, the result's are too, in half the time
    batch = pixels.view(1, *square.shape).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        batch, (image_px, image_px), mode="bicubic", antialias=True
    )
    found: Pixels = resized.permute(0, 2, 3, 1).numpy()[0]
    return np.rint(found.clip(0, 0xFFFF)).astype(np.uint16) if fine else found


def _check_size(width: int, height: int, limits: ImageSettings) -> None:
    if width * height > limits.max_pixels:
        raise Refused(f"{width}×{height} is over max_pixels {limits.max_pixels}")
    if min(width, height) < limits.min_px:
        raise Refused(f"{width}×{height} is under min_px {limits.min_px}")


def _image_of(picture: _Picture) -> Image.Image:
    if not isinstance(picture, np.ndarray):
        return picture
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])


def _decoded(data: bytes, image: Image.Image, target_px: int | None, channels: int) -> _Picture:
    """The picture with its pixels, by a decoder that forgives no damage; an array, of a JPEG, has
    so many channels: RGB, or its luma.

    Pillow takes what libjpeg makes of a JPEG that ends early, and looks at no checksum of a PNG's
    pixels. BMP and uncompressed TIFF have nothing that would show a flipped bit.
    """
    if image.format in ("JPEG", "MPO"):
        if image.mode != "CMYK":
            width, height = _scaled(image.width, image.height, target_px)
            space = "RGB" if channels == 3 else "GRAY"
            return decode_jpeg(data, space, min_height=height, min_width=width, strict=True)
        decode_jpeg(data, "CMYK", strict=True)  # Pillow knows which of these are inverted
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    image.load()
    return image


def _scaled(width: int, height: int, target_px: int | None) -> tuple[int, int]:
    """The size to decode a JPEG at. Only by ½, ¼ and ⅛: libjpeg-turbo takes longer for the eighths
    between them than for the whole picture."""
    for part in (8, 4, 2):
        if target_px is not None and min(width, height) >= part * 2 * target_px:
            return -(-width // part), -(-height // part)
    return width, height


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets the picture upright, by its EXIF. EXIF that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as damaged pictures do
        orientation = None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _rgb(picture: _Picture) -> Image.Image:
    """Any of Pillow's modes to RGB: transparency over white, 16 bits to their upper 8."""
    image = _image_of(picture)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((_sixteen_bits(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Refused("floating-point pixels have no defined range")
    if image.mode in ("LAB", "HSV"):
        raise Refused(f"{image.mode} colours")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _grey(picture: _Picture, bits: int) -> Pixels:
    """(height, width, 1): values of so many bits, as they are where they have them."""
    if isinstance(picture, Image.Image) and picture.mode.startswith("I"):
        fine = _sixteen_bits(picture)[..., None]
        return fine if bits == 16 else (fine >> 8).astype(np.uint8)
    if isinstance(picture, np.ndarray):
        coarse = picture
    else:
        coarse = np.asarray(_rgb(picture).convert("L"))[..., None]
    return coarse.astype(np.uint16) * 0x101 if bits == 16 else coarse


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Refused("grey values beyond 16 bits")
    return values.astype(np.uint16)
