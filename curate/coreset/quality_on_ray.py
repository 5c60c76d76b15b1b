"""How good a coreset is, read from a run's own files: the manifest, and the embedding shards with
the labels of the open set, in parallel.

manifest ──> places ──┐
shards  ──────────────┴──> labels, similarity to the target ──> coreset.quality
"""

from __future__ import annotations

import io
from collections import Counter
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import results
from curate.coreset.quality import Quality, quality
from curate.coreset.stage import Embedded, open_run
from curate.coreset.survey import Place, Wanted, survey
from curate.errors import CurateError, one_line
from curate.runfiles import shards
from curate.runfiles.shards import Shard

SHARDS_AT_ONCE = 16  # that one task opens
SEED = 0  # of the random sample that the selection is compared with


def selection_quality(
    output: str, manifest_uri: str, oracle: set[str], there: Embedded | None = None
) -> Quality:
    """The manifest's images among the open set that was embedded under `output`.

    oracle: labels of the open set that a perfect selection would take.
    there: what the run embedded, of a caller that has it open.
    Raises CurateError where either is not there, for an open set without labels, and for a manifest
    of other images.
    """
    rows = _manifest(manifest_uri)
    there = there or open_run(output).embedded
    total = there.open_images
    # A baseline's images have no round
    rounds = np.array([row["round"] or 0 for row in rows], np.int64)
    order = np.argsort(rounds, kind="stable")
    places = {_place(rows[number]): at for at, number in enumerate(order)}
    if len(places) < len(rows):
        raise CurateError(f"{manifest_uri}: not a manifest: it has an image twice")
    if len(places) > total:
        raise CurateError(f"{manifest_uri}: {len(places)} images of an open set of {total}")
    sample = np.sort(np.random.default_rng(SEED).choice(total, len(places), replace=False))
    wanted = ray.put(Wanted(places, sample, _target(there.target)))
    tasks = [
        _survey.remote(there.open[i : i + SHARDS_AT_ONCE], wanted)
        for i in range(0, len(there.open), SHARDS_AT_ONCE)
    ]
    found = results(tasks)
    counts: Counter[str | None] = reduce(add, (one.labels for one in found), Counter())
    if not any(label is not None for label in counts):
        raise CurateError(f"{output}: no image of the open set has a label; selection needs them")
    seen = {at: (label, near) for one in found for at, label, near in one.selected}
    if len(seen) < len(places):
        raise CurateError(
            f"{manifest_uri}: {len(places) - len(seen)} of its {len(places)} images are not in the "
            f"open set of {output}"
        )
    at = range(len(places))
    return quality(
        [seen[number][0] for number in at],
        rounds[order],
        counts,
        oracle,
        near=np.array([seen[number][1] for number in at]),
        near_random=np.concatenate([np.empty(0), *(one.sample for one in found)]),
    )


def _manifest(uri: str) -> list[dict[str, Any]]:
    columns = ["uri", "offset", "row", "round"]
    try:
        rows: list[dict[str, Any]] = pq.read_table(
            io.BytesIO(storage.read_bytes(uri)), columns=columns
        ).to_pylist()
    except FileNotFoundError:
        raise CurateError(
            f"{uri}: no such manifest; run `curate run` on this config first"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise CurateError(f"{uri}: not a manifest: {one_line(error)}") from error
    return rows


def _target(target: list[Shard]) -> NDArray[np.float32]:
    blocks = [block for shard in target for block in shards.read_embeddings(shard)]
    return np.concatenate(blocks).astype(np.float32)


def _place(row: dict[str, Any]) -> Place:
    return row["uri"], row["offset"], row["row"]


_survey = ray.remote(survey)
