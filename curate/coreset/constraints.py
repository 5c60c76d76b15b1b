"""What may be selected, and what must be: copies, images dropped and added by hand. On Ray tasks.

drop    keys        ─┐
dedup   digests     ─┴──> a bit an image, which every method respects
add     keys        ───> positions, which are in the coreset before its first round
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks, results
from curate.coreset.allowed import Allowed
from curate.errors import CurateError, one_line
from curate.runfiles import columns
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings

SHARDS_AT_ONCE = 64  # that one task opens
DIGESTS_AT_ONCE = 4_000_000  # that one task sorts
KEPT_HEX = 32  # digits of a SHA-256: 128 bits tell a trillion images apart
COPY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
OF_TARGET = -1  # the position of a target image: before all of the open set's


@dataclass(frozen=True)
class Constraints:
    """allowed: None for all images; added: positions, sorted, none of them allowed any more;
    left_out: images that are not allowed, by reason."""

    allowed: Allowed | None = None
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: dict[str, int] = field(default_factory=dict)


def of(coreset: CoresetSettings, found: Embedded) -> Constraints:
    """Raises CurateError for keys that no embedded image has, and digests that are not there."""
    if not coreset.is_constrained:
        return Constraints()
    allowed = Allowed.all_of(found.open_images)
    left_out: dict[str, int] = {}
    added = _positions("add", coreset.add, found)
    allowed = allowed.without(added)
    reasons = {"dropped by hand": _positions("drop", coreset.drop, found)}
    both = np.intersect1d(added, reasons["dropped by hand"])
    if len(both):
        raise CurateError(f"coreset.add: {len(both)} of its images are in coreset.drop too")
    if coreset.dedup != "none":
        copies, of_target = copies_of(found, added)
        reasons |= {"copies of a target image": of_target, "copies": copies}
    for reason, positions in reasons.items():
        before, allowed = allowed.count, allowed.without(positions)
        if before > allowed.count:
            left_out[reason] = before - allowed.count
    return Constraints(allowed, added, left_out)


# By hand


def _positions(setting: str, given: list[str] | str | None, found: Embedded) -> NDArray[np.int64]:
    """Sorted. given: `SOURCE/KEY` each, or a file with one a line."""
    wanted = _lines(setting, given) if isinstance(given, str) else given
    if not wanted:
        return np.empty(0, np.int64)
    by_source: dict[str, set[str]] = {}
    for one in wanted:
        source, slash, key = one.partition("/")
        if not slash or source not in found.open_sources:
            known = ", ".join(dict.fromkeys(found.open_sources))
            raise CurateError(f"coreset.{setting}: {one}: not SOURCE/KEY; sources are {known}")
        by_source.setdefault(source, set()).add(key)
    looked_at = [
        (shard, source)
        for shard, source in zip(found.open, found.open_sources, strict=True)
        if source in by_source
    ]
    parts = over_tasks(_with_keys, looked_at, SHARDS_AT_ONCE, by_source)
    positions = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    seen = {one for part in parts for one in part[1]}
    missing = [one for one in wanted if one not in seen]
    if missing:
        unknown = f"{len(missing)} of its keys are of no embedded image"
        raise CurateError(f"coreset.{setting}: {unknown}, as {missing[0]}")
    return np.unique(positions)


def _lines(setting: str, uri: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CurateError(f"coreset.{setting}: {uri}: {one_line(error)}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


@ray.remote
def _with_keys(
    looked_at: list[tuple[Shard, str]], by_source: dict[str, set[str]]
) -> tuple[NDArray[np.int64], set[str]]:
    """Positions, and `SOURCE/KEY` of what was found."""
    positions, seen = [np.empty(0, np.int64)], set()
    for shard, source in looked_at:
        keys = _rows_of(shard, "key")
        is_in = pc.is_in(keys, value_set=pa.array(sorted(by_source[source]), pa.string()))
        rows = np.flatnonzero(is_in.to_numpy(zero_copy_only=False))
        positions.append(rows + shard.first)
        seen |= {f"{source}/{key}" for key in keys.take(pa.array(rows)).to_pylist()}
    return np.concatenate(positions), seen


def _rows_of(shard: Shard, column: str) -> pa.Array:
    table = columns.read(shard.uri, [column])
    if column not in table.column_names:
        raise CurateError(f"{shard.uri}: no column {column!r}, which the selection's settings need")
    return table[column].slice(shard.start, shard.rows).combine_chunks().cast(pa.string())


# Copies


def copies_of(
    found: Embedded, first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of images that are, byte for byte, one that comes before them in plan order, or one
    of those at `first`; and of those that are an image of the target set. Both sorted.

    By 128 bits of their SHA-256. An image that is a copy has the embedding of the other, so that no
    rule could have taken it before that.
    """
    ranges = max(1, found.open_images // DIGESTS_AT_ONCE)
    read = _digests.options(num_returns=ranges)
    groups = [
        (found.open[start : start + SHARDS_AT_ONCE], False)
        for start in range(0, len(found.open), SHARDS_AT_ONCE)
    ] + [(found.target, True)]
    made = [read.remote(group, ranges, is_target) for group, is_target in groups]
    by_range = [list(parts) for parts in zip(*made, strict=True)] if ranges > 1 else [made]
    known = ray.put(np.sort(first))
    pairs = results([_copies.remote(known, *parts) for parts in by_range])
    copies, of_target = (np.sort(np.concatenate(part)) for part in zip(*pairs, strict=True))
    return copies, of_target


@ray.remote
def _digests(group: list[Shard], ranges: int, is_target: bool) -> list[NDArray] | NDArray:
    parts = [np.empty(0, COPY)]
    for shard in group:
        digests = _rows_of(shard, "sha256")
        made = np.empty(shard.rows, COPY)
        made["high"], made["low"] = _numbers(digests)
        made["position"] = OF_TARGET if is_target else shard.first + np.arange(shard.rows)
        parts.append(made)
    found = np.concatenate(parts)
    if ranges == 1:
        return found
    place = (found["high"] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)
    return [found[place == number] for number in range(ranges)]


def _numbers(digests: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 128 bits of hexadecimal digests, as two numbers each."""
    text = "".join(digest[:KEPT_HEX] for digest in digests.to_pylist())
    numbers = np.frombuffer(bytes.fromhex(text), ">u8").reshape(-1, 2).astype(np.uint64)
    return numbers[:, 0], numbers[:, 1]


@ray.remote
def _copies(
    first: NDArray[np.int64], *parts: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found = np.concatenate(parts)
    position = found["position"]
    # Of equals the target's come first, then those at `first`, then plan order
    behind = np.where(position == OF_TARGET, 0, np.where(np.isin(position, first), 1, 2))
    order = np.lexsort((position, behind, found["low"], found["high"]))
    ordered = found[order]
    new = np.ones(len(ordered), bool)
    new[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (
        ordered["low"][1:] != ordered["low"][:-1]
    )
    leader = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
    theirs = ordered["position"][leader] == OF_TARGET
    own = ordered["position"] != OF_TARGET
    copies = own & ~new & ~theirs
    return ordered["position"][copies], ordered["position"][own & theirs]
