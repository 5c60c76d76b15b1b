"""Images that are another, byte for byte: by their digests, sorted in ranges on Ray tasks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curate.cluster import results
from curate.coreset import known
from curate.coreset.allowed import Allowed
from curate.coreset.known import Known
from curate.runfiles import columns
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard

DIGESTS_AT_ONCE = 4_000_000  # that one task sorts
KEPT_HEX = 32  # digits of a SHA-256: 128 bits tell a trillion images apart
COPY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
EXCLUDED, OF_TARGET = -2, -1  # positions of such images: before all of the open set's


def are_known(found: Embedded) -> bool:
    """Whether there are digests: the embeddings of others may have none."""
    first = [shards[0] for shards in (found.target, found.open, found.exclude) if shards]
    return all("sha256" in columns.read(shard.uri, ["sha256"]).column_names for shard in first)


def of(
    found: Embedded, first: NDArray[np.int64], allowed: Allowed
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positions of images that are, byte for byte, an excluded image; an image of the target set;
    one of those at `first`, or one that is allowed and comes before them in plan order. All sorted.

    By 128 bits of their SHA-256. An image that is a copy has the embedding of the other, so that no
    rule could have taken it before that.
    """
    ranges = max(1, found.open_images // DIGESTS_AT_ONCE)
    read = _digests.options(num_returns=ranges)
    sets = ((found.open, 0), (found.target, OF_TARGET), (found.exclude, EXCLUDED))
    groups = [
        (list(shards[start : start + known.SHARDS_AT_ONCE]), number)
        for shards, number in sets
        for start in range(0, len(shards), known.SHARDS_AT_ONCE)
    ]
    made = [read.remote(group, ranges, number) for group, number in groups]
    by_range = [list(parts) for parts in zip(*made, strict=True)] if ranges > 1 else [made]
    ahead, may = ray.put(np.sort(first)), ray.put(allowed)
    found_by_range = results([_copies.remote(ahead, may, *parts) for parts in by_range])
    of_excluded, of_target, copies = (
        np.sort(np.concatenate(part)) for part in zip(*found_by_range, strict=True)
    )
    return of_excluded, of_target, copies


@ray.remote
def _digests(group: list[Shard], ranges: int, instead: int) -> list[NDArray] | NDArray:
    """instead: of a position, the number of a set that has none; 0 for the open set's."""
    parts = [np.empty(0, COPY)]
    for shard in group:
        digests = Known(shard, "").texts("sha256")
        made = np.empty(shard.rows, COPY)
        made["high"], made["low"] = _numbers(digests)
        made["position"] = instead or shard.first + np.arange(shard.rows)
        parts.append(made)
    found = np.concatenate(parts)
    if ranges == 1:
        return found
    place = (found["high"] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)
    return [found[place == number] for number in range(ranges)]


def _numbers(digests: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 128 bits of hexadecimal digests, as two numbers each."""
    text = pc.binary_slice(digests.cast(pa.binary()), 0, KEPT_HEX).cast(pa.binary(KEPT_HEX))
    letters = np.frombuffer(text.buffers()[1], np.uint8)[text.offset * KEPT_HEX :]
    digits = (letters & 15) + 9 * (letters >> 6)  # of 0…9 and a…f
    numbers = (digits[0::2] << 4 | digits[1::2])[: len(text) * KEPT_HEX // 2].view(">u8")
    return numbers[0::2].astype(np.uint64), numbers[1::2].astype(np.uint64)


@ray.remote
def _copies(
    first: NDArray[np.int64], allowed: Allowed, *parts: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    found = np.concatenate(parts)
    position = found["position"]
    # Of equals the excluded come first, the target's, those at `first`, those that are allowed,
    # then plan order
    own = np.where(allowed.holds(np.maximum(position, 0)), 2, 3)
    behind = np.where(position < 0, position, np.where(np.isin(position, first), 1, own))
    order = np.lexsort((position, behind, found["low"], found["high"]))
    ordered = found[order]
    new = np.ones(len(ordered), bool)
    new[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (
        ordered["low"][1:] != ordered["low"][:-1]
    )
    leader = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
    of, position = ordered["position"][leader], ordered["position"]
    own = position >= 0
    return (
        position[own & (of == EXCLUDED)],
        position[own & (of == OF_TARGET)],
        position[own & (of >= 0) & ~new],
    )
