"""Linear probe on features that are computed once: logistic regression by L-BFGS, its
regularisation chosen on a part of the training images.

Features are standardised first, so that one grid serves every encoder.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from curate.evaluate.accuracy import Accuracy, accuracy

C_GRID = tuple(float(10**power) for power in np.arange(-5, 2.5, 0.5))  # inverse regularisation
FOLDS = 5  # one of which is held out to choose by
ITERATIONS = 1000


def linear_probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    test_labels: NDArray[np.int64],
    seed: int,
) -> tuple[Accuracy, float]:
    """train (N, D), test (M, D) → accuracy on test, and the C that was chosen.

    Rows whose label is -1, none, are left out. The seed draws the part that is held out. Raises
    ValueError for a single class, and for one with a single image.
    """
    known, asked = train_labels >= 0, test_labels >= 0
    train, train_labels = train[known], train_labels[known]
    test, test_labels = test[asked], test_labels[asked]
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError("a probe needs two classes at least")
    if counts.min() < 2:
        raise ValueError(
            f"class {classes[counts.argmin()]} has one image to train on; two at least"
        )
    folds = StratifiedKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=seed)
    fitted, held_out = next(iter(folds.split(train, train_labels)))
    scores = [
        _predict(train[fitted], train_labels[fitted], train[held_out], c) == train_labels[held_out]
        for c in C_GRID
    ]
    best = C_GRID[int(np.argmax([score.mean() for score in scores]))]  # of equals the strictest
    return accuracy(_predict(train, train_labels, test, best), test_labels), best


def _predict(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], c: float
) -> NDArray[np.int64]:
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=c, max_iter=ITERATIONS).fit(scaler.transform(train), labels)
    predicted: NDArray[np.int64] = model.predict(scaler.transform(test))
    return predicted
