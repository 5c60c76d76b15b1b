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


def places_of(
    plan: TrainingPlan, first_step: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """(epoch, place) of one rank's images, step by step to the end of training: each rank a run of
    every global batch."""
    share = plan.batch_size // world
    for epoch in range(first_step // plan.steps_per_epoch, plan.epochs):
        order = order_of(plan, epoch)
        skipped = (
            first_step % plan.steps_per_epoch if epoch * plan.steps_per_epoch < first_step else 0
        )
        left = plan.steps - epoch * plan.steps_per_epoch  # the last epoch may end early
        for step in range(skipped, min(plan.steps_per_epoch, left)):
            start = step * plan.batch_size + rank * share
            yield [(epoch, int(place)) for place in order[start : start + share]]
