"""What may be selected, and what must be: copies, images dropped and added by hand. On Ray tasks.

drop    keys        ─┐
dedup   digests     ─┴──> a bit an image, which every method respects
add     keys        ───> positions, which are in the coreset before its first round
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from curate import storage
from curate.cluster import over_tasks, results
from curate.coreset.allowed import Allowed
from curate.coreset.drawn import RowsOf
from curate.coreset.near import NEAR_COPY, NEAR_EXCLUDED, NEAR_TARGET, Near
from curate.coreset.quotas import NO_GROUP, Quota
from curate.coreset.similarity import widen
from curate.errors import CurateError, one_line
from curate.runfiles import columns
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings
from curate.settings.selection import QuotaSettings

SHARDS_AT_ONCE = 64  # that one task opens
DIGESTS_AT_ONCE = 4_000_000  # that one task sorts
KEPT_HEX = 32  # digits of a SHA-256: 128 bits tell a trillion images apart
COPY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
MOST_NEAR = 500_000  # images of a coreset without near copies: 1.25e11 cosines
EXCLUDED, OF_TARGET = -2, -1  # positions of such images: before all of the open set's


@dataclass(frozen=True)
class Constraints:
    """allowed: None for all images; quotas: less what `added` takes of them; near: knows `added`
    and the target set; added: positions, sorted, none of them allowed any more; left_out: images
    that are not allowed, by reason. For one selection: `near` learns what it picks."""

    allowed: Allowed | None = None
    quotas: list[Quota] = field(default_factory=list)
    near: Near | None = None
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: dict[str, int] = field(default_factory=dict)


def there_are(coreset: CoresetSettings, found: Embedded) -> bool:
    return coreset.is_constrained or bool(found.exclude)


def of(coreset: CoresetSettings, found: Embedded, budget: int | None) -> Constraints:
    """budget: images, with those that are added.

    Raises CurateError for keys and groups that no embedded image has, and digests that are not
    there.
    """
    if not there_are(coreset, found):
        return Constraints()
    allowed = Allowed.all_of(found.open_images)
    left_out: dict[str, int] = {}
    added = _positions("add", coreset.add, found)
    allowed = allowed.without(added)
    reasons = {"dropped by hand": _positions("drop", coreset.drop, found)}
    both = np.intersect1d(added, reasons["dropped by hand"])
    if len(both):
        raise CurateError(f"coreset.add: {len(both)} of its images are in coreset.drop too")
    # The embeddings of others may have no digests; then near copies are told by these alone
    if coreset.dedup == "exact" or (
        (coreset.dedup == "near" or found.exclude) and _has_digests(found)
    ):
        of_excluded, of_target, copies = copies_of(found, added)
        reasons["copies of an excluded image"] = of_excluded
        if coreset.dedup != "none":
            reasons |= {"copies of a target image": of_target, "copies": copies}
    for reason, positions in reasons.items():
        before, allowed = allowed.count, allowed.without(positions)
        if before > allowed.count:
            left_out[reason] = before - allowed.count
    quotas = [_quota(one, found, budget, added) for one in coreset.quotas or []]
    return Constraints(allowed, quotas, _near(coreset, found, budget, added), added, left_out)


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


# Quotas


def _quota(
    quota: QuotaSettings, found: Embedded, budget: int | None, added: NDArray[np.int64]
) -> Quota:
    """Raises CurateError for groups that no image is in."""
    if quota.by == "source":
        names = list(dict.fromkeys(found.open_sources))
        own = [np.array([names.index(source)]) for source in found.open_sources]
        parts = [np.repeat(code, shard.rows) for code, shard in zip(own, found.open, strict=True)]
    else:
        names, parts = _labels(found.open)
    bound = set(names if quota.of is None else quota.of)
    unknown = sorted(bound - set(names))
    if unknown:
        raise CurateError(f"coreset.quotas: no image of the open set has {quota.by} {unknown[0]}")
    # Names that are not bound, and images without one, are in no group
    numbers = {name: number for number, name in enumerate(sorted(bound), NO_GROUP + 1)}
    kind = np.min_scalar_type(len(numbers))
    code_of = np.array([*(numbers.get(name, NO_GROUP) for name in names), NO_GROUP], kind)
    codes = np.concatenate([np.empty(0, kind), *(code_of[part] for part in parts)])
    assert not isinstance(quota.most, float) or budget is not None
    most = round(quota.most * (budget or 0)) if isinstance(quota.most, float) else quota.most
    room = np.full(len(numbers) + 1, most, np.int64)
    room[NO_GROUP] = np.iinfo(np.int64).max
    return Quota(codes, room - np.bincount(codes[added], minlength=len(room)))


def _labels(shards: list[Shard]) -> tuple[list[str], list[NDArray[np.intp]]]:
    """All labels, and of the images of some shards each which of them; -1 for none."""
    parts = over_tasks(_encoded, shards, SHARDS_AT_ONCE)
    names = sorted({name for own, _ in parts for name in own})
    place = {name: number for number, name in enumerate(names)}
    return names, [
        np.array([*(place[name] for name in own), -1], np.intp)[codes] for own, codes in parts
    ]


@ray.remote
def _encoded(group: list[Shard]) -> tuple[list[str], NDArray[np.int32]]:
    column = pa.chunked_array([_rows_of(shard, "label") for shard in group], pa.string())
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return encoded.dictionary.to_pylist(), codes.astype(np.int32)


# Copies


def _near(
    coreset: CoresetSettings, found: Embedded, budget: int | None, added: NDArray[np.int64]
) -> Near | None:
    rows, others = RowsOf(found.open), {}
    if found.exclude:
        others[NEAR_EXCLUDED] = _rows(found.exclude)
    learns = coreset.dedup == "near"
    if learns:
        if budget is None or budget > MOST_NEAR:
            raise CurateError(
                "coreset.dedup=near: holds each image against all before it; set a budget of at "
                f"most {MOST_NEAR:,} images, or dedup=exact"
            )
        others[NEAR_TARGET] = _rows(found.target)
        if len(added):
            others[NEAR_COPY] = rows(added)
    return Near(coreset.near, rows, others, learns) if others else None


def _rows(shards: Sequence[Shard]) -> NDArray[np.float32]:
    return widen(np.concatenate([block for shard in shards for block in read_embeddings(shard)]))


def _has_digests(found: Embedded) -> bool:
    first = [shards[0] for shards in (found.target, found.open, found.exclude) if shards]
    return all("sha256" in columns.read(shard.uri, ["sha256"]).column_names for shard in first)


def copies_of(
    found: Embedded, first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positions of images that are, byte for byte, an excluded image; an image of the target set;
    one that comes before them in plan order, or one of those at `first`. All sorted.

    By 128 bits of their SHA-256. An image that is a copy has the embedding of the other, so that no
    rule could have taken it before that.
    """
    ranges = max(1, found.open_images // DIGESTS_AT_ONCE)
    read = _digests.options(num_returns=ranges)
    sets = ((found.open, 0), (found.target, OF_TARGET), (found.exclude, EXCLUDED))
    groups = [
        (list(shards[start : start + SHARDS_AT_ONCE]), number)
        for shards, number in sets
        for start in range(0, len(shards), SHARDS_AT_ONCE)
    ]
    made = [read.remote(group, ranges, number) for group, number in groups]
    by_range = [list(parts) for parts in zip(*made, strict=True)] if ranges > 1 else [made]
    known = ray.put(np.sort(first))
    found_by_range = results([_copies.remote(known, *parts) for parts in by_range])
    of_excluded, of_target, copies = (
        np.sort(np.concatenate(part)) for part in zip(*found_by_range, strict=True)
    )
    return of_excluded, of_target, copies


@ray.remote
def _digests(group: list[Shard], ranges: int, instead: int) -> list[NDArray] | NDArray:
    """instead: of a position, the number of a set that has none; 0 for the open set's."""
    parts = [np.empty(0, COPY)]
    for shard in group:
        digests = _rows_of(shard, "sha256")
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
    text = "".join(digest[:KEPT_HEX] for digest in digests.to_pylist())
    numbers = np.frombuffer(bytes.fromhex(text), ">u8").reshape(-1, 2).astype(np.uint64)
    return numbers[:, 0], numbers[:, 1]


@ray.remote
def _copies(
    first: NDArray[np.int64], *parts: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    found = np.concatenate(parts)
    position = found["position"]
    # Of equals the excluded come first, the target's, those at `first`, then plan order
    behind = np.where(position < 0, position, np.where(np.isin(position, first), 1, 2))
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
