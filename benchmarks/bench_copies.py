"""A crawl full of copies: what `coreset.dedup` finds of them, and what it takes for one.

    python benchmarks/bench_copies.py --images FOLDER --encoder ENCODER [--originals 3000]

FOLDER is any tree of images. So many of them are the originals, half of which the target set could
be like; three tenths of the open set are copies of them: byte for byte, encoded again at JPEG
quality 60, resized to 70 % and back up, or cropped by 2 %, a quarter each. An encoder trained here
embeds all. For each bound on the cosine: how many of the copies are near their original (recall),
by how they were made, and how many of the pairs that are near are of one original (precision). Then
the share of copies in a coreset of a tenth, by SimCore with no dedup, exact and near.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from curate import cluster
from curate.coreset import stage
from curate.pipeline import run
from curate.runfiles import columns
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Run
from curate.settings import load as config

BOUNDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
COPIES = 0.3  # of the open set
WAYS = ("bytes", "encoded", "resized", "cropped")
TARGET = 100


def copy_of(data: bytes, way: str) -> bytes:
    if way == "bytes":
        return data
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    if way == "resized":
        small = (max(1, round(0.7 * width)), max(1, round(0.7 * height)))
        image = image.resize(small, Image.Resampling.BICUBIC)
    if way == "cropped":
        left, top = max(1, round(0.01 * width)), max(1, round(0.01 * height))
        image = image.crop((left, top, width - left, height - top))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60 if way == "encoded" else 92)
    return buffer.getvalue()


def make(images: Path, folder: Path, originals: int) -> None:
    """folder/target and folder/open, of names NUMBER-WAY.jpg."""
    rng = np.random.default_rng(0)
    paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[i] for i in rng.permutation(len(paths))[: originals + TARGET]]
    for name in ("target", "open"):
        (folder / name).mkdir()
    for path in chosen[:TARGET]:
        (folder / "target" / path.name).write_bytes(path.read_bytes())
    chosen = chosen[TARGET:]
    for number, path in enumerate(chosen):
        (folder / "open" / f"{number:06d}-original.jpg").write_bytes(path.read_bytes())
    copies = round(COPIES / (1 - COPIES) * len(chosen))
    for i, number in enumerate(rng.integers(0, len(chosen), copies).tolist()):
        way = WAYS[i % len(WAYS)]
        name = f"{number:06d}-{way}-{i:06d}.jpg"
        (folder / "open" / name).write_bytes(copy_of(chosen[number].read_bytes(), way))


def bounds(rows: NDArray[np.float64], keys: list[str]) -> None:
    number = np.array([int(key.split("-")[0]) for key in keys])
    way = np.array([key.split("-")[1].removesuffix(".jpg") for key in keys])
    original = {n: i for i, (n, w) in enumerate(zip(number, way, strict=True)) if w == "original"}
    copies = np.flatnonzero(way != "original")
    own = (rows[copies] * rows[[original[n] for n in number[copies]]]).sum(1)
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -1)
    same = number[:, None] == number[None]
    print(f"{'bound':<8}{'recall':>8}" + "".join(f"{w:>10}" for w in WAYS) + f"{'precision':>12}")
    for bound in BOUNDS:
        near = cosine >= bound
        precision = same[near].mean() if near.any() else float("nan")
        by_way = "".join(f"{np.mean(own[way[copies] == w] >= bound):>10.1%}" for w in WAYS)
        print(f"{bound:<8}{np.mean(own >= bound):>8.1%}{by_way}{precision:>12.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--encoder", required=True, help="a folder with encoder.safetensors")
    parser.add_argument("--originals", type=int, default=3000)
    options = parser.parse_args()
    card = json.loads((Path(options.encoder) / "encoder.json").read_text())
    cluster.connect()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(options.images, folder, options.originals)
        encoder = {"backbone": card["backbone"], "image_px": card["image_px"]}
        encoder |= {"checkpoint": options.encoder, "crop_fraction": 1.0}
        document = {
            "target": {"kind": "image_folder", "path": str(folder / "target")},
            "open": [{"name": "crawl", "kind": "image_folder", "path": str(folder / "open")}],
            "encoder": encoder,
            "coreset": {"clusters": 20, "tau": None, "budget": 0.1},
            "output": str(folder / "run"),
        }
        settings = config.parse(document, "benchmark")
        run(settings)
        found = Run.open(settings.output).embedded()
        blocks = [block for shard in found.open for block in read_embeddings(shard)]
        rows = np.concatenate(blocks).astype(np.float64)
        keys = [k for s in found.open for k in columns.read(s.uri, ["key"])["key"].to_pylist()]
        print(f"{len(keys):,} images, {sum('original' not in k for k in keys):,} of them copies")
        bounds(rows, keys)
        for dedup in ("none", "exact", "near"):
            coreset = settings.coreset.model_copy(update={"dedup": dedup})
            chosen = stage.choose(coreset, found, stage.guide_of(found, coreset))
            uri = str(folder / f"{dedup}.parquet")
            stage.write_manifest(uri, coreset, found, chosen)
            numbers = [k.split("-")[0] for k in pq.read_table(uri)["key"].to_pylist()]
            again = len(numbers) - len(set(numbers))
            print(f"dedup {dedup:<6} {again / len(numbers):.1%} of the coreset are copies")


if __name__ == "__main__":
    main()
