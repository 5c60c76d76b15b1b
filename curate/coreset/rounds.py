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
from curate.coreset.quotas import OVER_QUOTA, Quota, Room

MOST_READ = 4096  # entries of a list at a time
MOST_HELD = 1 << 21  # of all lists: 32 MB
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
    objective that ends the selection, where the reference round is behind."""

    centroids: NDArray[np.intp]
    used: NDArray[np.int64]
    threshold: float | None


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
    ) -> None:
        """images: of the whole open set; threshold: an objective that ends the selection, known
        beforehand."""
        self.lists = lists
        self.limits = limits
        self.threshold = -math.inf if threshold is None else threshold
        self.rounds: list[Round] = []
        self._picks = _Picks()
        self._room = Room(quotas or [])
        self._walks = _Walks(lists, images, self._room)

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
                return RanOut(dry, self.used(), known)
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
        added = _within(owners, walks, room, self._room)
        number = len(self.rounds) + 1
        self._picks.add(number, added, walks.position[added], walks.similarity[added])
        walks.take(walks.position[owners])
        self.rounds.append(Round(number, objective, len(added), self._picks.count))

    def _selection(self, why: StoppedBecause, objective: float | None = None) -> Selection:
        position, centroid, number, similarity = self._picks.columns()
        found = Selection(position, centroid, number, similarity, self.rounds, why, objective)
        if not self._room.is_bound:
            return found
        behind = np.setdiff1d(self._walks.behind(), position)
        left_out = int(self._room.is_full(behind).sum())
        return replace(found, left_out={OVER_QUOTA: left_out} if left_out else {})


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


def _within(
    owners: NDArray[np.intp], walks: _Walks, budget: int | None, room: Room
) -> NDArray[np.intp]:
    """The owners; where there is room for some, of the most similar images, ties by plan order."""
    if not room.is_bound and (budget is None or len(owners) <= budget):
        return owners
    ordered = owners[np.lexsort((walks.position[owners], -walks.similarity[owners]))]
    fitting = ordered[room.fitting(walks.position[ordered])]
    return np.sort(fitting[:budget])


class _Walks:
    """Where each centroid's walk stands: position and similarity (K,) of its head.

    Of each list a few entries are held, (K, B) arrays, those not that were taken when they were
    read. The position after a list's last is `images`, which no round takes.
    """

    def __init__(self, lists: Lists, images: int, room: Room) -> None:
        k = lists.k
        self.lists, self.end, self._room = lists, images, room
        self.position = np.full(k, images, np.int64)
        self.similarity = np.full(k, -np.inf)
        self._taken = np.zeros(images // 8 + 1, np.uint8)
        self._block = int(np.clip(MOST_HELD // max(k, 1), 64, MOST_READ))
        self._positions = np.empty((k, self._block), np.int64)
        self._similarities = np.empty((k, self._block))
        self._at = np.zeros(k, np.intp)  # of the head, in what is held
        self._held = np.zeros(k, np.intp)
        self._read = np.zeros(k, np.int64)  # entries of the list

    def to_next(self) -> NDArray[np.intp]:
        """Move every head to the first entry that is not taken; which lists end before."""
        at_end = self.position == self.end
        moving = np.flatnonzero(at_end | self._is_taken(self.position))
        while len(moving):
            # One that stood at the end may have more to read by now, and nothing to step over
            self._at[moving] += self.position[moving] != self.end
            for q in moving[self._at[moving] >= self._held[moving]].tolist():
                self._load(q)
            there = self._held[moving] > 0
            ended = moving[~there]
            self.position[ended], self.similarity[ended] = self.end, -np.inf
            moving = moving[there]
            self.position[moving] = self._positions[moving, self._at[moving]]
            self.similarity[moving] = self._similarities[moving, self._at[moving]]
            moving = moving[self._is_taken(self.position[moving])]
        return np.flatnonzero(self.position == self.end)

    def used(self) -> NDArray[np.int64]:
        """Entries of each list that are behind, about: those that were taken when read count."""
        return self._read - np.maximum(self._held - self._at, 0)

    def take(self, position: NDArray[np.int64]) -> None:
        """Distinct images."""
        np.bitwise_or.at(self._taken, position >> 3, _bit(position))

    def _is_taken(self, position: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Or cannot be any more; never the position after the last."""
        taken: NDArray[np.bool_] = (self._taken[position >> 3] & _bit(position)) != 0
        if self._room.is_bound:
            inside = ~taken & (position != self.end)
            taken[inside] = self._room.is_full(position[inside])
        return taken

    def behind(self) -> NDArray[np.int64]:
        """Distinct images, sorted, that some head has passed, or stands on and they are taken."""
        passed = [np.empty(0, np.int64)]
        for q in range(self.lists.k):
            start = 0
            while start < self._read[q]:
                entries = self.lists.read(q, start, int(self._read[q]) - start)["position"]
                at = np.flatnonzero(entries == self.position[q])
                start += len(entries)
                if len(at):
                    passed.append(entries[: at[0] + int(self._is_taken(entries[at])[0])])
                    break
                passed.append(entries)
        return np.unique(np.concatenate(passed))

    def _load(self, q: int) -> None:
        """The list's next entries that are not taken; none where it ends."""
        self._at[q] = self._held[q] = 0
        while not self._held[q]:
            entries = self.lists.read(q, int(self._read[q]), self._block)
            if not len(entries):
                return
            self._read[q] += len(entries)
            left = entries[~self._is_taken(entries["position"])]
            self._positions[q, : len(left)] = left["position"]
            self._similarities[q, : len(left)] = left["similarity"]
            self._held[q] = len(left)


def _bit(position: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.left_shift(1, position & 7).astype(np.uint8)


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
