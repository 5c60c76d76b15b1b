"""Training set → batches of images and where their crops lie, for a device that cuts them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from curate.dataset.crops import CropDataset, Crops, Told
from curate.dataset.cut import COLUMNS
from curate.dataset.views import Box, Shape, resized, scaled
from curate.images import Pixels, dtype_of
from curate.settings import ImageSettings

# Of an image's sides, for a largest view of 1; what is over it is made smaller before it is sent
SHORTER, LONGER = 2, 4
STEP_PX = 64  # sides of batches are multiples of it, for memory that is used again


class WholeDataset(CropDataset):
    def __getitems__(self, wanted: list[tuple[int, int]]) -> Crops:
        told = Told(self, len(wanted))
        boxes = np.empty((len(wanted), len(self.views), COLUMNS), np.int64)
        images = []
        for row, (image, own) in self.each(wanted, told):
            # All lie wide, or a batch with a tall one would be as tall and wide as any is
            aside = image.shape[0] > image.shape[1]
            images.append(image.transpose(1, 0, 2) if aside else image)
            boxes[row] = [(*box, aside) for box in own]
        height, width = (
            -(-max(image.shape[side] for image in images) // STEP_PX) * STEP_PX for side in (0, 1)
        )
        kind, channels = dtype_of(self.limits.bits), self.limits.channels
        pixels = np.zeros((len(images), height, width, channels), kind)
        for image, place in zip(images, pixels, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        return told.with_pixels([pixels], boxes)

    def take(self, place: int, rng: np.random.Generator) -> Any:
        """(what an image's crops have of it, in a bounded size; where they lie in that). Raises
        Refused."""
        pixels, boxes = _without_margins(*self.whole(place, rng))
        size = pixels.shape[1], pixels.shape[0]
        most = max(shape.px for shape in self.views)
        share = min(1.0, SHORTER * most / min(size), LONGER * most / max(size))
        if share == 1:
            return pixels, boxes
        smaller = max(1, round(size[0] * share)), max(1, round(size[1] * share))
        return (
            resized(pixels, smaller, Image.Resampling.BICUBIC),
            [scaled(box, size, smaller) for box in boxes],
        )


def _without_margins(pixels: Pixels, boxes: list[Box]) -> tuple[Pixels, list[Box]]:
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right = max(box.left + box.width for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    moved = [box._replace(left=box.left - left, top=box.top - top) for box in boxes]
    return pixels[top:bottom, left:right], moved


def whole_bytes(shapes: list[Shape], images: int, limits: ImageSettings) -> int:
    """Of so many images at most, as they pass from a process that decodes."""
    largest = max(shape.px for shape in shapes)
    height, width = (-(-times * largest // STEP_PX) * STEP_PX for times in (SHORTER, LONGER))
    return images * height * width * limits.pixel_bytes
