"""Weighted nearest-neighbour classification: how well an encoder's features know the classes as
they are, with nothing trained on them.

Wu et al. 2018, arXiv:1805.01978, section 3.4, with the temperature of DINO's and SimCore's code.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
ROWS_AT_ONCE = 4096  # queries; votes of 1,000 classes for so many take 33 MB


def knn_predict(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    classes: int,
    k: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.int64]:
    """train (N, D), test (M, D), unit rows; labels 0 … classes - 1 → (M,) predicted labels.

    The k nearest neighbours vote with exp(similarity / temperature); of equals the first class
    wins. Raises ValueError where there are fewer than k.
    """
    return knn_predict_each(train, train_labels, test, classes, [k], temperature)[0]


def knn_predict_each(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    test: NDArray[np.float32],
    classes: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> NDArray[np.int64]:
    """The same for several k by one search → (K, M)."""
    if len(train) < max(ks):
        raise ValueError(f"k={max(ks)} neighbours of {len(train)} images; lower k")
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(np.ascontiguousarray(train, np.float32))
    predicted = np.empty((len(ks), len(test)), np.int64)
    for start in range(0, len(test), ROWS_AT_ONCE):
        queries = np.ascontiguousarray(test[start : start + ROWS_AT_ONCE], np.float32)
        similarity, neighbours = index.search(queries, max(ks))  # (m, k), the nearest first
        weights = np.exp(similarity.astype(np.float64) / temperature)
        for row, k in enumerate(ks):
            votes = np.zeros((len(queries), classes))
            voters = (np.arange(len(queries))[:, None], train_labels[neighbours[:, :k]])
            np.add.at(votes, voters, weights[:, :k])
            predicted[row, start : start + len(queries)] = votes.argmax(1)
    return predicted
