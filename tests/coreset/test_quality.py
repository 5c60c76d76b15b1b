"""Measures of a selection, on cases that can be counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from curate.coreset.quality import entropy, quality

OPEN = Counter({"cat": 10, "dog": 10, "car": 70, None: 10})


def test_shares_are_counted_by_hand() -> None:
    found = quality(["cat", "car", "dog", None], np.array([1, 1, 2, 3]), OPEN, {"cat", "dog"})
    assert found.oracle_share == 0.5
    assert found.base_share == 0.2
    assert found.lift == 2.5
    assert found.recall == 2 / 20
    assert found.by_round == [(1, 2, 0.5), (2, 3, 2 / 3), (3, 4, 0.5)]
    assert found.top_classes == [("cat", 1, 0.1), ("car", 1, 1 / 70), ("dog", 1, 0.1)]
    assert found.entropy == pytest.approx(np.log2(3))


def test_the_whole_open_set_has_the_base_rate() -> None:
    labels = [label for label, count in OPEN.items() for _ in range(count)]
    found = quality(labels, np.ones(len(labels), np.int64), OPEN, {"cat"})
    assert found.lift == 1 and found.recall == 1
    assert found.entropy == pytest.approx(found.open_entropy)


def test_only_the_twenty_largest_classes_are_named() -> None:
    labels = [f"class{i:02d}" for i in range(30) for _ in range(i + 1)]
    found = quality(labels, np.ones(len(labels), np.int64), Counter(labels), set())
    assert [name for name, _, _ in found.top_classes] == [f"class{i}" for i in range(29, 9, -1)]
    assert found.lift is None and found.recall is None


def test_an_empty_selection() -> None:
    found = quality([], np.array([], np.int64), OPEN, {"cat"})
    assert found.selected == 0 and found.oracle_share is None and found.by_round == []
    assert found.entropy is None


@pytest.mark.parametrize(
    ("counts", "bits"), [([8], 0), ([5, 5], 1), ([1, 1, 1, 1, 0], 2), ([], 0), ([3, 1], 0.811278)]
)
def test_entropy_in_bits(counts: list[int], bits: float) -> None:
    assert entropy(counts) == pytest.approx(bits)
