"""Training set → batches of random crops, the same for any number of workers and after any restart.

What an image's views are depends on (seed, epoch, image) alone, and which images a batch has on
(seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curate.dataset.training_set import TrainingSet
from curate.dataset.views import (
    Shape,
    crop,
    draw_box,
    draw_parameters,
    least_px,
    scaled,
)
from curate.errors import CurateError
from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings

VIEWS = 1  # a stream of random numbers; 0 is that of the order
SUBSTITUTES = 100  # images tried in place of one that cannot be read


@dataclass(frozen=True)
class Crops:
    """One rank's part of a batch as it leaves the CPU."""

    pixels: list[Tensor]  # one a view: (N, px, px, 3) uint8
    parameters: list[Tensor]  # one a view: (N, PARAMETERS)
    ids: Tensor  # (N,) places in the training set, of what took an unreadable image's place too
    labels: Tensor  # (N,)
    noise: Tensor  # (N, L)
    unreadable: list[int]  # places

    def pin_memory(self) -> Crops:
        """What DataLoader asks for, so that copies to a GPU need not wait."""
        return Crops(
            [x.pin_memory() for x in self.pixels],
            self.parameters,
            self.ids.pin_memory(),
            self.labels.pin_memory(),
            self.noise.pin_memory(),
            self.unreadable,
        )


class CropDataset(Dataset[Crops]):
    """Decodes and crops; a batch at a time."""

    def __init__(
        self,
        images: TrainingSet,
        shapes: list[Shape],
        limits: ImageSettings,
        seed: int,
        noise: int,
    ) -> None:
        self.images, self.shapes, self.limits = images, shapes, limits
        self.seed, self.noise = seed, noise
        # One entry a view: a shape may stand for several
        self.views = [shape for shape in shapes for _ in range(shape.view.count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Crops:
        n = len(wanted)
        pixels = [np.empty((n, shape.px, shape.px, 3), np.uint8) for shape in self.views]
        parameters: list[list[NDArray[np.float32]]] = [[] for _ in self.views]
        noise = np.empty((n, self.noise), np.float32)
        ids = np.empty(n, np.int64)
        unreadable: list[int] = []
        for row, (epoch, place) in enumerate(wanted):
            rng = np.random.default_rng([self.seed, VIEWS, epoch, place])
            ids[row], crops = self._readable(place, rng, unreadable)
            for view, (shape, cut) in enumerate(zip(self.views, crops, strict=True)):
                pixels[view][row] = cut
                parameters[view].append(draw_parameters(rng, shape.view))
            noise[row] = rng.random(self.noise, np.float32)
        return Crops(
            [torch.from_numpy(x) for x in pixels],
            [torch.from_numpy(np.stack(x)) for x in parameters],
            torch.from_numpy(ids),
            torch.from_numpy(self.images.labels[ids]),
            torch.from_numpy(noise),
            unreadable,
        )

    def _readable(
        self, place: int, rng: np.random.Generator, unreadable: list[int]
    ) -> tuple[int, list[NDArray[np.uint8]]]:
        """An image's crops, or those of the next one that can be read, with its place."""
        for further in range(min(SUBSTITUTES, len(self.images))):
            substitute = (place + further) % len(self.images)
            try:
                return substitute, self._crops(self.images.image(substitute), rng)
            except Refused:
                if further == 0:
                    unreadable.append(place)
        raise CurateError(
            f"{self.images.folder}: image {place} and all the next ones tried in its place "
            "cannot be decoded"
        )

    def _crops(self, data: bytes, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
        image = EncodedImage(data, self.limits)
        boxes = [draw_box(rng, shape.view, *image.size) for shape in self.views]
        # The crops say how small it may be decoded
        wanted_px = least_px(boxes, [shape.px for shape in self.views], min(image.size))
        rgb = image.decode(wanted_px)
        return [
            crop(rgb, scaled(box, image.size, rgb.size), shape)
            for box, shape in zip(boxes, self.views, strict=True)
        ]


def loader(
    dataset: CropDataset, places: Iterator[list[tuple[int, int]]], workers: int, pinned: bool
) -> DataLoader[Crops]:
    """workers: processes that decode ahead; 0 decodes in this one, between steps."""
    return DataLoader(
        dataset,
        batch_sampler=places,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
    )


def _as_it_is(crops: Crops) -> Crops:
    return crops
