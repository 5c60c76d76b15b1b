"""kNN: what the features of centre crops know of the classes, with nothing trained on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
from numpy.typing import NDArray

from curate.cluster import results
from curate.errors import CurateError
from curate.evaluate.accuracy import Accuracy, accuracy
from curate.evaluate.bench import Labels
from curate.evaluate.neighbours import knn_predict
from curate.evaluate.subject import Result, Subject, accuracies, on_cpu


def check(subject: Subject) -> None:
    """Raises CurateError for labels that do not fit, and more neighbours than images."""
    images, most = subject.labels.train_images, max(subject.evaluation.k)
    if most > images:
        raise CurateError(f"evaluate.k: k={most} neighbours of {images} images; lower k")


def run(subject: Subject) -> Iterator[Result]:
    features, labels = subject.features, ray.put(subject.labels)
    tasks = [
        on_cpu(knn_accuracy, features.train, features.test, labels, k) for k in subject.evaluation.k
    ]
    for k, found in zip(subject.evaluation.k, results(tasks), strict=True):
        yield from accuracies(f"kNN, k = {k}", [found], subject.labels.test_images, {"k": k})


def knn_accuracy(
    train: NDArray[np.float32], test: NDArray[np.float32], labels: Labels, k: int
) -> Accuracy:
    """train (N, D), test (M, D), unit rows of all images; those without a label are left out."""
    known, asked = labels.train >= 0, labels.test >= 0
    predicted = knn_predict(train[known], labels.train[known], test[asked], len(labels.classes), k)
    return accuracy(predicted, labels.test[asked])
