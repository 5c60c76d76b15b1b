"""Nearest-neighbour classification, against scikit-learn and against the formula in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from curate.evaluate import knn, neighbours
from curate.evaluate.bench import Labels
from curate.evaluate.neighbours import TEMPERATURE, knn_predict

CLASSES = 7


def features(n: int, seed: int, dim: int = 16) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit rows around one direction a class, near enough to each other for votes to matter."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    rows = centres[labels] + 1.5 * rng.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


TRAIN, TRAIN_LABELS = features(400, seed=0)
TEST, TEST_LABELS = features(150, seed=1)


def predict(k: int, temperature: float = TEMPERATURE) -> NDArray[np.int64]:
    return knn_predict(TRAIN, TRAIN_LABELS, TEST, CLASSES, k, temperature)


@pytest.mark.parametrize("k", [1, 2, 5, 20, 400])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_against_scikit_learn(k: int, temperature: float) -> None:
    """Cosine distance is 1 - similarity; its votes are weighted by a function of it."""
    reference = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    )
    expected = reference.fit(TRAIN.astype(np.float64), TRAIN_LABELS).predict(TEST)
    got = predict(k, temperature)
    assert got.dtype == np.int64 and (got == expected).all()
    assert 0.3 < (got == TEST_LABELS).mean() < 0.99, "neither chance nor certainty"


def test_against_the_formula_in_loops() -> None:
    for k in (1, 3, 20):
        got = predict(k)
        for query, predicted in zip(TEST[:40], got[:40], strict=True):
            similarity = [
                sum(float(a) * float(b) for a, b in zip(query, row, strict=True)) for row in TRAIN
            ]
            nearest = sorted(range(len(TRAIN)), key=lambda i: -similarity[i])[:k]
            votes = [0.0] * CLASSES
            for i in nearest:
                votes[TRAIN_LABELS[i]] += math.exp(similarity[i] / 0.07)
            assert predicted == votes.index(max(votes))


def test_several_k_by_one_search() -> None:
    ks = [200, 1, 20]
    got = neighbours.knn_predict_each(TRAIN, TRAIN_LABELS, TEST, CLASSES, ks)
    assert (got == [predict(k) for k in ks]).all()
    assert len(set(map(tuple, got.tolist()))) == 3


def test_parts_of_a_test_set_are_all_of_it() -> None:
    """Rows without a label, in either set, are left out."""
    train, test = TRAIN_LABELS.copy(), TEST_LABELS.copy()
    train[::7] = test[3::5] = -1
    labels = Labels(train, test, [str(n) for n in range(CLASSES)])
    parts = [(0, 64), (64, 128), (128, 150)]
    found = [knn.predicted_of(TRAIN, TEST, labels, [5, 20], part) for part in parts]
    known, asked = train >= 0, test >= 0
    for row, k in enumerate((5, 20)):
        whole = knn_predict(TRAIN[known], train[known], TEST[asked], CLASSES, k)
        assert (np.concatenate([one[row] for one in found]) == whole).all()


def test_a_near_neighbour_outvotes_two_far_ones() -> None:
    """exp(1 / 0.07) is more than twice exp(0.8 / 0.07); at a high temperature it is not."""
    train = np.array([[1, 0], [0.8, 0.6], [0.8, -0.6]], np.float32)
    labels, query = np.array([0, 1, 1]), np.array([[1, 0]], np.float32)
    assert knn_predict(train, labels, query, 2, 3).tolist() == [0]
    assert knn_predict(train, labels, query, 2, 3, temperature=10.0).tolist() == [1]


def test_first_of_equal_classes_wins() -> None:
    train = np.array([[0, 1], [0, -1]], np.float32)
    query = np.array([[1, 0]], np.float32)
    assert knn_predict(train, np.array([2, 1]), query, 3, 2).tolist() == [1]


def test_neighbours_of_themselves() -> None:
    assert (knn_predict(TRAIN, TRAIN_LABELS, TRAIN, CLASSES, 1) == TRAIN_LABELS).all()


@pytest.mark.parametrize("rows", [1, 7, 149, 150, 151])
def test_queries_at_once_do_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predict(20)
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", rows)
    assert (predict(20) == expected).all()


def test_order_in_memory_does_not_matter() -> None:
    got = knn_predict(
        np.asfortranarray(TRAIN), TRAIN_LABELS, np.repeat(TEST, 2, axis=1)[:, ::2], CLASSES, 20
    )
    assert (got == predict(20)).all()


def test_no_queries() -> None:
    assert knn_predict(TRAIN, TRAIN_LABELS, TEST[:0], CLASSES, 5).shape == (0,)


def test_fewer_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="k=401 neighbours of 400 images; lower k"):
        predict(401)
