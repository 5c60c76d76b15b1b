"""All keys of a sorted store, exactly, in whatever order its pages come."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.keyspace import list_all

Entry = tuple[str, int]


class Store:
    """Lists keys as S3 does, and counts."""

    def __init__(self, keys: set[str], page_keys: int, seed: int | None = None) -> None:
        self.keys = sorted(keys)
        self.page_keys = page_keys
        self.lists, self.now, self.most = 0, 0, 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def page(self, after: str | None) -> tuple[list[Entry], bool]:
        with self._lock:
            self.lists += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self._random.random() * 0.002)
        with self._lock:
            self.now -= 1
        first = 0 if after is None else bisect_right(self.keys, after)
        page = [(key, len(key)) for key in self.keys[first : first + self.page_keys]]
        return page, first + self.page_keys < len(self.keys)

    def all(self) -> list[Entry]:
        return [(key, len(key)) for key in self.keys]


def shapes() -> dict[str, set[str]]:
    draw = random.Random(7)
    classes = draw.sample(range(10**8), 40)
    days = [f"2026/{month:02d}/{day:02d}" for month in range(12) for day in range(28)]
    lumps = ("a/", "z/far/down/the/same/way/")
    letters = [draw.choice("aé漢𝄞🎈") + chr(draw.randrange(0x20, 0xD800)) for _ in range(4000)]
    return {
        "numbers": {f"{i:08d}.jpg" for i in range(4000)},
        "numbers without zeros": {f"{i}.jpg" for i in range(4000)},
        "hashes": {f"{draw.getrandbits(128):032x}" for _ in range(4000)},
        "classes": {f"a/train/n{c:08d}/n{c:08d}_{i}.JPEG" for c in classes for i in range(100)},
        "a page a folder": {f"n{c:08d}/{i:05d}.jpg" for c in classes for i in range(40)},
        "days": {f"{day}/{i:05d}" for day in days for i in range(12)},
        "two lumps": {f"{lump}{i}" for lump in lumps for i in range(2000)},
        "all scripts": {f"{two}{i}" for i, two in enumerate(letters)},
    }


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("at_once", [1, 16])
def test_every_shape_of_keys(shape: str, at_once: int) -> None:
    store = Store(shapes()[shape], page_keys=40)
    assert list_all(store.page, at_once) == store.all()
    pages = -(-len(store.keys) // 40)
    assert store.lists == pages if at_once == 1 else store.lists <= 3 * pages
    assert store.most == 1 if at_once == 1 else 1 < store.most <= at_once


# Few letters make neighbours, prefixes of each other, and keys that equal a cut
near = st.text(alphabet="\0/0ab~\ud7ff\ue000\U0010ffff", max_size=6)


@settings(deadline=None, max_examples=80)
@given(
    keys=st.sets(near | st.text(st.characters(codec="utf-8")), max_size=120),
    page_keys=st.integers(1, 9),
    at_once=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_any_keys(keys: set[str], page_keys: int, at_once: int, seed: int) -> None:
    store = Store(keys, page_keys, seed)
    assert list_all(store.page, at_once) == store.all()


def test_keys_are_asked_for_by_utf_8() -> None:
    """No lone surrogate, which no request can hold, even where keys are next to them."""
    keys = {f"{letter}{i}" for letter in "\ud7ff\ue000\U0010ffff" for i in range(300)}
    keys |= {f"\U0010ffff{'long' * 9}{i}" for i in range(300)}
    store = Store(keys, 10)

    def page(after: str | None) -> tuple[list[Entry], bool]:
        (after or "").encode()
        return store.page(after)

    assert list_all(page, 8) == store.all()


@pytest.mark.parametrize("failing", [1, 9])
def test_a_failure_ends_it(failing: int) -> None:
    store = Store({f"{i:05d}" for i in range(5000)}, 10)

    def page(after: str | None) -> tuple[list[Entry], bool]:
        if store.lists >= failing:
            raise OSError("lost")
        return store.page(after)

    with pytest.raises(OSError, match="lost"):
        list_all(page, 8)
