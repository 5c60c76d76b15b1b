"""The selection alone, on embeddings and centroids from anywhere."""

from __future__ import annotations

import time

import numpy as np
import ray
from numpy.typing import NDArray

from curate import __version__, listing
from curate.cluster import over_tasks
from curate.coreset import manifest, stage
from curate.coreset.rules import Guide
from curate.errors import CurateError
from curate.runfiles import columns, shards
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings

FILES_AT_ONCE = 64  # that one task counts
ALWAYS = ("tau", "reference_round", "budget", "where")
OF_TARGET = ("method", "ratio", "gate", "clusters", "seed")  # settings that centroids leave open


def select_files(
    patterns: list[str],
    output: str,
    coreset: CoresetSettings,
    centroids_uri: str | None,
    target: list[str] | None,
) -> str:
    """Write the manifest of the coreset, and return a line on what came of it.

    patterns, target: `.npy`, Arrow IPC or Parquet with an `embedding` column of unit rows, of the
    open set and of the target set, or, in its place, centroids. Plan order is files by name, then
    rows. A float budget is a fraction of all rows.
    """
    start = time.monotonic()
    open_set = _shards_of(patterns)
    # An embedding file of another's making names no source; its own name stands for it
    names = [shard.uri.rpartition("/")[2] for shard in open_set]
    found = Embedded(_shards_of(target) if target else [], open_set, names, "")
    if centroids_uri is None:
        guide = stage.guide_of(found, coreset)
    else:
        guide = Guide(_centroids(centroids_uri))
    selection = stage.choose(coreset, found, guide)
    images = len(selection.position)
    said = {*ALWAYS} | (set() if centroids_uri else {*OF_TARGET})
    manifest.write(
        output,
        found,
        selection,
        {
            "curate": __version__,
            "method": coreset.method,
            "coreset": coreset.model_dump(mode="json", include=said),
            "selected": images,
            "stopped_because": selection.stopped_because,
        },
        coreset.keep or (),
    )
    rounds = f" in {len(selection.rounds):,} rounds" if selection.rounds else ""
    return (
        f"{images:,} of {found.open_images:,} images{rounds}, stopped by: "
        f"{selection.stopped_because}, {time.monotonic() - start:.1f} s: {output}"
    )


def _centroids(uri: str) -> NDArray[np.float32]:
    expected = "centroids are a float matrix (K, D)"
    centroids = shards.read_npy(uri, expected)
    if not len(centroids):
        raise CurateError(f"{uri}: {expected}, not {centroids.dtype} {centroids.shape}")
    return centroids


def _shards_of(patterns: list[str]) -> list[Shard]:
    files = [file.uri for file in listing.expand(patterns)]
    rows = over_tasks(_count, files, FILES_AT_ONCE)
    found: list[Shard] = []
    first = 0
    for uri, n in zip(files, (n for group in rows for n in group), strict=True):
        if n:
            found.append(Shard(uri, 0, n, first))
        first += n
    return found


@ray.remote
def _count(uris: list[str]) -> list[int]:
    return [columns.count_rows(uri) for uri in uris]
