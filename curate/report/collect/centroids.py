"""For each centroid its nearest target images, and the first and the last images that it took."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from curate.coreset import manifest_rows
from curate.report.collect import sampling
from curate.report.collect.files import ImageRow, Manifest, image_rows
from curate.report.collect.sampling import spread
from curate.report.collect.subject import Subject
from curate.report.content import Centroid, Tile

SHOWN = 200
BESIDE = 4  # target images, first and last picks of each


def centroids(subject: Subject, centres: NDArray[np.float32]) -> list[Centroid]:
    """centres (K, D), unit rows."""
    shown = spread(len(centres), SHOWN)
    nearest: list[list[Tile]] = subject.section(
        "centroids", lambda _: _nearest(subject, centres[shown]), [[] for _ in shown]
    )
    picks = _picks(subject.manifest, shown)
    tiles = iter(subject.tiles.of_open([row for rows, _ in picks for row in rows]))
    found = []
    for number, near, (rows, total) in zip(shown, nearest, picks, strict=True):
        own = list(islice(tiles, len(rows)))
        found.append(Centroid(number, total, near, own[:BESIDE], own[BESIDE:]))
    return found


def _nearest(subject: Subject, centres: NDArray[np.float32]) -> list[list[Tile]]:
    """Of each centroid the most similar target images, best first."""
    targets = subject.embedded.target
    positions = sampling.nearest(targets, centres, BESIDE)
    wanted = np.unique(positions)
    sources = [subject.run.settings.target.name] * len(targets)
    rows = image_rows(manifest_rows.rows_at(targets, sources, wanted))
    tile_at = dict(zip(wanted.tolist(), subject.tiles.of_target(rows), strict=True))
    return [[tile_at[position] for position in one] for one in positions.tolist()]


def _picks(selected: Manifest, shown: list[int]) -> list[tuple[list[ImageRow], int]]:
    """Of each centroid the first and last images that it took, 2 × BESIDE at most, none twice; and
    how many it took."""
    of_centroid = selected.numbers("centroid")
    order = np.argsort(of_centroid, kind="stable")  # a manifest is in the order of the rounds
    first, last = (np.searchsorted(of_centroid[order], np.add(shown, i)).tolist() for i in (0, 1))
    own = [order[low:high].tolist() for low, high in zip(first, last, strict=True)]
    places = [one[:BESIDE] + one[max(BESIDE, len(one) - BESIDE) :] for one in own]
    rows = iter(selected.images([place for some in places for place in some]))
    return [
        (list(islice(rows, len(some))), len(one)) for one, some in zip(own, places, strict=True)
    ]
