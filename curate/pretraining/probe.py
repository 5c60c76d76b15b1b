"""kNN accuracy on a labelled set, measured while an encoder is trained on something else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from curate.dataset.training_set import TrainingSet
from curate.evaluate.bench import Labels, matched_labels, open_sets
from curate.evaluate.features import features_of
from curate.evaluate.neighbours import knn_predict
from curate.images import Preprocessing
from curate.pretraining.board import Record
from curate.settings import ImageSettings

Measured = tuple[Record, nn.Module, float]  # of which record, which encoder, and its accuracy


class Measuring:
    """Measures encoders in the background, one at a time: training goes on meanwhile."""

    def __init__(self, measure: Callable[[nn.Module], float]) -> None:
        self.measure = measure
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="probe")
        self.pending: list[tuple[Record, nn.Module, Future[float]]] = []

    def begin(self, record: Record, module: nn.Module) -> None:
        """The encoder as it is now; the record is what it will be noted in."""
        still = copy.deepcopy(module)
        self.pending.append((record, still, self.pool.submit(self.measure, still)))

    def done(self, wait: bool = False) -> list[Measured]:
        """Those that are finished, in their order; wait: all that were begun. Raises what one
        failed by."""
        found: list[Measured] = []
        while self.pending and (wait or self.pending[0][2].done()):
            record, module, accuracy = self.pending.pop(0)
            found.append((record, module, accuracy.result()))
        return found


@dataclass(frozen=True)
class Probe:
    train: str  # folders of labelled sets
    test: str
    every: int  # epochs
    k: int


def open_probe(probe: Probe) -> tuple[TrainingSet, TrainingSet, Labels]:
    """Its two sets. Raises CurateError where their labels do not fit."""
    train, test = open_sets(probe.train, probe.test)
    return train, test, matched_labels(train, test, "probe")


def knn_accuracy(
    probe: Probe,
    module: nn.Module,
    preprocessing: Preprocessing,
    limits: ImageSettings,
    device: torch.device,
    *,
    bf16: bool,
    decoders: int,
) -> float:
    """Share of the test images whose class the training images' votes give.

    decoders: threads that decode ahead of the module.
    """
    train, test, labels = open_probe(probe)
    known_rows, asked_rows = np.flatnonzero(labels.train >= 0), np.flatnonzero(labels.test >= 0)
    known, asked = (
        features_of(
            module, preprocessing, limits, images, rows, device, decoders=decoders, bf16=bf16
        )
        for images, rows in ((train, known_rows), (test, asked_rows))
    )
    k = min(probe.k, len(known))
    predicted = knn_predict(known, labels.train[known_rows], asked, len(labels.classes), k)
    return float((predicted == labels.test[asked_rows]).mean())
