"""Semi-supervised fine-tuning: the whole encoder with a linear head, on a part of the labels.

Chen et al. 2020, arXiv:2002.05709, section 4.2; SimCore's table 7b. Each fraction takes as many
steps as the whole set would: a tenth of the steps would measure how far training came, not what the
encoder brought along.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from curate.cluster import results
from curate.evaluate.accuracy import Accuracy
from curate.evaluate.bench import Bench
from curate.evaluate.descent import cosine
from curate.evaluate.subject import Result, Subject, Timed, accuracies, on_gpu
from curate.evaluate.supervised import train_and_test
from curate.settings import FinetuneSettings


def check(subject: Subject) -> None:
    """Raises CurateError for labels that do not fit."""
    _ = subject.labels


def run(subject: Subject) -> Iterator[Result]:
    """Of each fraction."""
    settings, bench = subject.evaluation.finetune, subject.bench
    tasks = {
        fraction: [on_gpu(finetune, bench, settings, fraction, seed) for seed in subject.seeds]
        for fraction in settings.fractions
    }
    for fraction, waiting in tasks.items():
        runs: list[Timed[tuple[Accuracy, int]]] = results(waiting)
        found = [(accuracy, seconds) for (accuracy, _), seconds in runs]
        config = {
            **settings.model_dump(exclude={"fractions"}),
            "fraction": fraction,
            "images": runs[0][0][1],
        }
        what = f"fine-tuned on {100 * fraction:g} %"
        yield from accuracies(what, found, subject.labels.test_images, config)


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """labels (N,), -1 for none → sorted rows: round(fraction · n) of each class's n, one at least.

    Of one seed, a smaller fraction's rows are among a larger one's.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for number in np.unique(labels[labels >= 0]):
        rows = rng.permutation(np.flatnonzero(labels == number))
        drawn.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(drawn))


def finetune(
    bench: Bench, settings: FinetuneSettings, fraction: float, seed: int
) -> tuple[Accuracy, int]:
    """Accuracy on centre crops, and how many images were trained on. The seed decides which they
    are, their order and crops, and the head's first weights.

    Raises CurateError for an encoder that cannot be had, or labels that do not fit.
    """
    rates = {"encoder": settings.learning_rate, "head": settings.head_learning_rate}

    def drawn(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return stratified(labels, fraction, seed)

    return train_and_test(bench, settings, seed, drawn, rates, cosine, "evaluate.finetune")
