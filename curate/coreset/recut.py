"""Other thresholds on a run that is done: its embeddings and centroids, no image read again.

f(S_t) does not depend on τ, only where it stops does: one selection at the lowest τ holds them all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.coreset import stage
from curate.coreset.rounds import Selection, StoppedBecause
from curate.errors import CurateError
from curate.runfiles.run import Run

TIMES_TARGET = 50.0  # of a run without a budget: as far as the authors go
STEPS = 10


@dataclass(frozen=True)
class Cut:
    """What a threshold selects."""

    tau: float
    selected: int
    rounds: int
    stopped_because: StoppedBecause


def recut(output: str, tau: float) -> str:
    """`curate recut`: write the manifest that `tau` gives under `output`/recut, and return a line
    on what came of it.

    Raises CurateError where there is no run by rounds, or its files do not fit.
    """
    started = time.monotonic()
    run = Run.open(output)
    centres = _centroids(run)
    coreset = run.settings.coreset.model_copy(update={"tau": tau})
    found = stage.embedded(run)
    chosen = stage.choose(coreset, found, centres)
    uri = run.files.recut(tau)
    stage.write_manifest(uri, coreset, found, chosen)
    return (
        f"{len(chosen.position):,} of {found.open_images:,} images in "
        f"{len(chosen.rounds):,} rounds, stopped by: {chosen.stopped_because}, "
        f"{time.monotonic() - started:.1f} s: {uri}"
    )


def sweep(run: Run) -> list[Cut]:
    """What ten thresholds would select, the run's own among them, from the strictest on."""
    coreset = run.settings.coreset
    if coreset.budget is None and coreset.budget_times_target is None:
        coreset = coreset.model_copy(update={"budget_times_target": TIMES_TARGET})
    taus = thresholds(coreset.tau)
    lowest = coreset.model_copy(update={"tau": taus[-1]})
    chosen = stage.choose(lowest, stage.embedded(run), _centroids(run))
    return [cut(chosen, tau, coreset.reference_round) for tau in taus]


def thresholds(own: float | None) -> list[float]:
    """Ten values from 0.98 down by 0.02, of which the nearest to the run's own gives way to it."""
    values = [round(0.98 - 0.02 * step, 2) for step in range(STEPS)]
    if own is not None:
        nearest = min(range(STEPS), key=lambda i: abs(values[i] - own))
        values[nearest] = own
    return sorted(values, reverse=True)


def cut(longest: Selection, tau: float, reference_round: int) -> Cut:
    """What `tau` makes of a selection by rounds under a lower threshold."""
    objectives = [one.objective for one in longest.rounds]
    if longest.stopping_objective is not None:
        objectives.append(longest.stopping_objective)
    for number, objective in enumerate(objectives, 1):
        if number >= reference_round and objective < tau * objectives[reference_round - 1]:
            total = longest.rounds[number - 2].total if number > 1 else 0
            return Cut(tau, total, number - 1, "threshold")
    return Cut(tau, len(longest.position), len(longest.rounds), longest.stopped_because)


def _centroids(run: Run) -> NDArray[np.float32]:
    coreset = run.settings.coreset
    if coreset.method != "simcore":
        raise CurateError(
            f"coreset.method={coreset.method}: has no threshold; recut a run of method simcore"
        )
    return stage.read_centroids(run)
