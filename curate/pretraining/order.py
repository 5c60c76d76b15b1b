"""Which images a batch has: a function of (seed, epoch, step), for any number of workers and after
any restart. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from curate.pretraining.plan import TrainingPlan

ORDER = 0  # a stream of random numbers; 1 is that of the views


def order_of(plan: TrainingPlan, epoch: int) -> NDArray[np.int64]:
    """The images' order in an epoch; batches are cut from it, and what is left over is left out."""
    return np.random.default_rng([plan.seed, ORDER, epoch]).permutation(plan.images)


def turns_of(plan: TrainingPlan, epoch: int) -> NDArray[np.int64]:
    """(N, 2) of an epoch: which image, as the second number, and the how-manieth time its set is
    gone through. Of sets with shares of their own, each has its share of every epoch, and its
    images take turns, whatever epoch ends meanwhile."""
    if not plan.sets:
        return np.column_stack([np.full(plan.images, epoch), order_of(plan, epoch)])
    rng = np.random.default_rng([plan.seed, ORDER])
    (images, share), (others, _) = plan.sets
    # Of a share that is no whole number of images, now one more and now one less
    begins = share * plan.images * np.arange(epoch, epoch + 2) + rng.random()
    low, high = (int(begin) for begin in begins)
    mine = _in_turn(plan.seed, 0, images, low, high)
    low, high = plan.images * epoch - low, plan.images * (epoch + 1) - high
    theirs = _in_turn(plan.seed, 1, others, low, high)
    theirs[:, 1] += images  # where they stand
    drawn = np.concatenate([mine, theirs])
    return drawn[order_of(plan, epoch)]


def _in_turn(seed: int, number: int, images: int, low: int, high: int) -> NDArray[np.int64]:
    """(high - low, 2) of a set's endless sequence: turn by turn all its images, each in an order of
    its own."""
    found = [np.empty((0, 2), np.int64)]
    for turn in range(low // images, -(-high // images)):
        order = np.random.default_rng([seed, ORDER, number, turn]).permutation(images)
        part = order[max(low - turn * images, 0) : high - turn * images]
        found.append(np.column_stack([np.full(len(part), turn), part]))
    return np.concatenate(found)


def places_of(
    plan: TrainingPlan, first_step: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """(turn, place) of one rank's images, step by step to the end of training: each rank a run of
    every global batch. No image has the same turn twice."""
    share = plan.batch_size // world
    for epoch in range(first_step // plan.steps_per_epoch, plan.epochs):
        turns = turns_of(plan, epoch).tolist()
        skipped = (
            first_step % plan.steps_per_epoch if epoch * plan.steps_per_epoch < first_step else 0
        )
        left = plan.steps - epoch * plan.steps_per_epoch  # the last epoch may end early
        for step in range(skipped, min(plan.steps_per_epoch, left)):
            start = step * plan.batch_size + rank * share
            yield [(turn, place) for turn, place in turns[start : start + share]]
