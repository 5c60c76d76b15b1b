"""How good a coreset is, by the run's own files: the manifest says where in plan order its images
stand, the embedding shards know their labels and how near they are to the target set.

manifest ──> positions ──┐
shards  ─────────────────┴──> labels, similarity to the target ──> quality
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks
from curate.coreset import manifest
from curate.coreset.quality import Quality, quality
from curate.coreset.stage import embedded
from curate.errors import CurateError
from curate.runfiles import columns
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.files import RunFiles
from curate.runfiles.run import Embedded, Run
from curate.runfiles.shards import Shard

SHARDS_AT_ONCE = 16  # that one task opens
ROWS_AT_ONCE = 1024  # × 10,000 target images of float32 is 40 MB
SEED = 0  # of the random sample that the selection is compared with


def selection_quality(found: Embedded, manifest_uri: str, oracle: set[str]) -> Quality:
    """The manifest's images among the open set that was embedded.

    oracle: labels of the open set that a perfect selection would take.
    Raises CurateError for a manifest that is not there, or of other embeddings, and for an open set
    without labels.
    """
    chosen = manifest.read(manifest_uri, ["position", "uri", "round"], found.fingerprint)
    images, total = len(chosen), found.open_images
    position = chosen["position"].to_numpy()
    if len(np.unique(position)) < images:
        raise CurateError(f"{manifest_uri}: not a manifest: it has an image twice")
    if images > total:
        raise CurateError(f"{manifest_uri}: {images} images of an open set of {total}")
    order = np.argsort(position)
    sample = np.random.default_rng(SEED).choice(total, images, replace=False)
    target = np.concatenate([block for shard in found.target for block in read_embeddings(shard)])
    uris = chosen["uri"].combine_chunks().take(pa.array(order))
    wanted = Wanted(position[order], uris, np.sort(sample), target.astype(np.float32))
    parts = over_tasks(_survey, found.open, SHARDS_AT_ONCE, wanted)
    strange = images - sum(part.known for part in parts)
    if strange:
        raise CurateError(
            f"{manifest_uri}: {strange} of its {images} images are not in the open set"
        )
    labels: Counter[str | None] = reduce(add, (part.labels for part in parts), Counter())
    if not any(label is not None for label in labels):
        raise CurateError(
            f"{manifest_uri}: no image of the open set has a label; selection needs them"
        )
    selected = [label for part in parts for label in part.selected]
    near = np.concatenate([np.empty(0), *(part.near for part in parts)])
    rounds = chosen["round"].fill_null(0).to_numpy().astype(np.int64)  # a baseline has none
    places = np.argsort(order)[np.argsort(rounds, kind="stable")]  # in the order of the rounds
    return quality(
        [selected[place] for place in places],
        np.sort(rounds),
        labels,
        oracle,
        near=near[places],
        near_random=np.concatenate([np.empty(0), *(part.near_sample for part in parts)]),
    )


def coreset_quality(output: str, oracle: set[str]) -> Quality:
    """Of the run's own coreset. Raises CurateError as `selection_quality` does."""
    files = RunFiles(output)
    if not storage.exists(files.manifest):
        raise manifest.none_there(files.manifest)
    return selection_quality(embedded(Run.open(output)), files.manifest, oracle)


@dataclass(frozen=True)
class Wanted:
    """selected, sample: positions in plan order, sorted; uris: of the selected images, which tell
    whether the manifest speaks of these shards; target: (T, D) unit rows."""

    selected: NDArray[np.int64]
    uris: pa.Array
    sample: NDArray[np.int64]
    target: NDArray[np.float32]


@dataclass(frozen=True)
class Surveyed:
    """What some shards, one after the other, know of them."""

    labels: Counter[str | None]  # of all images
    known: int  # selected images that are where the manifest says
    selected: list[str | None]  # labels of these, in plan order
    near: NDArray[np.float64]  # their similarity to the target image nearest to each
    near_sample: NDArray[np.float64]  # the sample's


def survey(shards: list[Shard], wanted: Wanted) -> Surveyed:
    """One pass over the shards. Similarities are cosines, computed in float32."""
    labels: Counter[str | None] = Counter()
    known, selected = 0, []
    near: list[NDArray[np.float32]] = []
    near_sample: list[NDArray[np.float32]] = []
    for shard in shards:
        images = columns.read(shard.uri, ["label", "uri"])
        named = images["label"].to_pylist()
        labels.update(named)
        low, own = _within(shard, wanted.selected)
        _, drawn = _within(shard, wanted.sample)
        selected += [named[row] for row in own]
        uris = images["uri"].combine_chunks().take(pa.array(own))
        known += pc.sum(pc.equal(uris, wanted.uris.slice(low, len(own)))).as_py() or 0
        if not len(own) + len(drawn):
            continue
        embeddings = np.concatenate(list(read_embeddings(shard)))
        for rows, similarities in ((own, near), (drawn, near_sample)):
            similarities.append(nearest(embeddings[rows].astype(np.float32), wanted.target))
    empty = np.empty(0)
    return Surveyed(
        labels,
        known,
        selected,
        np.concatenate([empty, *near]),
        np.concatenate([empty, *near_sample]),
    )


_survey = ray.remote(survey)


def _within(shard: Shard, positions: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Where among the positions the shard's begin, and the shard's rows that are among them."""
    low, high = np.searchsorted(positions, [shard.first, shard.first + shard.rows])
    return int(low), positions[low:high] - shard.first


def nearest(images: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float32]:
    """images (N, D), target (T, D), unit rows → (N,) similarity to the most similar target."""
    found = [
        (images[start : start + ROWS_AT_ONCE] @ target.T).max(1)
        for start in range(0, len(images), ROWS_AT_ONCE)
    ]
    return np.concatenate(found) if found else np.empty(0, np.float32)
