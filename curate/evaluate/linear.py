"""Linear probe: a linear head on features of centre crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray

from curate.cluster import results
from curate.errors import CurateError
from curate.evaluate.accuracy import Accuracy
from curate.evaluate.logistic import linear_probe
from curate.evaluate.subject import Result, Subject, Timed, accuracies, on_cpu


def check(subject: Subject) -> None:
    """Raises CurateError for labels that do not fit."""
    _ = subject.labels


def run(subject: Subject) -> Iterator[Result]:
    features, labels = subject.features, subject.labels
    train, test = ray.put(labels.train), ray.put(labels.test)
    runs: list[Timed[tuple[Accuracy, float]]] = results(
        [on_cpu(_probe, features.train, train, features.test, test, s) for s in subject.seeds]
    )
    found = [(accuracy, seconds) for (accuracy, _), seconds in runs]
    config = {"C": [c for (_, c), _ in runs]}
    yield from accuracies("linear probe", found, labels.test_images, config)


def _probe(*arguments: Any) -> tuple[Accuracy, float]:
    try:
        return linear_probe(*arguments)
    except ValueError as error:
        raise CurateError(f"evaluate.train: {error}") from error
