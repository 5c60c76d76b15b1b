"""What may be selected, and what must be: by what is known of images, copies, images dropped and
added by hand. On Ray tasks.

where   metadata    ─┐
drop    keys        ─┼──> a bit an image, which every method respects
dedup   digests     ─┘
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
from curate.cluster import over_tasks
from curate.coreset import copies, known
from curate.coreset.allowed import Allowed
from curate.coreset.drawn import RowsOf
from curate.coreset.near import NEAR_COPY, NEAR_EXCLUDED, NEAR_TARGET, Near
from curate.coreset.quotas import NO_GROUP, Quota
from curate.coreset.similarity import widen
from curate.coreset.where import holds
from curate.errors import CurateError, one_line
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Embedded
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings, where
from curate.settings.selection import QuotaSettings

MOST_NEAR = 500_000  # images of a coreset without near copies: 1.25e11 cosines
NOT_WHERE = "not as coreset.where says"


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
    if coreset.where is not None:
        held = _where(coreset.where, found)
        held[added] = True
        allowed = Allowed.of(held)
        left_out[NOT_WHERE] = found.open_images - allowed.count
    eligible = allowed
    allowed = allowed.without(added)
    reasons = {"dropped by hand": _positions("drop", coreset.drop, found)}
    both = np.intersect1d(added, reasons["dropped by hand"])
    if len(both):
        raise CurateError(f"coreset.add: {len(both)} of its images are in coreset.drop too")
    # The embeddings of others may have no digests; then near copies are told by these alone
    if coreset.dedup == "exact" or (
        (coreset.dedup == "near" or found.exclude) and copies.are_known(found)
    ):
        of_excluded, of_target, others = copies.of(found, added, eligible)
        reasons["copies of an excluded image"] = of_excluded
        if coreset.dedup != "none":
            reasons |= {"copies of a target image": of_target, "copies": others}
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
            sources = ", ".join(dict.fromkeys(found.open_sources))
            raise CurateError(f"coreset.{setting}: {one}: not SOURCE/KEY; sources are {sources}")
        by_source.setdefault(source, set()).add(key)
    looked_at = [
        (shard, source)
        for shard, source in zip(found.open, found.open_sources, strict=True)
        if source in by_source
    ]
    parts = over_tasks(_with_keys, looked_at, known.SHARDS_AT_ONCE, by_source)
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
        keys = known.Known(shard, source).texts("key")
        is_in = pc.is_in(keys, value_set=pa.array(sorted(by_source[source]), pa.string()))
        rows = np.flatnonzero(is_in.to_numpy(zero_copy_only=False))
        positions.append(rows + shard.first)
        seen |= {f"{source}/{key}" for key in keys.take(pa.array(rows)).to_pylist()}
    return np.concatenate(positions), seen


# By what is known of them


def _where(text: str, found: Embedded) -> NDArray[np.bool_]:
    """(N,) whether it holds, in plan order."""
    parts = over_tasks(_holding, known.of(found), known.SHARDS_AT_ONCE, text)
    return np.concatenate([np.empty(0, bool), *parts])


@ray.remote
def _holding(group: list[known.Known], text: str) -> NDArray[np.bool_]:
    names = {*where.columns(text)}
    return np.concatenate([holds(text, one.table(names)) for one in group])


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
        names, parts = _values(quota.by, found)
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


def _values(column: str, found: Embedded) -> tuple[list[str], list[NDArray[np.intp]]]:
    """All labels, or values of another column, and of the images of some shards each which of
    them; -1 for none."""
    parts = over_tasks(_encoded, known.of(found), known.SHARDS_AT_ONCE, column)
    names = sorted({name for own, _ in parts for name in own})
    place = {name: number for number, name in enumerate(names)}
    return names, [
        np.array([*(place[name] for name in own), -1], np.intp)[codes] for own, codes in parts
    ]


@ray.remote
def _encoded(group: list[known.Known], column: str) -> tuple[list[str], NDArray[np.int32]]:
    values = pa.chunked_array([one.texts(column) for one in group], pa.string())
    encoded = values.combine_chunks().dictionary_encode()
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
