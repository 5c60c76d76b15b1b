"""Training set → batches of random crops, the same for any number of workers and after any restart.

What an image's views are depends on (seed, epoch, image) alone, and which images a batch has on
(seed, epoch, step).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    # (N, views, `cut.COLUMNS`): of whole images, which are `pixels` then, once for all views
    boxes: Tensor | None = None

    def pin_memory(self) -> Crops:
        """What DataLoader asks for, so that copies to a GPU need not wait."""
        return Crops(
            [x.pin_memory() for x in self.pixels],
            self.parameters,
            self.ids.pin_memory(),
            self.labels.pin_memory(),
            self.noise.pin_memory(),
            self.unreadable,
            self.boxes,
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
            None if crops.boxes is None else crops.boxes[own],
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
        kind, channels = dtype_of(self.limits.bits), self.limits.channels
        sides = [shape.px for shape in self.views]
        pixels = [np.empty((len(wanted), px, px, channels), kind) for px in sides]
        told = Told(self, len(wanted))
        for row, crops in self.each(wanted, told):
            for view, cut in zip(pixels, crops, strict=True):
                view[row] = cut
        return told.with_pixels(pixels)

    def each(self, wanted: list[tuple[int, int]], told: Told) -> Iterator[tuple[int, Any]]:
        """Its row, and what is taken of an image; the rest of what is drawn is told."""
        for row, (epoch, place) in enumerate(wanted):
            rng = np.random.default_rng([self.seed, VIEWS, epoch, place])
            told.ids[row], taken = self._readable(place, rng, told.unreadable)
            for view, shape in enumerate(self.views):
                told.parameters[view].append(draw_parameters(rng, shape.view))
            told.noise[row] = rng.random(self.noise, np.float32)
            yield row, taken

    def _readable(
        self, place: int, rng: np.random.Generator, unreadable: list[int]
    ) -> tuple[int, Any]:
        """What is taken of an image, or of the next one that can be read, with its place."""
        for further in range(min(SUBSTITUTES, len(self.images))):
            substitute = (place + further) % len(self.images)
            try:
                return substitute, self.take(substitute, rng)
            except Refused:
                if further == 0:
                    unreadable.append(place)
        raise CurateError(
            f"{self.images.folder}: image {place} and all the next ones tried in its place "
            "cannot be decoded"
        )

    def take(self, place: int, rng: np.random.Generator) -> Any:
        """An image's crops. Raises Refused."""
        pixels, boxes = self.whole(place, rng)
        return [crop(pixels, box, shape) for box, shape in zip(boxes, self.views, strict=True)]

    def whole(self, place: int, rng: np.random.Generator) -> tuple[Pixels, list[Box]]:
        """An image no smaller than its crops want it, and where these are. Raises Refused."""
        kept = self.decoded.get(place) if self.decoded is not None else None
        if kept is not None:
            return kept, self._boxes(rng, (kept.shape[1], kept.shape[0]))
        image = EncodedImage(self.images.image(place), self.limits)
        boxes = self._boxes(rng, image.size)
        if self.decoded is not None:
            pixels = image.pixels()
            self.decoded.put(place, pixels)
            return pixels, boxes
        # The crops say how small it may be decoded
        wanted_px = least_px(boxes, [shape.px for shape in self.views], min(image.size))
        pixels = image.pixels(wanted_px)
        size = (pixels.shape[1], pixels.shape[0])
        return pixels, [scaled(box, image.size, size) for box in boxes]

    def _boxes(self, rng: np.random.Generator, size: tuple[int, int]) -> list[Box]:
        return [draw_box(rng, shape.view, *size) for shape in self.views]


class Told:
    """What a batch has beside its pixels, while it is made."""

    def __init__(self, dataset: CropDataset, images: int) -> None:
        self.dataset = dataset
        self.ids = np.empty(images, np.int64)
        self.noise = np.empty((images, dataset.noise), np.float32)
        self.parameters: list[list[NDArray[np.float32]]] = [[] for _ in dataset.views]
        self.unreadable: list[int] = []

    def with_pixels(self, pixels: list[Pixels], boxes: NDArray[np.int64] | None = None) -> Crops:
        return Crops(
            [tensor_of(x) for x in pixels],
            [torch.from_numpy(np.stack(x)) for x in self.parameters],
            torch.from_numpy(self.ids),
            torch.from_numpy(self.dataset.images.labels[self.ids]),
            torch.from_numpy(self.noise),
            self.unreadable,
            None if boxes is None else torch.from_numpy(boxes),
        )


def batch_bytes(shapes: list[Shape], images: int, limits: ImageSettings) -> int:
    """Of so many images' views, as they pass from a process that decodes."""
    pixels = sum(shape.px**2 * shape.view.count for shape in shapes)
    return images * pixels * limits.pixel_bytes


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
