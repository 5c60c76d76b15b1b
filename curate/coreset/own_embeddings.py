"""The selection alone, on embeddings and centroids from anywhere."""

from __future__ import annotations

import logging
import time

import ray

from curate import __version__, listing
from curate.cluster import over_tasks
from curate.coreset import manifest
from curate.coreset.on_ray import select
from curate.coreset.rounds import Limits
from curate.errors import CurateError
from curate.runfiles import columns, shards
from curate.runfiles.shards import Shard

log = logging.getLogger(__name__)

FILES_AT_ONCE = 64  # that one task counts


def select_files(
    patterns: list[str],
    centroids_uri: str,
    output: str,
    *,
    tau: float | None,
    reference_round: int,
    budget: int | float | None,
) -> str:
    """Write the manifest of the coreset, and return a line on what came of it.

    patterns: `.npy`, Arrow IPC or Parquet with an `embedding` column of unit rows. Plan order is
    files by name, then rows. A float budget is a fraction of all rows.
    """
    start = time.monotonic()
    if reference_round < 1:
        raise CurateError(f"--reference-round {reference_round}: rounds count from 1")
    expected = "centroids are a float matrix (K, D)"
    centroids = shards.read_npy(centroids_uri, expected)
    if not len(centroids):
        raise CurateError(f"{centroids_uri}: {expected}, not {centroids.dtype} {centroids.shape}")
    files = [file.uri for file in listing.expand(patterns)]
    rows = over_tasks(_count, files, FILES_AT_ONCE)
    shard_list: list[Shard] = []
    first = 0
    for uri, n in zip(files, (n for group in rows for n in group), strict=True):
        if n:
            shard_list.append(Shard(uri, 0, n, first))
        first += n
    if isinstance(budget, float):
        budget = round(budget * first)
    selection = select(
        shard_list,
        centroids,
        Limits(tau, reference_round, budget),
        on_refill=lambda lists, length: log.info(
            "%d lists ran out and go on, by up to %d", lists, length
        ),
    )
    # An embedding file of another's making names no source; its own name stands for it
    names = [shard.uri.rpartition("/")[2] for shard in shard_list]
    images = len(selection.position)
    manifest.write(
        output,
        shard_list,
        names,
        selection,
        {
            "curate": __version__,
            "method": "simcore",
            "coreset": {"tau": tau, "reference_round": reference_round, "budget": budget},
            "selected": images,
            "stopped_because": selection.stopped_because,
        },
    )
    return (
        f"{images:,} of {first:,} images in {len(selection.rounds):,} rounds, stopped by: "
        f"{selection.stopped_because}, {time.monotonic() - start:.1f} s: {output}"
    )


@ray.remote
def _count(uris: list[str]) -> list[int]:
    return [columns.count_rows(uri) for uri in uris]
