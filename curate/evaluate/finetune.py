"""Semi-supervised fine-tuning: the whole encoder with a linear head, on a part of the labels.

Chen et al. 2020, arXiv:2002.05709, section 4.2; SimCore's table 7b. Each fraction takes as many
steps as the whole set would: a tenth of the steps would measure how far training came, not what the
encoder brought along.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from curate.evaluate.bench import Bench
from curate.evaluate.linear import Accuracy
from curate.evaluate.supervised import train_and_test
from curate.settings import FinetuneSettings


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """labels (N,), -1 for none → sorted rows: round(fraction · n) of each class's n, one at least.

    Of one seed, a smaller fraction's rows are among a larger one's.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(labels[labels >= 0]):
        rows = rng.permutation(np.flatnonzero(labels == number))
        chosen.append(rows[: max(1, round(fraction * len(rows)))])
    return np.sort(np.concatenate(chosen))


def finetune(
    bench: Bench, told: FinetuneSettings, fraction: float, seed: int
) -> tuple[Accuracy, int]:
    """Accuracy on centre crops, and how many images were trained on. The seed decides which they
    are, their order and crops, and the head's first weights.

    Raises CurateError for an encoder that cannot be had, or labels that do not fit.
    """
    rates = {"encoder": told.learning_rate, "head": told.head_learning_rate}

    def drawn(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return stratified(labels, fraction, seed)

    return train_and_test(bench, told, seed, drawn, rates, rate, "evaluate.finetune")


def rate(progress: float) -> float:
    """A cosine to 0."""
    return (1 + math.cos(math.pi * progress)) / 2
