"""How often a classifier is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Accuracy:
    top1: float
    mean_per_class: float


def accuracy(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> Accuracy:
    """Share of right predictions, over all and as the mean over the classes in `labels`."""
    right = predicted == labels
    per_class = [right[labels == number].mean() for number in np.unique(labels)]
    return Accuracy(float(right.mean()), float(np.mean(per_class)))
