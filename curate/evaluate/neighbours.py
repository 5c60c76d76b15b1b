"""Weighted nearest-neighbour classification: how well an encoder's features know the classes as
they are, with nothing trained on them.

Wu et al. 2018, arXiv:1805.01978, section 3.4, with the temperature of DINO's and SimCore's code.
"""

from __future__ import annotations

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
    if len(train) < k:
        raise ValueError(f"k={k} neighbours of {len(train)} images; lower k")
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(np.ascontiguousarray(train, np.float32))
    predicted = np.empty(len(test), np.int64)
    for start in range(0, len(test), ROWS_AT_ONCE):
        queries = np.ascontiguousarray(test[start : start + ROWS_AT_ONCE], np.float32)
        similarity, neighbours = index.search(queries, k)  # (m, k)
        weights = np.exp(similarity.astype(np.float64) / temperature)
        votes = np.zeros((len(queries), classes))
        np.add.at(votes, (np.arange(len(queries))[:, None], train_labels[neighbours]), weights)
        predicted[start : start + len(queries)] = votes.argmax(1)
    return predicted
