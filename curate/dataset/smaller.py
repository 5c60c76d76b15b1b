"""Photographs as large as training looks at them: decoded once, and not each epoch anew."""

from __future__ import annotations

import io

from PIL import Image

from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings

QUALITY = 95  # of JPEGs, with all of their colour


def smaller(data: bytes, side_px: int, limits: ImageSettings) -> bytes:
    """An image as a JPEG whose shorter side is side_px; the bytes as they are, where it is no
    larger, or cannot be decoded, which is told of when it is trained on."""
    try:
        image = EncodedImage(data, limits)
        width, height = image.size
        if min(width, height) <= side_px:
            return data
        rgb = image.decode(side_px)
    except Refused:
        return data
    scale = side_px / min(width, height)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    file = io.BytesIO()
    rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0).save(
        file, "JPEG", quality=QUALITY, subsampling=0
    )
    return file.getvalue()
