"""A picture of a finished run: what was asked for, what was selected, what was left.

    python examples/contact_sheet.py RUN SHEET.png [--columns 16] [--image-px 48]

Rows: images of the target set; the coreset from its first pick to its last; a random sample of the
open set.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from curate import storage

CAPTION_PX = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--image-px", type=int, default=48)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    target, opened = (shards(options.run / "embeddings" / name) for name in ("target", "open"))
    coreset = pq.read_table(options.run / "coreset.parquet")
    spread = np.linspace(0, len(coreset) - 1, 3 * options.columns).astype(int)
    blocks = [
        (f"target set: {len(target):,} images", sample(target, 2 * options.columns, rng)),
        (f"coreset: {len(coreset):,} images, first to last round", coreset.take(spread)),
        (
            f"open set: {len(opened):,} images, a random sample",
            sample(opened, 3 * options.columns, rng),
        ),
    ]
    draw(blocks, options.columns, options.image_px).save(options.sheet)


def shards(folder: Path) -> pa.Table:
    tables = [pa.ipc.open_file(str(path)).read_all() for path in sorted(folder.glob("*.arrow"))]
    plain = [table.drop_columns(["embedding"]).replace_schema_metadata() for table in tables]
    return pa.concat_tables(plain)


def sample(table: pa.Table, n: int, rng: np.random.Generator) -> pa.Table:
    return table.take(np.sort(rng.choice(len(table), min(n, len(table)), replace=False)))


def open_image(row: dict) -> Image.Image:
    """From a tar by offset and size, from Parquet by row, or a file of its own."""
    if row["offset"] is not None:
        data = storage.read_range(row["uri"], row["offset"], row["size"])
    elif row["row"] is not None:
        data = pq.read_table(row["uri"], columns=["image"])["image"][row["row"]].as_py()
    else:
        data = storage.read_bytes(row["uri"])
    return Image.open(io.BytesIO(data)).convert("RGB")


def draw(blocks: list[tuple[str, pa.Table]], columns: int, px: int) -> Image.Image:
    rows = [-(-len(table) // columns) for _, table in blocks]
    step = px + 2
    height = sum(CAPTION_PX + n * step + 6 for n in rows)
    sheet = Image.new("RGB", (columns * step + 2, height), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (caption, table), n in zip(blocks, rows, strict=True):
        pen.text((3, top + 3), caption, fill="black")
        for i, row in enumerate(table.to_pylist()):
            image = open_image(row).resize((px, px), Image.Resampling.BICUBIC)
            place = (2 + i % columns * step, top + CAPTION_PX + i // columns * step)
            sheet.paste(image, place)
        top += CAPTION_PX + n * step + 6
    return sheet


if __name__ == "__main__":
    main()
