"""Linear probe by SGD on random crops, each embedded anew in every epoch: the protocol of SimCore's
authors, whose figures it makes comparable.

Their train_sup.py (github.com/sungnyun/openssl-simcore): learning rate 10, a tenth of it after 60 %
and 80 % of the epochs, Nesterov momentum 0.9, no decay, features as they come, not normalised.
Three things differ without `preset: authors`. The encoder is in eval mode, so that it is frozen;
theirs goes by each batch's own BatchNorm statistics, and moves its averages. The last epoch counts;
theirs is the best one on the test set. And a batch has 512 images, theirs 256.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from curate.cluster import results
from curate.evaluate.accuracy import Accuracy
from curate.evaluate.bench import Bench
from curate.evaluate.subject import Result, Subject, accuracies, on_gpu
from curate.evaluate.supervised import train_and_test
from curate.settings import SgdSettings


def check(subject: Subject) -> None:
    """Raises CurateError for labels that do not fit."""
    _ = subject.labels


def run(subject: Subject) -> Iterator[Result]:
    settings = subject.evaluation.sgd
    found = results([on_gpu(sgd_probe, subject.bench, settings, seed) for seed in subject.seeds])
    images = subject.labels.test_images
    yield from accuracies(f"SGD probe{settings.whose}", found, images, settings.model_dump())


def sgd_probe(bench: Bench, settings: SgdSettings, seed: int) -> Accuracy:
    """Accuracy on centre crops. The seed decides order, crops and the head's first weights.

    Raises CurateError for an encoder that cannot be had, or labels that do not fit.
    """
    rates = {"head": settings.learning_rate}
    found, _ = train_and_test(
        bench,
        settings,
        seed,
        labelled,
        rates,
        rate,
        "evaluate.sgd",
        moving=settings.batch_norm == "moving",
        best=settings.epoch == "best",
    )
    return found


def labelled(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(labels >= 0)


def rate(progress: float) -> float:
    return 0.1 ** ((progress >= 0.6) + (progress >= 0.8))
