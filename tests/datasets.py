"""Small real image sets in every format, with a few files that are no images."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.runfiles.run import Run


def picture(seed: int, side: int = 24, format_: str = "PNG") -> bytes:
    """Smooth noise in a colour of its own: no two seeds embed alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, format_)
    return file.getvalue()


def slow_picture() -> bytes:
    """A small file that takes seconds to decode, for its 16 bits a pixel."""
    file = io.BytesIO()
    Image.new("I;16", (9900, 9900)).save(file, "PNG")
    return file.getvalue()


def shards_of(output: str | Path, set_name: str) -> list[Path]:
    """A run's shards of one set, in plan order."""
    found = Run.open(str(output)).embedded()
    return [Path(shard.uri) for shard in (found.target if set_name == "target" else found.open)]


def write_folder(root: Path, seeds: range, classes: tuple[str, ...] = ("a", "b")) -> None:
    for seed in seeds:
        path = root / classes[seed % len(classes)] / "deeper" / f"{seed:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))


def write_tar(path: Path, seeds: range) -> None:
    """All images first, in descending order of their keys, then all labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        members = [(f"{seed:04d}.jpg", picture(seed, format_="JPEG")) for seed in reversed(seeds)]
        members += [(f"{seed:04d}.cls", f"class{seed % 3}".encode()) for seed in seeds]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, seeds: range, row_group_rows: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "path": [f"{seed:04d}.png" for seed in seeds],
            "label": [f"class{seed % 3}" for seed in seeds],
            "image": [picture(seed) for seed in seeds],
        }
    )
    pq.write_table(table, path, row_group_size=row_group_rows)


BROKEN = {
    "empty.png": b"",
    "cut.png": picture(1)[:200],
    "page.jpg": b"<html>404</html>",
    "tiny.png": picture(1, side=3),
}


def write_merged(root: Path) -> dict[str, Any]:
    """A target and four open sources under `root`; returns the document of a run's config.

    open images: folder 30 + 4 broken, tars 40, Parquet 36 of 40 (limit), list 10 + 1 missing.
    """
    write_folder(root / "target", range(1000, 1024))
    write_folder(root / "folder", range(30))
    for name, data in BROKEN.items():
        (root / "folder" / "a" / name).write_bytes(data)
    write_tar(root / "tars" / "one.tar", range(100, 120))
    write_tar(root / "tars" / "two.tar", range(120, 140))
    write_parquet(root / "tables" / "one.parquet", range(20))  # the same pictures as the folder's
    write_parquet(root / "tables" / "two.parquet", range(200, 220))
    write_folder(root / "listed", range(300, 310))
    lines = [f"listed/{'ab'[seed % 2]}/deeper/{seed:04d}.png" for seed in range(300, 310)]
    (root / "list.txt").write_text("\n".join([*lines, "listed/missing.png"]) + "\n")
    return {
        "target": {"kind": "image_folder", "path": str(root / "target")},
        "open": [
            {"name": "folder", "kind": "image_folder", "path": str(root / "folder")},
            {"name": "tars", "kind": "webdataset", "path": str(root / "tars/*.tar")},
            {
                "name": "tables",
                "kind": "parquet",
                "path": str(root / "tables/*.parquet"),
                "key_column": "path",
                "label_column": "label",
                "limit": 36,
            },
            {"name": "list", "kind": "url_list", "path": str(root / "list.txt")},
        ],
        "encoder": {"backbone": "resnet18", "image_px": 32, "crop_fraction": 1.0},
        "embed": {"unit_images": 16},
        "coreset": {"clusters": 5, "tau": None, "budget": 40},
        "output": str(root / "run"),
    }


def copy_run(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """The document of a copy under `root` of a finished run, over the same sources."""
    return {**document, "output": str(shutil.copytree(document["output"], root / "run"))}


SEEN = {"folder": 34, "tars": 40, "tables": 36, "list": 11}
REJECTED = {"folder": 4, "tars": 0, "tables": 0, "list": 1}
