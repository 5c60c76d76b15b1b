"""The rounds of SimCore: each centroid takes its most similar image that no earlier round took.

Source: Kim, Bae, Yun, "Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning",
CVPR 2023, Algorithm 1. Written on lists of candidates, which every centroid only walks down, and on
a bit an image for those that are taken: a round costs the centroids' heads, not the open set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from curate.coreset.lists import Lists
from curate.coreset.near import Near
from curate.coreset.quotas import OVER_QUOTA, Quota, Room
from curate.coreset.walks import Walks

JOINED = 1 << 20  # picks of single rounds, before they become one array

StoppedBecause = Literal["threshold", "budget", "open set used up"]


@dataclass(frozen=True)
class Round:
    number: int  # from 1
    objective: float  # f(S_t): the mean similarity of the centroids' picks
    added: int  # images: |S_t|, or what the budget left of it
    total: int  # |I| after it


@dataclass(frozen=True)
class Selection:
    """The coreset, sorted by (round, centroid): one entry an image, all arrays (|I|,)."""

    position: NDArray[np.int64]  # in plan order
    centroid: NDArray[np.int32] | None  # of those that took it in its round, the most similar
    round: NDArray[np.int32] | None
    similarity: NDArray[np.float64] | None
    rounds: list[Round]
    stopped_because: StoppedBecause
    stopping_objective: float | None = None  # the f(S_t) under the threshold
    left_out: dict[str, int] = field(default_factory=dict)  # images that no round could take, why

    @staticmethod
    def of_baseline(position: NDArray[np.int64], stopped_because: StoppedBecause) -> Selection:
        """A selection by other means than rounds: it has positions and nothing else."""
        return Selection(position, None, None, None, [], stopped_because)


@dataclass(frozen=True)
class Limits:
    """When the rounds stop. budget: images."""

    tau: float | None
    reference_round: int
    budget: int | None


@dataclass(frozen=True)
class RanOut:
    """The lists end before the selection does.

    centroids: those that cannot pick; used (K,): how many entries of each list are; threshold: the
    objective that ends the selection, where the reference round is behind; taken: images by then.
    """

    centroids: NDArray[np.intp]
    used: NDArray[np.int64]
    threshold: float | None
    taken: int


class Rounds:
    """The rounds on lists that may turn out too short. Where they did, and are longer, the rounds
    go on where they were."""

    def __init__(
        self,
        lists: Lists,
        images: int,
        limits: Limits,
        *,
        threshold: float | None = None,
        quotas: list[Quota] | None = None,
        near: Near | None = None,
    ) -> None:
        """images: of the whole open set; threshold: an objective that ends the selection, known
        beforehand; quotas, near: what makes rounds skip images as if they were taken."""
        self.lists = lists
        self.limits = limits
        self.threshold = -math.inf if threshold is None else threshold
        self.rounds: list[Round] = []
        self._picks = _Picks()
        self._room, self._near = Room(quotas or []), near
        self._walks = Walks(lists, images, self._room, near)

    def run(self) -> Selection | RanOut:
        """Run rounds until f(S_t) < tau · f(S_reference), the budget, or the end of the open set.

        The round that falls under the threshold is not added. Of one that overshoots the budget, or
        a quota, the most similar images are, ties by plan order.
        """
        walks, budget = self._walks, self.limits.budget
        while budget is None or self._picks.count < budget:
            dry = walks.to_next()
            if len(dry):
                if self.lists.whole[dry].any():
                    # A list of the whole open set is used up only when the open set is
                    return self._selection("open set used up")
                known = None if math.isinf(self.threshold) else self.threshold
                return RanOut(dry, self.used(), known, self._picks.count)
            # fsum: the exact sum, rounded once, in whatever order the centroids stand
            objective = math.fsum(walks.similarity.tolist()) / self.lists.k
            if self._is_below(objective):
                return self._selection("threshold", objective)
            room = None if budget is None else budget - self._picks.count
            self._add(objective, room)
        return self._selection("budget")

    def used(self) -> NDArray[np.int64]:
        """(K,) entries of each list that are behind."""
        return self._walks.used()

    def _is_below(self, objective: float) -> bool:
        if self.limits.tau is not None and len(self.rounds) + 1 == self.limits.reference_round:
            self.threshold = self.limits.tau * objective
            # A negative objective is under its own share
        return objective < self.threshold

    def _add(self, objective: float, room: int | None) -> None:
        walks = self._walks
        owners = _owners(walks.position, walks.similarity)
        added = self._within(owners, room)
        number = len(self.rounds) + 1
        self._picks.add(number, added, walks.position[added], walks.similarity[added])
        walks.take(walks.position[owners])
        self.rounds.append(Round(number, objective, len(added), self._picks.count))

    def _selection(self, why: StoppedBecause, objective: float | None = None) -> Selection:
        position, centroid, number, similarity = self._picks.columns()
        found = Selection(position, centroid, number, similarity, self.rounds, why, objective)
        left_out: dict[str, int] = {}
        if self._room.is_bound:
            behind = np.setdiff1d(self._walks.behind(), position)
            left_out[OVER_QUOTA] = int(self._room.is_full(behind).sum())
        if self._near is not None:
            left_out |= self._near.passed_over
        return replace(found, left_out={why: n for why, n in left_out.items() if n})

    def _within(self, owners: NDArray[np.intp], budget: int | None) -> NDArray[np.intp]:
        """Those of the owners that are added: all, or, where something binds, the most similar
        ones, ties by plan order."""
        bound = self._room.is_bound or self._near is not None
        if not bound and (budget is None or len(owners) <= budget):
            return owners
        walks = self._walks
        ordered = owners[np.lexsort((walks.position[owners], -walks.similarity[owners]))]
        position = walks.position[ordered]
        if self._near is None:
            fitting = self._room.fitting(position, budget)
        else:
            fitting = self._near.fitting(position, self._room.taking(position), budget)
        return np.sort(ordered[fitting])


def _owners(position: NDArray[np.int64], similarity: NDArray[np.float64]) -> NDArray[np.intp]:
    """Of the centroids' picks (K,), those that an image goes to: the most similar one that took it,
    of equals the first. Ascending."""
    order = np.argsort(position, kind="stable")
    ordered = position[order]
    if not (ordered[1:] == ordered[:-1]).any():
        return np.arange(len(position))
    order = np.lexsort((-similarity, position))  # stable: of equals the first
    ordered = position[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.sort(order[first])


class _Picks:
    """What the rounds added, column by column: position, centroid, round, similarity."""

    KINDS = (np.int64, np.int32, np.int32, np.float64)

    def __init__(self) -> None:
        self.count = 0
        self._joined: list[list[NDArray]] = []
        self._loose: list[list[NDArray]] = []
        self._in_loose = 0

    def add(
        self,
        number: int,
        centroid: NDArray[np.intp],
        position: NDArray[np.int64],
        similarity: NDArray[np.float64],
    ) -> None:
        rounds = np.full(len(centroid), number)
        self._loose.append(_as_kinds(position, centroid, rounds, similarity))
        self.count += len(centroid)
        self._in_loose += len(centroid)
        if self._in_loose > JOINED or len(self._loose) > JOINED // 64:
            self._join()

    def _join(self) -> None:
        """An array a round takes more memory than the numbers in it."""
        if self._loose:
            self._joined.append(
                [np.concatenate(column) for column in zip(*self._loose, strict=True)]
            )
        self._loose, self._in_loose = [], 0

    def columns(self) -> list[NDArray]:
        self._join()
        if not self._joined:
            return _as_kinds(*(np.empty(0) for _ in _Picks.KINDS))
        return [np.concatenate(column) for column in zip(*self._joined, strict=True)]


def _as_kinds(*columns: NDArray) -> list[NDArray]:
    return [one.astype(kind) for one, kind in zip(columns, _Picks.KINDS, strict=True)]
