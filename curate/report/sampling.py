"""Embeddings that a report needs, on Ray tasks: a seeded sample of each set, of few shards; and the
target images nearest to a centroid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import results
from curate.errors import CurateError
from curate.runfiles import shards
from curate.runfiles.shards import Shard

SHARDS_READ = 64  # of one set, at most
PER_TASK = 8  # shards
ROWS_AT_ONCE = 16_384
Rows = NDArray[np.float32]


def of_set(uris: Sequence[str], wanted: int, seed: int) -> Rows:
    """(N, D): images drawn at random from up to SHARDS_READ shards drawn at random."""
    rng = np.random.default_rng(seed)
    opened = _some(uris, rng)
    counts = [n for part in results([_count.remote(g) for g in _groups(opened)]) for n in part]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    places = np.sort(rng.choice(total, min(wanted, total), replace=False))
    which = np.searchsorted(ends, places, side="right")
    takes = [
        (uri, places[which == i] - (ends[i] - counts[i]))
        for i, uri in enumerate(opened)
        if (which == i).any()
    ]
    return _joined(results([_take.remote(group) for group in _groups(takes)]))


def of_coreset(
    plan_uri: str, part_uris: dict[int, str], rows: list[dict[str, Any]], seed: int
) -> Rows:
    """(N, D): embeddings of the rows of a manifest, as many as lie in SHARDS_READ shards.

    part_uris: unit of the open set → its shard. A manifest does not say in which unit an image
    lies; where a run has too many units to look through, the plan does.
    """
    units = list(part_uris)
    if len(units) > SHARDS_READ:
        units = _some(_units_with(plan_uri, rows), np.random.default_rng(seed))
    wanted = _identities(pa.Table.from_pylist(rows, schema=shards.IMAGE_SCHEMA))
    uris = [part_uris[unit] for unit in units if unit in part_uris]
    return _joined(results([_matching.remote(group, wanted) for group in _groups(uris)]))


def nearest(uris: Sequence[str], centroids: Rows, each: int) -> list[list[dict[str, Any]]]:
    """For each centroid (K, D), the rows of the `each` images most similar to it, best first."""
    shared = ray.put(centroids)
    groups = _groups(list(uris))
    parts = results([_nearest.remote(group, shared, each) for group in groups])
    best = _Best.of(
        [
            _Best(part.similarity, part.shard + PER_TASK * number, part.row)
            for number, part in enumerate(parts)
        ],
        each,
    )
    chosen = [
        list(zip(shard.tolist(), row.tolist(), strict=True))
        for shard, row in zip(best.shard, best.row, strict=True)
    ]
    wanted: dict[int, set[int]] = {}
    for places_of_one in chosen:
        for at, number in places_of_one:
            wanted.setdefault(at, set()).add(number)
    takes = [(at, uris[at], sorted(numbers)) for at, numbers in sorted(wanted.items())]
    looked_up: dict[tuple[int, int], dict[str, Any]] = {}
    for part in results([_columns.remote(group) for group in _groups(takes)]):
        looked_up.update(part)
    return [[looked_up[place] for place in one] for one in chosen]


@dataclass(frozen=True)
class _Best:
    """(K, n) each: the best images so far of every centroid, best first."""

    similarity: Rows
    shard: NDArray[np.int64]
    row: NDArray[np.int64]

    @staticmethod
    def none(k: int) -> _Best:
        return _Best(
            np.empty((k, 0), np.float32), np.empty((k, 0), np.int64), np.empty((k, 0), np.int64)
        )

    @staticmethod
    def of(parts: list[_Best], each: int) -> _Best:
        """The best of all; of equals the first."""
        similarity = np.concatenate([part.similarity for part in parts], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :each]
        return _Best(
            np.take_along_axis(similarity, order, axis=1),
            np.take_along_axis(np.concatenate([p.shard for p in parts], axis=1), order, axis=1),
            np.take_along_axis(np.concatenate([p.row for p in parts], axis=1), order, axis=1),
        )


def label_counts(uris: Sequence[str]) -> dict[str | None, int]:
    """Images of each label in a set."""
    total: dict[str | None, int] = {}
    for part in results([_labels.remote(group) for group in _groups(list(uris))]):
        for label, images in part.items():
            total[label] = total.get(label, 0) + images
    return total


def _some(items: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    if len(items) <= SHARDS_READ:
        return list(items)
    return [items[i] for i in np.sort(rng.choice(len(items), SHARDS_READ, replace=False))]


def _groups(items: list[Any]) -> list[list[Any]]:
    return [items[i : i + PER_TASK] for i in range(0, len(items), PER_TASK)]


def _joined(parts: list[Rows]) -> Rows:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.empty((0, 0), np.float32)


def _read(uri: str) -> pa.Table:
    table = shards.read_arrow(uri)
    if "embedding" not in table.column_names:
        raise CurateError(f"{uri}: not a shard of this run; remove it and run again")
    return table


def _matrix(table: pa.Table) -> Rows:
    """The embeddings of some rows of a shard."""
    column = table["embedding"].combine_chunks()
    if not len(column):
        return np.empty((0, 0), np.float32)
    values = np.from_dlpack(column.flatten())  # to_numpy() would import pandas
    return np.asarray(values, np.float32).reshape(len(column), -1)


@ray.remote
def _count(uris: list[str]) -> list[int]:
    return [shards.read_note(uri)["embedded"] for uri in uris]


@ray.remote
def _take(wanted: list[tuple[str, NDArray[np.int64]]]) -> Rows:
    return _joined([_matrix(_read(uri).take(pa.array(rows))) for uri, rows in wanted])


@ray.remote
def _matching(uris: list[str], wanted: pa.Array) -> Rows:
    """Embeddings of the wanted images."""
    parts = []
    for uri in uris:
        table = _read(uri)
        inside = pc.is_in(_identities(table), value_set=wanted)
        parts.append(_matrix(table.filter(inside)))
    return _joined(parts)


def _identities(table: pa.Table) -> pa.Array:
    """What tells images apart: where they lie. Copies of one image are many in a web set."""
    columns = [pc.cast(table[name], pa.string()) for name in ("uri", "key", "offset", "row")]
    joined = pc.binary_join_element_wise(
        *columns, "\n", null_handling="replace", null_replacement="-"
    )
    return joined.combine_chunks()


def _units_with(plan_uri: str, rows: list[dict[str, Any]]) -> list[int]:
    """Units of the plan in which the rows of a manifest lie, read in passing: a plan of files can
    be large."""
    wanted = pa.array(sorted({row["uri"] for row in rows}), pa.string())
    table_rows: dict[str, list[int]] = {}
    for row in rows:
        if row["offset"] is None and row["row"] is not None:
            table_rows.setdefault(row["uri"], []).append(row["row"])
    found: list[int] = []
    columns = ["unit", "set", "uri", "start", "stop", "items.list.element.uri"]
    with storage.open_seekable(plan_uri) as file:
        for batch in pq.ParquetFile(file).iter_batches(64, columns=columns):
            for unit in batch.to_pylist():
                items = unit["items"]
                if unit["set"] != "open":
                    continue
                if items is not None:
                    uris = pa.array([item["uri"] for item in items], pa.string())
                    if pc.any(pc.is_in(uris, value_set=wanted)).as_py():
                        found.append(unit["unit"])
                elif unit["uri"] in table_rows and unit["stop"] is not None:
                    inside = range(unit["start"], unit["stop"])
                    if any(row in inside for row in table_rows[unit["uri"]]):
                        found.append(unit["unit"])
                elif pc.index(wanted, unit["uri"]).as_py() >= 0:
                    found.append(unit["unit"])
    return found


@ray.remote
def _nearest(uris: list[str], centroids: Rows, each: int) -> _Best:
    """similarity, shard and row of the images most similar to each centroid, (K, each) of each."""
    best = _Best.none(len(centroids))
    for number, uri in enumerate(uris):
        first = 0
        rows = shards.read_note(uri)["embedded"]
        for block in shards.read_embeddings(Shard(uri, 0, rows, 0)):
            for start in range(0, len(block), ROWS_AT_ONCE):
                part = np.asarray(block[start : start + ROWS_AT_ONCE], np.float32)
                if part.shape[1] != centroids.shape[1]:
                    raise CurateError(f"{uri}: embeddings of another width than the centroids")
                similar = centroids @ part.T
                top = min(each, len(part))
                rows_of_top = np.sort(np.argpartition(-similar, top - 1, axis=1)[:, :top], axis=1)
                found = _Best(
                    np.take_along_axis(similar, rows_of_top, axis=1),
                    np.full(rows_of_top.shape, number),
                    rows_of_top + first,
                )
                best = _Best.of([best, found], each)
                first += len(part)
    return best


@ray.remote
def _columns(
    wanted: list[tuple[int, str, list[int]]],
) -> dict[tuple[int, int], dict[str, Any]]:
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for at, uri, rows in wanted:
        table = shards.read_columns(uri).take(pa.array(rows))
        found.update({(at, row): one for row, one in zip(rows, table.to_pylist(), strict=True)})
    return found


@ray.remote
def _labels(uris: list[str]) -> dict[str | None, int]:
    found: dict[str | None, int] = {}
    for uri in uris:
        for pair in _read(uri)["label"].value_counts().to_pylist():
            found[pair["values"]] = found.get(pair["values"], 0) + pair["counts"]
    return found
