"""What a selection goes by, and the selections that go by a density ratio, on Ray.

ratio      the images of the highest ratio
gate       SimCore's rounds, among the images of the highest ratio alone
resample   a sample of the open set, drawn by its ratio
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curate.coreset import centroids, ratio
from curate.coreset.allowed import Allowed
from curate.coreset.constraints import Constraints
from curate.coreset.drawn import draw, rows_at
from curate.coreset.on_ray import OnRefill, Wanted, select_all
from curate.coreset.quotas import OVER_QUOTA, Room
from curate.coreset.ratio import Linear, Noisy, Score, Stop
from curate.coreset.rounds import Limits, Selection, StoppedBecause
from curate.coreset.scored import best_by, counts_above
from curate.coreset.similarity import prepare, widen
from curate.errors import CurateError
from curate.runfiles.shards import Shard
from curate.settings import CoresetSettings

log = logging.getLogger(__name__)

SAMPLED = 100_000  # images of the open set that a ratio is estimated from
SEED = 0  # of that sample
MORE = 4  # times as many images are looked at, where quotas leave too few of them
TAKEN_AT_ONCE = 1024  # images, of a ranking
LEAST_HALF = 20  # target images in each half, to stop by


@dataclass(frozen=True)
class Guide:
    """centroids (K, D) of the target set, score: whichever the method goes by; budget: images, of a
    budget that is estimated."""

    centroids: NDArray[np.float32] | None = None
    score: Score | None = None
    budget: int | None = None


def guide_of(
    coreset: CoresetSettings, target: NDArray[np.floating], open_set: list[Shard]
) -> Guide:
    """target (T, D), unit rows. Raises CurateError for a target set that is too small."""
    guide = Guide()
    if coreset.uses_centroids:
        try:
            own = centroids.centroids(target, coreset.clusters, coreset.seed)
        except ValueError as error:
            raise CurateError(f"coreset.clusters={coreset.clusters}: {error}") from error
        guide = replace(guide, centroids=own)
    if coreset.uses_ratio:
        sample = draw(open_set, SAMPLED, SEED)
        if target.shape[1] != sample.shape[1]:
            raise CurateError(
                f"target embeddings of width {target.shape[1]}, the open set's of width "
                f"{sample.shape[1]}; both must come from one encoder"
            )
        guide = replace(guide, score=_estimate(coreset, target, sample))
        if coreset.budget == "auto":
            guide = replace(guide, budget=_auto(coreset, target, sample, open_set))
    return guide


def _estimate(
    coreset: CoresetSettings, target: NDArray[np.floating], sample: NDArray[np.floating]
) -> Score:
    images, width = target.shape
    if ratio.is_small(images, width):
        log.info(
            "select: %d target images of %d dimensions are few for a ratio; it is shrunk, and "
            "gets better with more of them",
            images,
            width,
        )
    try:
        return ratio.estimate(coreset.ratio, target, sample, coreset.seed)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise CurateError(f"coreset.ratio={coreset.ratio}: {error}") from error


def _auto(
    coreset: CoresetSettings,
    target: NDArray[np.floating],
    sample: NDArray[np.floating],
    open_set: list[Shard],
) -> int:
    """Images: each half of the target says where the other half's estimate stops."""
    if len(target) < 2 * LEAST_HALF:
        raise CurateError(
            f"coreset.budget=auto: needs {2 * LEAST_HALF} target images, not {len(target)}; "
            "give a budget"
        )
    taken, there = [], []
    for mine, other in (ratio.halves(len(target)), ratio.halves(len(target))[::-1]):
        score = _estimate(coreset, target[mine], sample)
        stop = Stop.of(score.exact(widen(target[other])))
        count, like = stop.count(counts_above(open_set, score, stop.bars))
        taken.append(count)
        there.append(like)
    budget = round(float(np.mean(taken)))
    log.info(
        "select: budget auto: %d images; about %d of the open set look like the target",
        budget,
        np.mean(there),
    )
    return budget


