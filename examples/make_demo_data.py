"""Write the demo's images: real ones that scikit-learn ships, nothing downloaded.

    python examples/make_demo_data.py FOLDER

target/     ImageFolder  handwritten 3s, 5s and 8s, 100 of each
scans/      WebDataset   half of the other digits, with their labels
forms/      Parquet      the other half
photos/     ImageFolder  patches of two photographs, and four files that are no images
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

TARGET_DIGITS = (3, 5, 8)
TARGET_EACH = 100
PER_TAR, PER_PARQUET = 250, 250
PATCH_PX, STRIDE_PX = 32, 24


def main(folder: Path) -> None:
    digits = load_digits()  # 1,797 of 8 × 8 px, 17 shades of grey
    pixels = np.round(255 - digits.images * (255 / 16)).astype(np.uint8)  # ink on paper
    rng = np.random.default_rng(0)
    order = rng.permutation(len(pixels))
    target = np.concatenate([order[digits.target[order] == d][:TARGET_EACH] for d in TARGET_DIGITS])
    others = order[~np.isin(order, target)]

    for i in target:
        save(pixels[i], folder / "target" / str(digits.target[i]) / f"{i:04d}.png")
    write_tars(folder / "scans", pixels, digits.target, others[::2])
    write_parquet(folder / "forms", pixels, digits.target, others[1::2])
    write_photos(folder / "photos")


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tars(folder: Path, pixels: NDArray, labels: NDArray, which: NDArray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(which), PER_TAR)):
        with tarfile.open(folder / f"shard-{number:03d}.tar", "w") as tar:
            for i in which[start : start + PER_TAR]:
                for suffix, data in (("png", png(pixels[i])), ("cls", str(labels[i]).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_parquet(folder: Path, pixels: NDArray, labels: NDArray, which: NDArray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(which), PER_PARQUET)):
        rows = which[start : start + PER_PARQUET]
        table = {
            "path": [f"{i:04d}.png" for i in rows],
            "label": [str(labels[i]) for i in rows],
            "image": [png(pixels[i]) for i in rows],
        }
        pq.write_table(pa.table(table), folder / f"part-{number:03d}.parquet")


def write_photos(folder: Path) -> None:
    photographs = load_sample_images()
    for name, photograph in zip(photographs.filenames, photographs.images, strict=True):
        stem = Path(name).stem
        for top in range(0, photograph.shape[0] - PATCH_PX + 1, STRIDE_PX):
            for left in range(0, photograph.shape[1] - PATCH_PX + 1, STRIDE_PX):
                patch = photograph[top : top + PATCH_PX, left : left + PATCH_PX]
                save(patch, folder / stem / f"{top:03d}-{left:03d}.jpg")
    whole = (folder / "china" / "000-000.jpg").read_bytes()
    broken = folder / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "empty.jpg").write_bytes(b"")
    (broken / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (broken / "page.png").write_bytes(b"<html><body>404 Not Found</body></html>")
    (broken / "tiny.png").write_bytes(png(np.zeros((2, 2), np.uint8)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
