"""The rounds of SimCore: each centroid takes its most similar image that no earlier round took.

Source: Kim, Bae, Yun, "Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning",
CVPR 2023, Algorithm 1. Written on lists of candidates, which every centroid only walks down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.coreset.candidates import Candidates

END = -1  # the position after a list's last
BLOCK = 256

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

    @staticmethod
    def of_baseline(position: NDArray[np.int64], stopped_because: StoppedBecause) -> Selection:
        """A selection by other means than rounds: it has positions and nothing else."""
        return Selection(position, None, None, None, [], stopped_because)


@dataclass(frozen=True)
class RanOut:
    """The lists end before the selection does. For each centroid, how much of its list is used."""

    centroids: NDArray[np.intp]  # those that cannot pick
    used: NDArray[np.float64]  # (K,), 0…1


def run_rounds(
    candidates: Candidates,
    *,
    tau: float | None,
    reference_round: int,
    budget: int | None,
) -> Selection | RanOut:
    """Run rounds until f(S_t) < tau · f(S_reference), the budget, or the end of the open set.

    The round that falls under the threshold is not added. Of one that overshoots the budget the
    most similar images are, ties by plan order.
    """
    k = candidates.k
    walks = [_walk(candidates, start, end) for start, end in pairwise(candidates.starts().tolist())]
    endless = np.isneginf(candidates.floor.similarity)  # lists that hold the whole open set
    heads = [next(walk) for walk in walks]
    taken: set[int] = set()  # in an earlier round
    picks: list[tuple[int, int, int, float]] = []  # position, centroid, round, similarity
    rounds: list[Round] = []
    threshold = -math.inf

    def selection(why: StoppedBecause, objective: float | None = None) -> Selection:
        position, centroid, number, value = zip(*picks, strict=True) if picks else ((),) * 4
        return Selection(
            np.array(position, np.int64),
            np.array(centroid, np.int32),
            np.array(number, np.int32),
            np.array(value, np.float64),
            rounds,
            why,
            objective,
        )

    while budget is None or len(picks) < budget:
        for q, walk in enumerate(walks):
            while heads[q].position in taken:
                heads[q] = next(walk)
        dry = np.array([q for q in range(k) if heads[q].position == END], np.intp)
        if len(dry):
            if endless[dry].any():
                # A list of the whole open set is used up only when the open set is
                return selection("open set used up")
            lengths = np.maximum(np.diff(candidates.starts()), 1)
            return RanOut(dry, np.array([head.rank for head in heads]) / lengths)
        number = len(rounds) + 1
        # fsum: the exact sum, rounded once, in whatever order the centroids stand
        objective = math.fsum(head.similarity for head in heads) / k
        if objective < threshold:
            return selection("threshold", objective)
        if tau is not None and number == reference_round:
            threshold = tau * objective
            if objective < threshold:  # a negative objective is under its own share
                return selection("threshold", objective)

        owners = _owners(heads)
        added = _within(owners, None if budget is None else budget - len(picks))
        picks += [(mine, owners[mine][1], number, owners[mine][0]) for mine in added]
        taken.update(owners)
        rounds.append(Round(number, objective, len(added), len(picks)))
    return selection("budget")


Owners = dict[int, tuple[float, int]]  # image → (similarity, centroid)


def _owners(heads: list[_Head]) -> Owners:
    """The images of a round, each with the most similar centroid that took it, of equals the
    first."""
    owners: Owners = {}
    for q, (_, mine, value) in enumerate(heads):
        if mine not in owners or value > owners[mine][0]:
            owners[mine] = (value, q)
    return owners


def _within(owners: Owners, room: int | None) -> list[int]:
    """The images in the order of their centroids; where there is room for some, the most similar,
    ties by plan order."""
    images = list(owners)
    if room is not None and len(images) > room:
        images = sorted(images, key=lambda mine: (-owners[mine][0], mine))[:room]
    return sorted(images, key=lambda mine: owners[mine][1])


class _Head(NamedTuple):
    """Where a centroid's walk stands."""

    rank: int  # in its list, from 0
    position: int
    similarity: float


def _walk(candidates: Candidates, start: int, end: int) -> Iterator[_Head]:
    """Entries start … end - 1 from the best on, then END for ever.

    In blocks: most of a list is never walked, and Python's numbers take ten times NumPy's memory.
    """
    for low in range(start, end, BLOCK):
        block = slice(low, min(low + BLOCK, end))
        positions = candidates.position[block].tolist()
        yield from map(
            _Head, range(low - start, end), positions, candidates.similarity[block].tolist()
        )
    while True:
        yield _Head(end - start, END, -math.inf)
