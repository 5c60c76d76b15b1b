"""Damage by numbers: a seed → a file that was whole, spoilt as disks, networks and crooks do."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.imagery import encode, every_format, picture, png_chunk, tar

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]

# What stands in a header where somebody wants to see what happens
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
HEADER = 64  # bytes; formats say their sizes there or soon after, some at the end
LONGEST_BLOCK = 400
TABLE_ROWS = 12


def mutated(rng: random.Random, files: Sequence[bytes]) -> tuple[bytes, bytes]:
    """One of the files, and what one to three mutations make of it; most hit its header, where
    crashes are."""
    whole = rng.choice(files)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.choice(MUTATIONS)(rng, data, files)
    return whole, bytes(data)


def _place(rng: random.Random, data: bytearray) -> int:
    span = max(1, min(rng.choice([HEADER, 10 * HEADER, len(data)]), len(data)))
    place = rng.randrange(span)
    return place if rng.random() < 0.7 else max(0, len(data) - 1 - place)


def _block(rng: random.Random, data: bytearray) -> slice:
    start = _place(rng, data)
    return slice(start, start + rng.randint(1, LONGEST_BLOCK))


def flip_bits(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    for _ in range(rng.choice([1, 1, 4, 16])):
        if data:
            data[_place(rng, data)] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    block = _block(rng, data)
    filler = rng.choice([b"\0", b"\xff", rng.randbytes(1)])
    size = len(data[block])
    data[block] = rng.choice([filler * size, rng.randbytes(size)])


def cut(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def remove_block(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    del data[_block(rng, data)]


def repeat_block(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    block = _block(rng, data)
    data[block.start : block.start] = data[block] * rng.choice([1, 2, 50])


def insert_block(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    place = _place(rng, data)
    data[place:place] = rng.randbytes(rng.randint(1, LONGEST_BLOCK))


def set_extreme(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    width = rng.choice([1, 2, 3, 4, 8])
    place = _place(rng, data)
    value = rng.choice(EXTREMES) & (1 << 8 * width) - 1
    field = value.to_bytes(width, rng.choice(["little", "big"]))
    data[place : place + width] = field


def splice(rng: random.Random, data: bytearray, files: Sequence[bytes]) -> None:
    """The start of this file, the end of another."""
    other = rng.choice(files)
    del data[rng.randrange(len(data) + 1) :]
    data += other[rng.randrange(len(other) + 1) :]


MUTATIONS: list[Mutation] = [
    flip_bits,
    overwrite,
    cut,
    remove_block,
    repeat_block,
    insert_block,
    set_extreme,
    splice,
]


@cache
def images() -> list[bytes]:
    """Whole images of every format that is read, and of every kind of each."""
    rgb = picture()
    grey = np.asarray(rgb.convert("L"))
    pages = {"save_all": True, "append_images": [rgb.rotate(90, expand=True)]}
    alpha = rgb.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    others = [
        encode(rgb.convert("L"), "JPEG", progressive=True),
        encode(rgb.convert("CMYK"), "JPEG", progressive=True),
        encode(Image.fromarray(grey.astype(np.float32)), "TIFF"),
        encode(rgb, "TIFF", **pages),
        tiled_tiff(np.asarray(rgb), deflated=False),
        tiled_tiff(np.asarray(rgb), deflated=True),
        encode(rgb.convert("CMYK"), "TIFF"),
        encode(rgb.convert("1"), "TIFF", compression="group4"),
        encode(rgb.convert("1"), "TIFF", compression="group3"),
        encode(rgb, "TIFF", compression="packbits"),
        encode(alpha, "TIFF", compression="tiff_deflate"),
        encode(alpha, "WEBP", lossless=True, save_all=True, append_images=[alpha.rotate(180)]),
        interlaced_png(np.asarray(rgb)),
        encode(alpha, "GIF", save_all=True, append_images=[alpha.rotate(180)]),
        encode(rgb.convert("1"), "BMP"),
        encode(alpha, "BMP"),
    ]
    return [*every_format().values(), *others]


@cache
def tars() -> list[bytes]:
    """Archives with labels, links, folders, long names and names that are not UTF-8."""
    pictures = [(f"{i:04d}.png", encode(picture(16, 16, i), "PNG")) for i in range(6)]
    labels = [(f"{i:04d}.cls", b"%d" % i) for i in range(6)]
    long_names = [(f"{'deep/' * 30}{name}", data) for name, data in pictures]
    latin = [(f"caf\udce9/{name}", data) for name, data in pictures]
    return [
        tar([*pictures, *labels]),
        tar([*long_names, *latin]),
        _tar_of_links(dict(pictures), tarfile.GNU_FORMAT),
        _tar_of_links(dict(long_names), tarfile.PAX_FORMAT),
    ]


def _tar_of_links(pictures: dict[str, bytes], format_: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as archive:
        for kind, links in ((tarfile.LNKTYPE, "hard"), (tarfile.SYMTYPE, "symbolic")):
            for name, data in pictures.items():
                member = tarfile.TarInfo(f"{links}/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                link = tarfile.TarInfo(f"{links}-{name.replace('/', '-')}")
                link.type, link.linkname = kind, f"{links}/{name}"
                archive.addfile(link)
    return file.getvalue()


@cache
def tables() -> list[bytes]:
    """Parquet in several row groups, compressed and not; images as bytes and as structs."""
    pictures = [encode(picture(16, 16, i), "PNG") for i in range(TABLE_ROWS)]
    structs = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    columns = {"label": [f"class{i % 3}" for i in range(TABLE_ROWS)]}
    files = []
    for images_, options in (
        (pictures, {"compression": "none", "use_dictionary": False}),
        (pictures, {"compression": "snappy", "data_page_version": "2.0"}),
        (pictures, {"compression": "zstd", "write_page_checksum": True, "write_page_index": True}),
        (structs, {"compression": "gzip"}),
        (structs, {"compression": "lz4", "data_page_size": 500}),
        (structs, {"compression": "brotli", "version": "1.0", "column_encoding": "PLAIN"}),
    ):
        file = io.BytesIO()
        if "column_encoding" in options:
            options["use_dictionary"] = False
        table = pa.table({"image": images_, **columns})
        pq.write_table(table, file, row_group_size=5, **options)  # type: ignore[arg-type]
        files.append(file.getvalue())
    return files


@cache
def lists() -> list[bytes]:
    """Lists of paths to files that are not there; as CSV with labels and quotes."""
    lines = [f"some folder/{i}.png" for i in range(12)]
    quoted = [f'"{line}","class\n{i % 3}"' for i, line in enumerate(lines)]
    return ["\n".join(lines).encode(), "\r\n".join(["url,label", *quoted]).encode()]


def interlaced_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 → PNG in Adam7's seven passes, which Pillow reads and cannot write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    # (first row, first column, rows apart, columns apart) of each pass: PNG specification, 8.2
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    lines = (line for y, x, down, right in passes for line in pixels[y::down, x::right])
    rows = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def tiled_tiff(pixels: np.ndarray, deflated: bool, side: int = 16) -> bytes:
    """(H, W, 3) uint8, sides in multiples of `side` → TIFF in tiles, which Pillow cannot write."""
    height, width, _ = pixels.shape
    corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
    tiles = [pixels[y : y + side, x : x + side].tobytes() for y, x in corners]
    if deflated:
        tiles = [zlib.compress(tile) for tile in tiles]
    sizes = [len(tile) for tile in tiles]
    starts = [8 + sum(sizes[:i]) for i in range(len(sizes))]
    after = 8 + sum(sizes)
    lists = struct.pack(f"<3H{2 * len(tiles)}I", 8, 8, 8, *starts, *sizes)
    longs = after + 6
    # width, height, bits, compression, photometric, samples, tile width, height, offsets, sizes
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, after)]
    tags += [(259, 4, 1, 8 if deflated else 1), (262, 4, 1, 2), (277, 4, 1, 3)]
    tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, len(tiles), longs)]
    tags += [(325, 4, len(tiles), longs + 4 * len(tiles))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    head = b"II*\0" + struct.pack("<I", after + len(lists))
    return head + b"".join(tiles) + lists + directory
