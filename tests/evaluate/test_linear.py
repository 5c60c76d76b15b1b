"""The linear probe against scikit-learn by hand, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from curate.evaluate.accuracy import accuracy
from curate.evaluate.logistic import C_GRID, linear_probe


def blobs(per_class: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around fixed points of 8 dimensions."""
    centres = np.random.default_rng(0).normal(size=(3, 8))
    rng = np.random.default_rng(seed)
    points = np.repeat(centres, per_class, 0) + spread * rng.normal(size=(3 * per_class, 8))
    return points.astype(np.float32), np.repeat(np.arange(3), per_class)


def test_equals_scikit_learn_with_the_chosen_regularisation() -> None:
    train, labels = blobs(40, 1.5, 1)
    test, test_labels = blobs(50, 1.5, 2)
    found, chosen = linear_probe(train, labels, test, test_labels, seed=0)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=chosen, max_iter=1000).fit(scaler.transform(train), labels)
    assert found.top1 == model.score(scaler.transform(test), test_labels)
    assert chosen in C_GRID


def test_regularisation_follows_the_noise() -> None:
    """Pure noise in many dimensions wants the strictest, clean classes do not."""
    rng = np.random.default_rng(3)
    train = rng.normal(size=(60, 200)).astype(np.float32)
    labels = np.arange(60) % 3
    train[:, 0] += 3 * labels
    _, noisy = linear_probe(train, labels, train, labels, seed=0)
    assert noisy < C_GRID[-1]
    clean, labels = blobs(40, 0.01, 1)
    found, _ = linear_probe(clean, labels, clean, labels, seed=0)
    assert found.top1 == 1


def test_mean_per_class_counts_classes_alike() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    predicted = np.array([0] * 8 + [0, 1])
    found = accuracy(predicted, labels)
    assert found.top1 == 0.9
    assert found.mean_per_class == 0.75


def test_what_cannot_be_probed() -> None:
    train, labels = blobs(4, 1, 0)
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(train, np.zeros(len(train), np.int64), train, labels, seed=0)
    lonely = labels.copy()
    lonely[:] = 0
    lonely[0] = 2
    with pytest.raises(ValueError, match="class 2 has one image"):
        linear_probe(train, lonely, train, labels, seed=0)


def test_rows_without_a_label_are_left_out() -> None:
    """Theirs are features that would mislead, among the others and in the test."""
    rng = np.random.default_rng(4)
    train, test = (rng.normal(size=(n, 5)).astype(np.float32) for n in (80, 40))
    labels, test_labels = ((x[:, 0] > 0).astype(np.int64) for x in (train, test))
    expected = linear_probe(train, labels, test, test_labels, seed=0)
    bare = -3 * train[:30]
    found = linear_probe(
        np.concatenate([bare, train]),
        np.concatenate([np.full(30, -1), labels]),
        np.concatenate([test, bare]),
        np.concatenate([test_labels, np.full(30, -1)]),
        seed=0,
    )
    assert found == expected
