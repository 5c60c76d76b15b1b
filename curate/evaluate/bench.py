"""What the protocols on images have in common: an encoder, two labelled sets, and how their labels
are matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from curate.dataset.training_set import TrainingSet, on_this_machine
from curate.embedding import encoders
from curate.errors import CurateError
from curate.settings import (
    DetectionSettings,
    EncoderSettings,
    ImageSettings,
    SegmentationSettings,
)


@dataclass(frozen=True)
class Bench:
    """What a task is handed: nothing that is large."""

    encoder: EncoderSettings
    limits: ImageSettings
    train: str  # folders of training sets
    test: str
    decoders: int = 0  # processes that decode ahead; 0 decodes between steps

    def open_sets(self) -> tuple[TrainingSet, TrainingSet]:
        train, test = (TrainingSet(on_this_machine(folder)) for folder in (self.train, self.test))
        return train, test


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def with_encoder(
    function: Callable[..., dict[str, float]],
    bench: Bench,
    told: DetectionSettings | SegmentationSettings,
    seed: int,
) -> dict[str, float]:
    """A protocol that takes the encoder as it is built, and the device."""
    return function(encoders.build(bench.encoder), told, bench.limits, seed, device_here())


@dataclass(frozen=True)
class Labels:
    """Class numbers that mean the same in both sets, -1 of an image without a label."""

    train: NDArray[np.int64]  # (N,)
    test: NDArray[np.int64]  # (M,)
    classes: list[str]

    @property
    def train_images(self) -> int:
        return int((self.train >= 0).sum())

    @property
    def test_images(self) -> int:
        return int((self.test >= 0).sum())


def labels_of(train: str, test: str) -> Labels:
    """Of two sets' folders. Raises CurateError for labels that nothing can be learnt from."""
    return matched(*(TrainingSet(on_this_machine(folder)) for folder in (train, test)))


def matched(train: TrainingSet, test: TrainingSet) -> Labels:
    """Raises CurateError for a set without labels, one class only, and a class of test alone."""
    for name, images in (("train", train), ("test", test)):
        if not images.classes:
            raise CurateError(f"evaluate.{name}: no image has a label, which evaluation needs")
    missing = sorted(set(test.classes) - set(train.classes))
    if missing:
        raise CurateError(f"evaluate.test: class {missing[0]} is not in evaluate.train")
    if len(train.classes) < 2:
        raise CurateError(f"evaluate.train: one class only, {train.classes[0]}; two at least")
    # One more at the end, which -1 finds
    numbers = np.array([*(train.classes.index(name) for name in test.classes), -1])
    return Labels(train.labels, numbers[test.labels], train.classes)
