"""A sample of units and of their images: as many as asked, each image as likely as another."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from curate.dataset.sample import LEAST_UNITS, OF_UNIT, drawn, taken
from curate.sources import Item, Unit


def units_of(sizes: list[int | None], source: str = "s") -> list[tuple[str, Unit]]:
    return [
        (source, Unit(f"{source}/{n}", digest=f"{n:08x}", images=size))
        for n, size in enumerate(sizes)
    ]


def items_of(unit: Unit, images: int) -> list[Item]:
    return [Item(f"{unit.uri}/{n}", unit.uri, data=b"") for n in range(images)]


@pytest.mark.parametrize("images", [1, 50, 999, 20_000, 10**9])
def test_as_many_as_asked_and_none_twice(images: int) -> None:
    rng = random.Random(images)
    units = units_of([rng.randint(1, 900) for _ in range(400)])
    held = sum(unit.images or 0 for _, unit in units)
    found = drawn(units, images)
    assert sum(share for _, share in found) == min(images, held)
    assert all(1 <= share <= (one[1].images or 0) for one, share in found)
    names = [one[1].uri for one, _ in found]
    assert len(names) == len(set(names))
    rng.shuffle(units)
    assert drawn(units, images) == found  # the order of a listing is no matter


def test_units_in_so_many_are_opened() -> None:
    opened = drawn(units_of([1000] * 5000), 50_000)
    assert len(opened) == 50_000 // OF_UNIT and {share for _, share in opened} == {OF_UNIT}
    assert len(drawn(units_of([1000] * 5000), 100)) == LEAST_UNITS  # also of a small sample


def test_units_whose_size_only_reading_tells() -> None:
    found = drawn(units_of([None] * 500), 1000)
    assert len(found) == LEAST_UNITS and sum(share for _, share in found) == 1000
    assert max(share for _, share in found) - min(share for _, share in found) == 1


def test_every_image_is_as_likely() -> None:
    """Units of 10 to 90 images, most of which stay closed; over many sources, whose lots differ."""
    sizes = [10, 30, 50, 70, 90] * 30
    seen: Counter[int] = Counter()
    tries, images = 400, 150
    for source in map(str, range(tries)):
        for (_, unit), share in drawn(units_of(list(sizes), source), images):
            for item in taken(items_of(unit, unit.images or 0), share, source):
                seen[unit.images or 0] += 1
                assert item.key.startswith(unit.uri)
    assert sum(seen.values()) == tries * images
    for size in (10, 30, 50, 70, 90):
        expected = tries * images * size / 250
        assert seen[size] == pytest.approx(expected, rel=0.1), size


def test_a_units_images_are_drawn_one_by_one() -> None:
    """Not the first ones, nor all in a row; a smaller sample is part of a larger one."""
    unit = Unit("tar", digest="0")
    items = items_of(unit, 300)
    ten, fifty = (taken(iter(items), most, "s") for most in (10, 50))
    places = sorted(items.index(item) for item in fifty)
    assert len(set(places)) == 50 and places[0] < 30 and places[-1] > 270
    assert ten == fifty[:10]
    assert taken(iter(items), 1000, "s") != items and len(taken(iter(items), 1000, "s")) == 300
