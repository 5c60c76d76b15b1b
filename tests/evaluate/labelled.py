"""Small labelled sets as training sets on disk, without Ray, and an encoder to look at them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.dataset.training_set import SCHEMA, Index
from curate.embedding import encoders
from curate.evaluate.bench import Bench
from curate.runfiles import shards
from curate.settings import EncoderSettings, ImageSettings
from tests.datasets import picture

CLASSES = ("blue", "green", "red")
PX = 32
UNREADABLE = b"not an image"


def tinted(seed: int, number: int) -> bytes:
    """A picture of smooth noise, with more of one colour."""
    pixels = np.asarray(Image.open(io.BytesIO(picture(seed, PX)))).astype(np.int64)
    pixels[..., number % 3] += 120
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def images_of(per_class: int, seed: int) -> list[tuple[str, str | None, bytes]]:
    """key, label, bytes; the classes in turn, so that no order helps."""
    return [
        (f"{name}/{i:03d}.png", name, tinted(seed + 100 * number + i, number))
        for i in range(per_class)
        for number, name in enumerate(CLASSES)
    ]


def write_set(folder: Path, images: list[tuple[str, str | None, bytes]]) -> str:
    rows = [
        {
            "source": "labelled",
            "key": key,
            "label": label,
            "sha256": hashlib.sha256(data).hexdigest(),
            "image": data,
        }
        for key, label, data in images
    ]
    half = len(rows) // 2  # two parts, so that places cross them
    parts = [("part-0.arrow", rows[:half]), ("part-1.arrow", rows[half:])]
    for name, part in parts:
        shards.write_arrow(str(folder / name), pa.Table.from_pylist(part, SCHEMA))
    counts = [(name, len(part)) for name, part in parts]
    Index({}, counts, len(rows), 0, 0, str(folder)).write(str(folder))
    return str(folder)


def encoder(folder: Path) -> EncoderSettings:
    """An untrained one, by its file."""
    settings = EncoderSettings(backbone="resnet18", image_px=PX, crop_fraction=1.0, seed=3)
    encoders.build(settings).save(str(folder / "encoder.safetensors"))
    return settings.model_copy(update={"checkpoint": str(folder)})


def bench(root: Path, per_class: int = 10, test_per_class: int = 8) -> Bench:
    return Bench(
        encoder(root / "encoder"),
        ImageSettings(),
        write_set(root / "train", images_of(per_class, 0)),
        write_set(root / "test", images_of(test_per_class, 5000)),
    )
