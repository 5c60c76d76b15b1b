"""The coresets of one open set, for one target or many: passes over its shards, and rounds.

pass     all shards           → a table of lists of candidates, of all targets' centroids
rounds   on each target's     → its coreset, or which lists ran out
refill   another pass for those lists alone, below where they ended, four times as far
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.coreset import similarity
from curate.coreset.candidates import Candidates
from curate.coreset.merge import extend
from curate.coreset.passes import MAX_ENTRIES, Ask, Scanned
from curate.coreset.rounds import RanOut, Selection, run_rounds
from curate.coreset.similarity import Centroids, NotUnit
from curate.errors import CurateError
from curate.runfiles.shards import Shard

GROWTH = 4  # of a list's length, at each refill
ALMOST = 0.5  # a list this far used is refilled along with those that ran out


@dataclass(frozen=True)
class Limits:
    """When the rounds stop. budget: images."""

    tau: float | None
    reference_round: int
    budget: int | None


@dataclass(frozen=True)
class Wanted:
    """A coreset for one target. length: how long its lists are at first; from k and the budget
    where unset."""

    centroids: NDArray[np.floating]  # (K, D), unit rows
    limits: Limits
    length: int | None = None


OnRefill = Callable[[int, int], None]  # is told of lists, length


def select(
    shards: list[Shard],
    centroids: NDArray[np.floating],
    limits: Limits,
    *,
    length: int | None = None,
    on_refill: OnRefill | None = None,
) -> Selection:
    """`select_all` for one target."""
    return select_all(shards, [Wanted(centroids, limits, length)], on_refill=on_refill)[0]


def select_all(
    shards: list[Shard], wanted: list[Wanted], *, on_refill: OnRefill | None = None
) -> list[Selection]:
    """The coreset of all the shards' images for each target, the same as the brute-force definition
    gives. The centroids of all targets are scanned together, and their lists refilled together;
    their rounds know nothing of each other.

    Raises CurateError for embeddings of another width than the centroids, or not of unit norm.
    """
    if not wanted:
        return []
    ready = [_prepared(one.centroids) for one in wanted]
    widths = sorted({one.f32.shape[1] for one in ready})
    if len(widths) > 1:
        raise CurateError(
            f"centroids of widths {', '.join(map(str, widths))}: all targets' must come from one "
            "encoder"
        )
    scanned = Scanned.prepare(shards, similarity.joined(ready))
    total = sum(shard.rows for shard in shards)
    at_most = max(MAX_ENTRIES // scanned.centroids.k, 64)  # the table is for all
    ends = np.cumsum([one.k for one in ready])
    asks = []
    for end, mine, one in zip(ends, ready, wanted, strict=True):
        length = one.length or min(first_length(mine.k, total, one.limits.budget), at_most)
        asks.append(Ask(np.arange(end - mine.k, end), length))
    searches = [
        _Search(one.limits, ask.which, np.full(len(ask.which), ask.length), lists)
        for one, ask, lists in zip(wanted, asks, scanned.lists(asks), strict=True)
    ]
    running = searches
    while running := [search for search in running if not search.ends()]:
        refills = [search.refill() for search in running]
        if on_refill:
            longest = max(ask.length for ask in refills)
            on_refill(sum(len(ask.which) for ask in refills), longest)
        for search, ask, more in zip(running, refills, scanned.lists(refills), strict=True):
            search.lists = extend(search.lists, more, ask.which - search.which[0])
    return [search.selection for search in searches if search.selection is not None]


def _prepared(centroids: NDArray[np.floating]) -> Centroids:
    try:
        return similarity.prepare(centroids)
    except NotUnit as error:
        raise CurateError(f"centroids: {error}; L2-normalise them") from error


def first_length(k: int, total: int, budget: int | None) -> int:
    """How long lists are at first: enough for most selections, little enough for memory."""
    # A threshold lets in a share of the open set, so that lists are walked the farther the more
    # images there are
    likely = max(100_000 // k, total // 5_000, 64)
    if budget is not None:
        # B / k rounds if no pick coincided; lists are walked faster than that, by what others took
        likely = max(likely, 3 * budget // k)
    return min(likely, max(MAX_ENTRIES // k, 64))


@dataclass
class _Search:
    """One target's lists under way, and what came of them."""

    limits: Limits
    which: NDArray[np.intp]  # its centroids, a range of those of all targets
    lengths: NDArray[np.intp]  # (K,) how long each list was asked to be
    lists: Candidates
    outcome: Selection | RanOut | None = None

    @property
    def selection(self) -> Selection | None:
        return self.outcome if isinstance(self.outcome, Selection) else None

    def ends(self) -> bool:
        """Run the rounds; whether the lists are long enough for them."""
        self.outcome = run_rounds(
            self.lists,
            tau=self.limits.tau,
            reference_round=self.limits.reference_round,
            budget=self.limits.budget,
        )
        return isinstance(self.outcome, Selection)

    def refill(self) -> Ask:
        """The lists that ran out, and those that soon will: a pass costs much the same for more."""
        assert isinstance(self.outcome, RanOut)
        soon = (self.outcome.used > ALMOST) & ~np.isneginf(self.lists.floor.similarity)
        soon[self.outcome.centroids] = True
        which = np.flatnonzero(soon)
        self.lengths[which] *= GROWTH
        longest = int(self.lengths[which].max())
        return Ask(self.which[which], longest, self.lists.floor.only(which))
