"""Small real image files of every format, some with what real archives are full of: damage."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth colour field with some grain, like a photograph; a seed each."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-9, 10, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0) -> bytes:
    return encode(picture(seed=seed), "JPEG")


@cache
def every_format(width: int = 48, height: int = 32) -> dict[str, bytes]:
    """Name → file. All show one picture, in fewer colours or with its edges gone where need be."""
    rgb = picture(width, height)
    grey, palette = rgb.convert("L"), rgb.quantize(64)
    turned = rgb.rotate(180)
    grey16 = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = rgb.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "test"
    return {
        "jpeg": encode(rgb, "JPEG"),
        "jpeg-grey": encode(grey, "JPEG"),
        "jpeg-progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg-restart": encode(rgb, "JPEG", restart_marker_rows=1),
        "jpeg-444": encode(rgb, "JPEG", subsampling=0, quality=95),
        "jpeg-exif": encode(rgb, "JPEG", exif=exif),
        "jpeg-mpo": encode(rgb, "MPO", save_all=True, append_images=[turned]),
        "png": encode(rgb, "PNG"),
        "png-grey": encode(grey, "PNG"),
        "png-grey16": encode(grey16, "PNG"),
        "png-rgb16": png_rgb16(np.asarray(rgb).astype(np.uint16) * 257),
        "png-palette": encode(palette, "PNG"),
        "png-palette-transparent": encode(palette, "PNG", transparency=3),
        "png-alpha": encode(alpha, "PNG"),
        "png-grey-alpha": encode(alpha.convert("LA"), "PNG"),
        "png-1bit": encode(rgb.convert("1"), "PNG"),
        "webp": encode(rgb, "WEBP"),
        "webp-lossless": encode(rgb, "WEBP", lossless=True),
        "webp-alpha": encode(alpha, "WEBP"),
        "webp-exif": encode(rgb, "WEBP", exif=exif),
        "webp-animated": encode(rgb, "WEBP", save_all=True, append_images=[turned]),
        "gif": encode(palette, "GIF"),
        "gif-flat": encode(palette, "GIF", interlace=0),
        "gif-animated": encode(
            palette, "GIF", save_all=True, append_images=[turned.quantize(64)], loop=0
        ),
        "bmp": encode(rgb, "BMP"),
        "bmp-palette": encode(palette, "BMP"),
        "tiff": encode(rgb, "TIFF"),
        "tiff-lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encode(rgb, "TIFF", compression="jpeg"),
        "tiff-grey16": encode(grey16, "TIFF"),
    }


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colours: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_rgb16(values: np.ndarray) -> bytes:
    """(H, W, 3) uint16 → PNG, which Pillow reads and cannot write."""
    height, width, _ = values.shape
    lines = values.astype(">u2").reshape(height, -1)
    return png(width, height, 16, 2, b"".join(b"\0" + line.tobytes() for line in lines))


def bombs(side: int = 20_000) -> dict[str, bytes]:
    """A few hundred bytes that say they are side × side pixels; WebPs 12,000, under the limit that
    Pillow itself has and over ours."""
    two, four = side.to_bytes(2, "little"), side.to_bytes(4, "little")
    big_endian = side.to_bytes(2, "big")
    small = every_format()
    frame = small["jpeg"].index(b"\xff\xc0")
    # VP8L packs width - 1 and height - 1 in 14 bits each, VP8X in 24 bits each
    vp8l = bytes([0x2F]) + (12_000 - 1 | (12_000 - 1) << 14).to_bytes(4, "little")
    vp8x = bytes(4) + (12_000 - 1).to_bytes(3, "little") * 2
    vp8 = small["webp"][20:26] + (12_000).to_bytes(2, "little") * 2 + small["webp"][30:]
    return {
        "png": png(side, side, 8, 2, bytes(100_000)),
        "jpeg": small["jpeg"][: frame + 5] + big_endian * 2 + small["jpeg"][frame + 9 :],
        "gif": small["gif"][:6] + two * 2 + small["gif"][10:],
        "bmp": small["bmp"][:18] + four * 2 + small["bmp"][26:],
        "tiff": tiff_header(side, side),
        "webp": riff(b"VP8 ", vp8),
        "webp-lossless": riff(b"VP8L", vp8l + bytes(40)),
        "webp-extended": riff(b"VP8X", vp8x, small["webp"][12:]),
    }


def riff(kind: bytes, body: bytes, rest: bytes = b"") -> bytes:
    chunk = kind + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2) + rest
    return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk


def tiff_header(width: int, height: int) -> bytes:
    """Uncompressed 8-bit grey in one strip, which the file does not have."""
    # width, height, bits, compression, photometric, strip offset, samples, rows, strip bytes
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1)]
    tags += [(278, height), (279, width * height)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(400)


def tar(members: list[tuple[str, bytes]]) -> bytes:
    """A tar with these members in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
