"""What some embedding shards know of a selection: their labels, and how near its images are to the
target set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.runfiles.shards import Shard, read_columns, read_embeddings

Place = tuple[str, int | None, int | None]  # uri, offset, row: where an image lies
ROWS_AT_ONCE = 1024  # × 10,000 target images of float32 is 40 MB


@dataclass(frozen=True)
class Wanted:
    """places: the selected images, each with its number in the selection; sample: positions in plan
    order, sorted; target: (T, D) unit rows."""

    places: dict[Place, int]
    sample: NDArray[np.int64]
    target: NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    labels: Counter[str | None]  # of all images
    selected: list[tuple[int, str | None, float]]  # number, label, nearest-target similarity
    sample: NDArray[np.float64]  # the same similarity, of the sample's images


def survey(shards: list[Shard], wanted: Wanted) -> Found:
    """One pass over the shards. Similarities are cosines, computed in float32."""
    labels: Counter[str | None] = Counter()
    selected: list[tuple[int, str | None, float]] = []
    sample = [np.empty(0)]
    for shard in shards:
        table = read_columns(shard.uri)
        named = table["label"].to_pylist()
        labels.update(named)
        located = zip(*(table[name].to_pylist() for name in ("uri", "offset", "row")), strict=True)
        numbers = np.array([wanted.places.get(place, -1) for place in located], np.int64)
        low, high = np.searchsorted(wanted.sample, [shard.first, shard.first + shard.rows])
        drawn = wanted.sample[low:high] - shard.first
        rows = np.union1d(np.flatnonzero(numbers >= 0), drawn)
        if not len(rows):
            continue
        embeddings = np.concatenate(list(read_embeddings(shard)))[rows].astype(np.float32)
        near = dict(zip(rows.tolist(), nearest(embeddings, wanted.target).tolist(), strict=True))
        selected += [
            (int(numbers[row]), named[row], near[row]) for row in np.flatnonzero(numbers >= 0)
        ]
        sample.append(np.array([near[row] for row in drawn.tolist()]))
    return Found(labels, selected, np.concatenate(sample))


def nearest(images: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """images (N, D), target (T, D), unit rows → (N,) similarity to the most similar target."""
    found = [
        (images[start : start + ROWS_AT_ONCE] @ target.T).max(1)
        for start in range(0, len(images), ROWS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.float32)
