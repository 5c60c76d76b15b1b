"""kNN accuracy on a labelled set, measured while an encoder is trained on something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from curate.dataset.training_set import TrainingSet, on_this_machine
from curate.errors import CurateError
from curate.evaluate.features import features_of
from curate.evaluate.knn import knn_predict
from curate.images import Preprocessing
from curate.settings import ImageSettings


@dataclass(frozen=True)
class Probe:
    train: str  # folders of labelled sets
    test: str
    every: int  # epochs
    k: int


def open_probe(probe: Probe) -> tuple[TrainingSet, TrainingSet]:
    """Its two sets. Raises CurateError where their labels do not fit."""
    train, test = (TrainingSet(on_this_machine(folder)) for folder in (probe.train, probe.test))
    for name, images in (("train", train), ("test", test)):
        if not images.classes:
            raise CurateError(f"probe.{name}: no image has a label, which a probe needs")
    missing = sorted(set(test.classes) - set(train.classes))
    if missing:
        raise CurateError(f"probe.test: class {missing[0]} is not in probe.train")
    return train, test


def knn_accuracy(
    probe: Probe,
    module: nn.Module,
    eye: Preprocessing,
    limits: ImageSettings,
    device: torch.device,
    bf16: bool,
) -> float:
    """Share of the test images whose class the training images' votes give."""
    train, test = open_probe(probe)
    rows = [np.flatnonzero(images.labels >= 0) for images in (train, test)]
    number = np.array([train.classes.index(name) for name in test.classes])
    known, asked = (
        features_of(module, eye, limits, images, places, device, bf16)
        for images, places in zip((train, test), rows, strict=True)
    )
    k = min(probe.k, len(known))
    predicted = knn_predict(known, train.labels[rows[0]], asked, len(train.classes), k)
    return float((predicted == number[test.labels[rows[1]]]).mean())
