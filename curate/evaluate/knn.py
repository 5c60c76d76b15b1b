"""kNN: what the features of centre crops know of the classes, with nothing trained on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import ray
from numpy.typing import NDArray

from curate.cluster import results
from curate.errors import CurateError
from curate.evaluate.accuracy import accuracy
from curate.evaluate.bench import Labels
from curate.evaluate.features import parts_of
from curate.evaluate.neighbours import knn_predict_each
from curate.evaluate.subject import Result, Subject, Timed, accuracies, on_cpu


def check(subject: Subject) -> None:
    """Raises CurateError for labels that do not fit, and more neighbours than images."""
    images, most = subject.labels.train_images, max(subject.evaluation.k)
    if most > images:
        raise CurateError(f"evaluate.k: k={most} neighbours of {images} images; lower k")


def run(subject: Subject) -> Iterator[Result]:
    """By parts of the test set, as many as there are CPUs."""
    features, labels, ks = subject.features, subject.labels, subject.evaluation.k
    handed = ray.put(labels)
    parts = parts_of(len(labels.test), int(ray.cluster_resources().get("CPU", 1)))
    runs: list[Timed[NDArray[np.int64]]] = results(
        [on_cpu(predicted_of, features.train, features.test, handed, ks, part) for part in parts]
    )
    predicted = np.concatenate([rows for rows, _ in runs], axis=1)
    truth = labels.test[labels.test >= 0]
    seconds = sum(taken for _, taken in runs) / len(ks)
    for k, one in zip(ks, predicted, strict=True):
        found = [(accuracy(one, truth), seconds)]
        yield from accuracies(f"kNN, k = {k}", found, labels.test_images, {"k": k})


def predicted_of(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    labels: Labels,
    ks: list[int],
    part: tuple[int, int],
) -> NDArray[np.int64]:
    """train (N, D), test (M, D), unit rows of all images; those without a label are left out.
    → (K, m) of the test images from part[0] to part[1] - 1."""
    own = slice(*part)
    known, asked = labels.train >= 0, labels.test[own] >= 0
    return knn_predict_each(
        train[known], labels.train[known], test[own][asked], len(labels.classes), ks
    )
