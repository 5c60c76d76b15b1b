"""Pictures of coloured rectangles with their boxes and masks, as COCO, VOC and PNGs have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curate.embedding.encoders import Encoder, build
from curate.settings import EncoderSettings

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
COCO_IDS = {"red": 7, "blue": 3}  # neither dense nor in the names' order
WIDTH, HEIGHT = 80, 64


@dataclass(frozen=True)
class Rectangle:
    name: str
    left: int
    top: int
    width: int
    height: int


def encoder(backbone: str = "resnet18", *, small_stem: bool = False, px: int = 64) -> Encoder:
    return build(
        EncoderSettings(backbone=backbone, pretrained=False, image_px=px, small_stem=small_stem)
    )


def draw(seed: int, shapes: int = 1) -> list[Rectangle]:
    """A rectangle, or none, of 20 to 36 px a side."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(shapes):
        width, height = rng.integers(20, 37, 2)
        left, top = rng.integers(WIDTH - width + 1), rng.integers(HEIGHT - height + 1)
        name = list(COLOURS)[rng.integers(2)]
        found.append(Rectangle(name, int(left), int(top), int(width), int(height)))
    return found


def picture(shapes: list[Rectangle], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) on grey noise, and its mask: 0, red 1, blue 2."""
    rng = np.random.default_rng([seed, 1])
    pixels = rng.integers(90, 150, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for one in shapes:
        place = np.s_[one.top : one.top + one.height, one.left : one.left + one.width]
        pixels[place] = COLOURS[one.name]
        mask[place] = list(COLOURS).index(one.name) + 1
    return pixels, mask


def write(folder: Path, images: int, seed: int, empty: int = 0) -> Path:
    """images/, boxes.json, voc/ and masks/; the last `empty` images show nothing."""
    for name in ("images", "voc", "masks"):
        (folder / name).mkdir(parents=True)
    scenes = {}
    for number in range(images):
        shapes = draw(seed + number, 0 if number >= images - empty else 1)
        pixels, mask = picture(shapes, seed + number)
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
        (folder / "voc" / f"{number:03}.xml").write_text(voc(f"{number:03}.png", shapes))
        scenes[f"{number:03}.png"] = shapes
    (folder / "boxes.json").write_text(json.dumps(coco(scenes)))
    return folder


def coco(scenes: dict[str, list[Rectangle]]) -> dict[str, list[dict[str, object]]]:
    boxes = [(image, one) for image, shapes in enumerate(scenes.values()) for one in shapes]
    return {
        "categories": [{"id": number, "name": name} for name, number in COCO_IDS.items()],
        "images": [
            {"id": image, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for image, name in enumerate(scenes)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": COCO_IDS[one.name],
                "bbox": [one.left, one.top, one.width, one.height],
                "iscrowd": 0,
            }
            for number, (image, one) in enumerate(boxes)
        ],
    }


def voc(name: str, shapes: list[Rectangle]) -> str:
    objects = "".join(
        f"<object><name>{one.name}</name><bndbox><xmin>{one.left + 1}</xmin>"
        f"<ymin>{one.top + 1}</ymin><xmax>{one.left + one.width}</xmax>"
        f"<ymax>{one.top + one.height}</ymax></bndbox></object>"
        for one in shapes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
