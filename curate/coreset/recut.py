"""Other limits on a run that is done, from the candidates that it kept: no image is read again, and
no embedding as far as its lists reach. Where a limit goes deeper, they are continued, and kept.

f(S_t) does not depend on τ, only where it stops does: one selection at the lowest τ holds them all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.coreset import stage
from curate.coreset.rounds import Selection, StoppedBecause
from curate.coreset.rules import Guide
from curate.errors import CurateError
from curate.runfiles.run import Embedded, Run
from curate.settings import CoresetSettings
from curate.settings.base import Budget
from curate.settings.load import validated

TIMES_TARGET = 50.0  # of a run without a budget: as far as the authors go
STEPS = 10


@dataclass(frozen=True)
class Limits:
    """What differs from the run; unset, it is the run's. tau: "none" for no threshold."""

    tau: float | str | None = None
    budget: Budget | None = None
    reference_round: int | None = None

    @property
    def name(self) -> str:
        """Of the manifest."""
        said = {"tau": self.tau, "budget": self.budget, "reference": self.reference_round}
        values = [(key, value) for key, value in said.items() if value is not None]
        return "_".join(
            f"{key}-{value:g}" if isinstance(value, float) else f"{key}-{value}"
            for key, value in values
        )

    def on(self, coreset: CoresetSettings) -> CoresetSettings:
        """The run's selection under these. Raises CurateError where there is nothing to change."""
        changes: dict[str, Any] = {}
        if self.tau is not None:
            changes["tau"] = None if self.tau == "none" else self.tau
        if self.budget is not None:
            changes |= {"budget": self.budget, "budget_times_target": None}
        if self.reference_round is not None:
            changes["reference_round"] = self.reference_round
        if not changes:
            raise CurateError("recut: nothing to change; give --tau, --budget or --reference-round")
        return validated(CoresetSettings, coreset.model_dump() | changes, "recut")


@dataclass(frozen=True)
class Cut:
    """What a threshold selects."""

    tau: float
    selected: int
    rounds: int
    stopped_because: StoppedBecause


def recut(output: str, limits: Limits) -> str:
    """`curate recut`: write the manifest of a run under other limits to `output`/recut, and return
    a line on what came of it.

    Raises CurateError where there is no run by rounds, or its files do not fit.
    """
    started = time.monotonic()
    run = Run.open(output)
    coreset = limits.on(run.settings.coreset)
    found = stage.embedded(run)
    chosen = _choose(run, coreset, found)
    uri = run.files.recut(limits.name)
    rounds_took = time.monotonic() - started
    stage.write_manifest(uri, coreset, found, chosen)
    return (
        f"{len(chosen.position):,} of {found.open_images:,} images in "
        f"{len(chosen.rounds):,} rounds, stopped by: {chosen.stopped_because}, "
        f"{rounds_took:.1f} s, and {time.monotonic() - started - rounds_took:.1f} s to write: {uri}"
    )


def sweep(run: Run) -> list[Cut]:
    """What ten thresholds would select, the run's own among them, from the strictest on."""
    coreset = run.settings.coreset
    if coreset.budget is None and coreset.budget_times_target is None:
        coreset = coreset.model_copy(update={"budget_times_target": TIMES_TARGET})
    taus = thresholds(coreset.tau)
    lowest = coreset.model_copy(update={"tau": taus[-1]})
    chosen = _choose(run, lowest, stage.embedded(run))
    return [cut(chosen, tau, coreset.reference_round) for tau in taus]


def _choose(run: Run, coreset: CoresetSettings, found: Embedded) -> Selection:
    guide = Guide(_centroids(run))
    return stage.choose(coreset, found, guide, stage.kept_of(run, found, guide))


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
