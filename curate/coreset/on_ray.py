"""The coresets of one open set, for one target or many: passes over its shards, and rounds.

sample   a few rows           → how far down each list the rounds will go, about
pass     all shards           → a piece of each of those lists, of all targets' centroids
rounds   on each target's     → its coreset, or which lists ran out
refill   another pass for those lists alone, below where they ended, and the rounds go on
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from curate.coreset import similarity
from curate.coreset.allowed import Allowed
from curate.coreset.best import Best
from curate.coreset.candidates import Floor
from curate.coreset.grown import grow
from curate.coreset.kept import Kept
from curate.coreset.lists import Lists, Piece
from curate.coreset.near import Near
from curate.coreset.passes import Ask, one_pass
from curate.coreset.quotas import Quota
from curate.coreset.rounds import Limits, RanOut, Rounds, Selection
from curate.coreset.sample import Sample, spared
from curate.coreset.similarity import Centroids, NotUnit
from curate.errors import CurateError
from curate.runfiles.shards import Shard

MAX_ENTRIES = 4_000_000  # of first lists, where nothing tells how long they need to be: 64 MB
GROWTH = 4  # of a list's length, at a refill of which the sample does not say how far
DEEPER = 1.2  # than a list is, to be believed of the sample
ALMOST = 0.5  # a list this far used is refilled along with those that ran out, if it will too
SPARE = 2  # times what it will be used


@dataclass(frozen=True)
class Wanted:
    """A coreset for one target.

    length: how long its lists are at first; as the sample says where unset. kept: where its lists
    are kept, and may be found; in memory, and for this once, where unset.
    """

    centroids: NDArray[np.floating]  # (K, D), unit rows
    limits: Limits
    length: int | None = None
    kept: Kept | None = None
    by_score: bool = False  # the first images of its one list, without rounds
    quotas: list[Quota] = field(default_factory=list)
    near: Near | None = None  # of which this selection is the only user


OnRefill = Callable[[int, int], None]  # is told of lists, and of images that the longest gets


def select(
    shards: list[Shard],
    centroids: NDArray[np.floating],
    limits: Limits,
    *,
    length: int | None = None,
    kept: Kept | None = None,
    on_refill: OnRefill | None = None,
) -> Selection:
    """`select_all` for one target."""
    wanted = Wanted(centroids, limits, length, kept)
    return select_all(shards, [wanted], on_refill=on_refill)[0]


def select_all(
    shards: list[Shard],
    wanted: list[Wanted],
    *,
    allowed: Allowed | None = None,
    on_refill: OnRefill | None = None,
) -> list[Selection]:
    """The coreset of all the shards' images for each target, the same as the brute-force definition
    gives. The centroids of all targets are scanned together, and their lists refilled together;
    their rounds know nothing of each other.

    allowed: the open set is these images alone, where it is given.

    Raises CurateError for embeddings of another width than the centroids, or not of unit norm.
    """
    if not wanted:
        return []
    open_set = _OpenSet(shards, _joined([_prepared(one.centroids) for one in wanted]), allowed)
    ends = np.cumsum([len(one.centroids) for one in wanted])
    searches = [
        _Search(one, np.arange(end - len(one.centroids), end), open_set)
        for end, one in zip(ends, wanted, strict=True)
    ]
    new = [search for search in searches if not search.finds_kept()]
    _pass(open_set, new, [search.first() for search in new])
    running = searches
    while running := [search for search in running if not search.ends()]:
        refills = [search.refill() for search in running]
        if on_refill:
            longest = max(int(ask.lengths.max()) for ask in refills)
            on_refill(sum(len(ask.which) for ask in refills), longest)
        _pass(open_set, running, refills)
    return [search.selection for search in searches]


def _pass(open_set: _OpenSet, searches: list[_Search], asks: list[Ask]) -> None:
    if not asks:
        return
    found = one_pass(open_set.shards, open_set.centroids, asks, open_set.allowed)
    for search, ask, pieces in zip(searches, asks, found, strict=True):
        search.add(pieces, ask)


def _prepared(centroids: NDArray[np.floating]) -> Centroids:
    try:
        return similarity.prepare(centroids)
    except NotUnit as error:
        raise CurateError(f"centroids: {error}; L2-normalise them") from error


def _joined(ready: list[Centroids]) -> Centroids:
    widths = sorted({one.f32.shape[1] for one in ready})
    if len(widths) > 1:
        raise CurateError(
            f"centroids of widths {', '.join(map(str, widths))}: all targets' must come from one "
            "encoder"
        )
    return similarity.joined(ready)


@dataclass(frozen=True)
class _OpenSet:
    """All shards, the centroids of all targets, and which images there are."""

    shards: list[Shard]
    centroids: Centroids
    allowed: Allowed | None

    @property
    def images(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def sample(self) -> Sample | None:
        return Sample.take(self.shards, self.centroids, self.allowed)


def first_length(k: int, total: int, budget: int | None) -> int:
    """How long lists are at first, where no sample tells: enough for most selections, little enough
    for memory."""
    # A threshold lets in a share of the open set, so that lists are walked the farther the more
    # images there are
    likely = max(100_000 // k, total // 5_000, 64)
    if budget is not None:
        # B / k rounds if no pick coincided; lists are walked faster than that, by what others took
        likely = max(likely, 3 * budget // k)
    return min(likely, max(MAX_ENTRIES // k, 64))


class _Search:
    """One target's lists under way, and what came of them."""

    def __init__(self, wanted: Wanted, which: NDArray[np.intp], open_set: _OpenSet) -> None:
        """which: its centroids, a range of those of all targets."""
        self.wanted, self.which, self.open_set = wanted, which, open_set
        self._begin(Lists(len(which)))
        self._asked = np.zeros(len(which))  # ranks in the sample
        self.outcome: Selection | RanOut | None = None

    def _begin(self, lists: Lists) -> None:
        self.lists = lists
        self.rounds: Rounds | Best
        if self.wanted.by_score:
            self.rounds = Best(lists, self.wanted.limits.budget)
        else:
            wanted, images = self.wanted, self.open_set.images
            self.rounds = Rounds(
                lists, images, wanted.limits, quotas=wanted.quotas, near=wanted.near
            )

    @property
    def selection(self) -> Selection:
        assert isinstance(self.outcome, Selection)
        return self.outcome

    def finds_kept(self) -> bool:
        """Whether an earlier selection left lists, of these shards or of others of the same
        encoder: then those of these are made of them."""
        kept = self.wanted.kept
        found = None if kept is None else kept.read()
        if kept is not None and found is None:
            kept.begin(self.open_set.shards)
        if kept is None or found is None:
            return False
        lists, made_of = found
        centroids = self.open_set.centroids.only(self.which)
        pieces = grow(lists, made_of, self.open_set.shards, centroids, kept)
        if pieces is not None:
            lists = Lists(lists.k)
            for piece in pieces:
                lists.add(piece)
        self._begin(lists)
        return True

    def add(self, pieces: list[Piece], ask: Ask) -> None:
        local = ask.which - self.which[0]
        own = [Piece(local[p.which], p.lengths, p.floor, p.held) for p in pieces]
        for piece in own:
            self.lists.add(piece)
        if self.wanted.kept is not None:
            self.wanted.kept.add(own)

    def ends(self) -> bool:
        """Run the rounds; whether the lists are long enough for them."""
        self.outcome = self.rounds.run()
        return isinstance(self.outcome, Selection)

    def first(self) -> Ask:
        """The lists before anything is known of them."""
        k, sample = len(self.which), self._sample()
        limits, given = self.wanted.limits, self.wanted.length
        lengths = np.full(k, given or first_length(k, self.open_set.images, limits.budget))
        if sample is None:
            return self._ask(np.arange(k), lengths, Floor.bottom(k))
        ranks = lengths / sample.every
        if given is None and limits.budget is not None:
            said = sample.ranks(limits.budget, None, self.wanted.quotas)
            # A threshold may end it long before the budget does
            ranks = said if limits.tau is None else np.minimum(ranks, said)
        self._asked = ranks = spared(ranks)
        return self._ask(np.arange(k), ranks * sample.every, sample.floor(ranks))

    def refill(self) -> Ask:
        """The lists that ran out, and those that soon will: a pass costs much the same for more."""
        assert isinstance(self.outcome, RanOut)
        lists, sample = self.lists, self._sample()
        growth = self._growth(self.outcome)
        soon = (growth > 1) & ~lists.whole
        if sample is None:
            which = np.flatnonzero(soon)
            more = (growth - 1) * np.maximum(lists.lengths, 1)
            return self._ask(which, more[which], Floor.bottom(len(which)))
        there = sample.rank_of(lists.floor)
        ranks: NDArray[np.float64] = growth * np.maximum(np.maximum(there, self._asked), 1)
        limits, threshold = self.wanted.limits, self.outcome.threshold
        if self.wanted.length is None and (limits.budget is not None or threshold is not None):
            said = sample.ranks(limits.budget, threshold, self.wanted.quotas)
            deeper = said > DEEPER * there + 1
            ranks[deeper] = said[deeper]
            soon |= deeper & ~lists.whole
        which = np.flatnonzero(soon)
        ranks = spared(ranks)
        self._asked[which] = ranks[which]
        more = (ranks - there) * sample.every
        return self._ask(which, more[which], sample.only(which).floor(ranks[which]))

    def _growth(self, out: RanOut) -> NDArray[np.float64]:
        """(K,) how many times as long lists are to be that ran out, or will before the budget is
        taken, if they are walked as until now; 1 for the others."""
        growth = np.where(out.used > ALMOST * self.lists.lengths, float(GROWTH), 1.0)
        budget = self.wanted.limits.budget
        if budget is not None:
            still = (
                SPARE * out.used * (budget / max(out.taken, 1)) / np.maximum(self.lists.lengths, 1)
            )
            growth = np.minimum(growth, np.maximum(still, 1.0))
        growth[out.centroids] = GROWTH
        return growth

    def _sample(self) -> Sample | None:
        sample = self.open_set.sample
        return None if sample is None else sample.only(self.which)

    def _ask(self, which: NDArray[np.intp], more: NDArray[np.floating], floor: Floor) -> Ask:
        """which, of this target's: of how many more images each list is to be."""
        after = None if self.lists.is_empty else self.lists.floor.only(which)
        kept = self.wanted.kept
        lengths = np.clip(np.ceil(np.minimum(more, self.open_set.images)), 1, None).astype(np.intp)
        uri = None if kept is None else kept.pattern()
        return Ask(self.which[which], lengths, floor, after, uri)
