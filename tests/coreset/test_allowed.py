"""A bit an image, against a set of positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset.allowed import Allowed


@given(st.integers(1, 70), st.data())
def test_rows_are_those_of_the_set(images: int, data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.integers(0, images - 1)))
    gone = data.draw(st.sets(st.integers(0, images - 1)))
    first = data.draw(st.integers(0, images))
    count = data.draw(st.integers(0, images - first))
    allowed = Allowed.only(np.array(sorted(kept), np.int64), images)
    assert allowed.count == len(kept)
    expected = [p - first for p in sorted(kept) if first <= p < first + count]
    assert allowed.rows(first, count).tolist() == expected
    left = allowed.without(np.array(list(gone), np.int64))
    assert left.rows(0, images).tolist() == sorted(kept - gone)


@pytest.mark.parametrize("images", [0, 1, 8, 9, 1000])
def test_all(images: int) -> None:
    allowed = Allowed.all_of(images)
    assert allowed.count == images
    assert allowed.rows(0, images).tolist() == list(range(images))
