"""A sample of the open set, drawn before anything of it is read: units by lot, then images of each.

Reading all of a web-scale set for a few thousand images would cost as much as embedding it. So a
unit in so many is opened, and gives a share of its images; in a unit they are drawn one by one.
Lots are hashes of names: a sample is the same for every training, and a smaller one much the same.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterable

from curate.sources import Item, Unit

# Images of one unit, such as one folder, are alike: no unit gives more, as long as there are others
OF_UNIT = 100
LEAST_UNITS = 64

Named = tuple[str, Unit]  # the source's name, and one of its units


def drawn(units: list[Named], images: int) -> list[tuple[Named, int]]:
    """Some of the units, and how many images of each: in proportion to what they hold, where the
    plan knows that, and else as many of each. All of them, where they hold fewer than `images`."""
    by_lot = sorted(units, key=lambda one: _lot(one[0], one[1].digest))
    wanted = max(LEAST_UNITS, images // OF_UNIT)
    offset = int.from_bytes(_lot("", by_lot[0][1].digest))
    counts = [unit.images for _, unit in by_lot]
    if any(count is None for count in counts):
        chosen = by_lot[:wanted]
        return list(zip(chosen, _shares([1] * len(chosen), images, offset), strict=True))
    held = list(itertools.accumulate(count or 0 for count in counts))
    enough = next((n for n, total in enumerate(held, 1) if total >= images), len(held))
    chosen = by_lot[: max(wanted, enough)]
    sizes = [unit.images or 0 for _, unit in chosen]
    shares = _shares(sizes, min(images, sum(sizes)), offset)
    return [(one, share) for one, share in zip(chosen, shares, strict=True) if share]


def taken(items: Iterable[Item], most: int, source: str) -> list[Item]:
    """`most` of a unit's images, those that cannot be read among them; held in memory at once."""
    return heapq.nsmallest(most, items, key=lambda item: _lot(source, item.key))


def _lot(source: str, name: str) -> bytes:
    return hashlib.blake2b(f"{source}\n{name}".encode(), digest_size=16).digest()


def _shares(sizes: list[int], images: int, offset: int) -> list[int]:
    """Whole numbers that make `images` together. Each is rounded up as often, over the offsets, as
    makes its mean the size's proportion; none is over its size where `images` is not over their
    sum."""
    total = sum(sizes)
    ends = [(end * images + offset % total) // total for end in itertools.accumulate(sizes)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]
