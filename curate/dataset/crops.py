"""Training set → batches of random crops, the same for any number of workers and after any restart.

What an image's views are depends on (seed, epoch, image) alone, and which images a batch has on
(seed, epoch, step).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curate.dataset.decoded import Decoded
from curate.dataset.training_set import TrainingSet
from curate.dataset.views import (
    Box,
    Shape,
    crop,
    draw_box,
    draw_parameters,
    least_px,
    scaled,
)
from curate.embedding.tensors import tensor_of
from curate.errors import CurateError
from curate.images import EncodedImage, Pixels, Refused, dtype_of
from curate.settings import ImageSettings

VIEWS = 1  # a stream of random numbers; 0 is that of the order
AHEAD = 4  # batches that a process decodes ahead, where shared memory has room
SUBSTITUTES = 100  # images tried in place of one that cannot be read


@dataclass(frozen=True)
class Crops:
    """One rank's part of a batch as it leaves the CPU."""

    pixels: list[Tensor]  # one a view: (N, px, px, C), as `tensor_of` makes them
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


def parts_of(crops: Crops, parts: int) -> list[Crops]:
    """As many of equal size, in order; the unreadable ones are told of with none of them."""
    size = len(crops.ids) // parts
    rows = [slice(n * size, (n + 1) * size) for n in range(parts)]
    return [
        Crops(
            [view[own] for view in crops.pixels],
            [view[own] for view in crops.parameters],
            crops.ids[own],
            crops.labels[own],
            crops.noise[own],
            [],
        )
        for own in rows
    ]


class CropDataset(Dataset[Crops]):
    """Decodes and crops; a batch at a time."""

    def __init__(
        self,
        images: TrainingSet,
        shapes: list[Shape],
        limits: ImageSettings,
        seed: int,
        noise: int,
        decoded: Decoded | None = None,
    ) -> None:
        """decoded: keeps what is decoded; then of its full size, where it would else be decoded no
        larger than the crops need."""
        self.images, self.shapes, self.limits = images, shapes, limits
        self.seed, self.noise, self.decoded = seed, noise, decoded
        # One entry a view: a shape may stand for several
        self.views = [shape for shape in shapes for _ in range(shape.view.count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Crops:
        n = len(wanted)
        kind, channels = dtype_of(self.limits.bits), self.limits.channels
        pixels = [np.empty((n, shape.px, shape.px, channels), kind) for shape in self.views]
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
            [tensor_of(x) for x in pixels],
            [torch.from_numpy(np.stack(x)) for x in parameters],
            torch.from_numpy(ids),
            torch.from_numpy(self.images.labels[ids]),
            torch.from_numpy(noise),
            unreadable,
        )

    def _readable(
        self, place: int, rng: np.random.Generator, unreadable: list[int]
    ) -> tuple[int, list[Pixels]]:
        """An image's crops, or those of the next one that can be read, with its place."""
        for further in range(min(SUBSTITUTES, len(self.images))):
            substitute = (place + further) % len(self.images)
            try:
                return substitute, self._crops(substitute, rng)
            except Refused:
                if further == 0:
                    unreadable.append(place)
        raise CurateError(
            f"{self.images.folder}: image {place} and all the next ones tried in its place "
            "cannot be decoded"
        )

    def _crops(self, place: int, rng: np.random.Generator) -> list[Pixels]:
        if self.decoded is not None:
            return self._crops_of(self._pixels(place, self.decoded), rng)
        image = EncodedImage(self.images.image(place), self.limits)
        boxes = self._boxes(rng, image.size)
        # The crops say how small it may be decoded
        wanted_px = least_px(boxes, [shape.px for shape in self.views], min(image.size))
        pixels = image.pixels(wanted_px)
        size = (pixels.shape[1], pixels.shape[0])
        return [
            crop(pixels, scaled(box, image.size, size), shape)
            for box, shape in zip(boxes, self.views, strict=True)
        ]

    def _crops_of(self, pixels: Pixels, rng: np.random.Generator) -> list[Pixels]:
        boxes = self._boxes(rng, (pixels.shape[1], pixels.shape[0]))
        return [crop(pixels, box, shape) for box, shape in zip(boxes, self.views, strict=True)]

    def _boxes(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Box]:
        return [draw_box(rng, shape.view, *size) for shape in self.views]

    def _pixels(self, place: int, decoded: Decoded) -> Pixels:
        found = decoded.get(place)
        if found is None:
            image = EncodedImage(self.images.image(place), self.limits)
            found = image.pixels()
            decoded.put(place, found)
        return found


def batch_bytes(shapes: list[Shape], images: int, limits: ImageSettings) -> int:
    """Of so many images' views, as they pass from a process that decodes."""
    a_pixel = limits.channels * limits.bits // 8
    return images * a_pixel * sum(shape.px**2 * shape.view.count for shape in shapes)


def shared_memory() -> float:
    """Bytes of this machine's that batches may take: half of what is free."""
    try:
        return shutil.disk_usage("/dev/shm").free / 2
    except OSError:  # another system than Linux
        return float("inf")


def ahead_of(workers: int, size: int, room: float) -> tuple[int, int]:
    """So many processes, and batches ahead for each, that their batches of `size` bytes fit into
    `room` bytes of shared memory: a process that finds none left dies of a bus error."""
    fitting = max(1, int(min(room, 1e18) // max(1, size)))
    workers = min(workers, fitting)
    return workers, max(1, min(AHEAD, fitting // max(1, workers)))


def loader(
    dataset: CropDataset,
    places: Iterator[list[tuple[int, int]]],
    workers: int,
    pinned: bool,
    ahead: int = AHEAD,
) -> DataLoader[Crops]:
    """workers: processes that decode, each so many batches ahead; 0 decodes in this one, between
    steps."""
    return DataLoader(
        dataset,
        batch_sampler=places,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=ahead if workers else None,
    )


def _as_it_is(crops: Crops) -> Crops:
    return crops