def select_by(
    coreset: CoresetSettings,
    guide: Guide,
    shards: list[Shard],
    limits: Limits,
    within: Constraints,
    on_refill: OnRefill,
) -> Selection:
    """By a method that uses a ratio."""
    assert guide.score is not None and limits.budget is not None
    score, allowed = guide.score, within.allowed
    if coreset.method == "resample":
        score = Noisy(score, coreset.seed)
    if coreset.method != "gate":
        return _fitting(score, shards, limits.budget, within, on_refill)
    assert guide.centroids is not None
    images = sum(shard.rows for shard in shards)
    size = ratio.gate_size(coreset.gate, limits.budget, images)
    let_in = _best(score, shards, size, allowed, on_refill).position
    wanted = Wanted(guide.centroids, limits, quotas=within.quotas, near=within.near)
    behind = Allowed.only(let_in, images)
    return select_all(shards, [wanted], allowed=behind, on_refill=on_refill)[0]


def _fitting(
    score: Score, shards: list[Shard], count: int, within: Constraints, on_refill: OnRefill
) -> Selection:
    """The best that quotas and copies leave room for, one after the other."""
    room, near = Room(within.quotas), within.near
    asked, seen, number = count, 0, 0
    taken: list[NDArray[np.intp]] = []
    while True:
        found = _best(score, shards, asked, within.allowed, on_refill)
        if not within.quotas and near is None:
            return found
        # The first ones are those of the call before
        while number < count and seen < len(found.position):
            some = found.position[seen : seen + TAKEN_AT_ONCE]
            left = count - number
            if near is None:
                fits = room.fitting(some, left)
            else:
                fits = near.fitting(some, room.taking(some), left)
            taken.append(seen + np.flatnonzero(fits))
            number += len(taken[-1])
            seen += len(some)
        if number == count or found.stopped_because == "open set used up":
            break
        asked = MORE * asked
    rows = np.concatenate([np.empty(0, np.intp), *taken])
    passed = int(rows[-1]) + 1 if number == count and number else seen
    copies = {} if near is None else near.passed_over
    left_out = {OVER_QUOTA: passed - number - sum(copies.values()), **copies}
    assert found.similarity is not None
    return replace(
        found,
        position=found.position[rows],
        similarity=found.similarity[rows],
        left_out={why: n for why, n in left_out.items() if n},
    )


def _best(
    score: Score, shards: list[Shard], count: int, allowed: Allowed | None, on_refill: OnRefill
) -> Selection:
    if not isinstance(score, Linear):
        position, value = best_by(shards, score, count, allowed)
        why: StoppedBecause = "budget" if len(position) == count else "open set used up"
        return Selection(position, None, None, value, [], why)
    # One direction is scanned as one centroid is
    wanted = Wanted(score.direction[None], Limits(None, 1, count), by_score=True)
    [found] = select_all(shards, [wanted], allowed=allowed, on_refill=on_refill)
    assert found.similarity is not None
    return replace(found, similarity=score.of_similarity(found.similarity))


def with_added(
    chosen: Selection, added: NDArray[np.int64], guide: Guide, shards: list[Shard]
) -> Selection:
    """The selection behind these images, as if a round 0 had taken them. added: sorted."""
    position = np.concatenate([added, chosen.position])
    if chosen.similarity is None:
        return replace(chosen, position=np.sort(position))
    rows = widen(rows_at(shards, added))
    if chosen.centroid is None or chosen.round is None:
        assert guide.score is not None
        own = guide.score.exact(rows)
        return replace(
            chosen, position=position, similarity=np.concatenate([own, chosen.similarity])
        )
    assert guide.centroids is not None
    similarity = rows.astype(np.float64) @ prepare(guide.centroids).f64.T
    nearest = similarity.argmax(axis=1)
    return replace(
        chosen,
        position=position,
        centroid=np.concatenate([nearest.astype(np.int32), chosen.centroid]),
        round=np.concatenate([np.zeros(len(added), np.int32), chosen.round]),
        similarity=np.concatenate([similarity.max(axis=1), chosen.similarity]),
    )
