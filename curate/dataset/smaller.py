"""Photographs as large as training looks at them: decoded once, and not each epoch anew."""

from __future__ import annotations

import io

from PIL import Image

from curate.dataset.views import resized
from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings

QUALITY = 95  # of JPEGs, with all of their colour


def smaller(data: bytes, side_px: int, limits: ImageSettings) -> bytes:
    """An image as a JPEG, or of 16 bits a PNG, whose shorter side is side_px; the bytes as they
    are, where it is no larger, or cannot be decoded, which is told of when it is trained on."""
    try:
        image = EncodedImage(data, limits)
        width, height = image.size
        if min(width, height) <= side_px:
            return data
        pixels = image.pixels(side_px)
    except Refused:
        return data
    scale = side_px / min(width, height)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    file = io.BytesIO()
    small = resized(pixels, size, Image.Resampling.BICUBIC)
    if limits.bits == 16:
        Image.fromarray(small[..., 0]).save(file, "PNG")
    else:
        picture = Image.fromarray(small if limits.channels == 3 else small[..., 0])
        picture.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()
