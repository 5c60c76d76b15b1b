"""What the protocols on images have in common: an encoder, two labelled sets, and how their labels
are matched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from curate.dataset.training_set import TrainingSet
from curate.errors import CurateError
from curate.settings import EncoderSettings, ImageSettings


@dataclass(frozen=True)
class Bench:
    """What a task is handed: nothing that is large."""

    encoder: EncoderSettings
    limits: ImageSettings
    train: str  # folders of training sets
    test: str
    decoders: int = 0  # processes or threads that decode ahead; 0 decodes between steps

    def open_sets(self) -> tuple[TrainingSet, TrainingSet]:
        return open_sets(self.train, self.test)


def open_sets(train: str, test: str) -> tuple[TrainingSet, TrainingSet]:
    """Of their folders, which may be remote."""
    return TrainingSet(train), TrainingSet(test)


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    return matched_labels(*open_sets(train, test), "evaluate")


def matched_labels(train: TrainingSet, test: TrainingSet, section: str) -> Labels:
    """section: of the settings that name the sets, as errors name it.

    Raises CurateError for a set without labels, one class only, and a class of test alone.
    """
    for name, images in (("train", train), ("test", test)):
        if not images.classes:
            raise CurateError(
                f"{section}.{name}: no image has a label; name a source whose images have one"
            )
    missing = sorted(set(test.classes) - set(train.classes))
    if missing:
        raise CurateError(f"{section}.test: class {missing[0]} is not in {section}.train")
    if len(train.classes) < 2:
        raise CurateError(f"{section}.train: one class only, {train.classes[0]}; two at least")
    # One more at the end, which -1 finds
    numbers = np.array([*(train.classes.index(name) for name in test.classes), -1])
    return Labels(train.labels, numbers[test.labels], train.classes)
