"""Selections of several targets from one open set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from curate.coreset import stage
from curate.runfiles.run import Run
from curate.runfiles.summary import Summary
from curate.settings import CoresetSettings


def test_targets_chosen_together_are_each_chosen_alone(
    merged_run: tuple[dict[str, Any], Summary],
) -> None:
    """Of other centroids, budgets in shares of other target sets, and other methods."""
    found = stage.embedded(Run.open(merged_run[0]["output"]))
    cut = replace(found, target=[replace(found.target[0], rows=10)])
    asked: list[tuple[dict[str, Any], Any]] = [
        ({"clusters": 3, "tau": 0.9}, found),
        ({"method": "random", "budget": 0.25, "seed": 3}, found),
        ({"clusters": 2, "tau": None, "budget_times_target": 1.0}, cut),
        ({"method": "oracle", "labels": ["class1", "b"]}, found),
        ({"clusters": 2, "tau": None, "budget_times_target": 1.0}, found),
        ({"method": "ratio", "budget": 7}, found),
        ({"method": "gate", "clusters": 2, "tau": None, "budget": 5}, cut),
        ({"method": "resample", "budget": 5}, found),
    ]
    coresets = [CoresetSettings(**coreset) for coreset, _ in asked]
    sets = [one for _, one in asked]
    guides = [stage.guide_of(one, coreset) for coreset, one in zip(coresets, sets, strict=True)]
    together = stage.choose_all(coresets, sets, guides)
    for one, *alone in zip(together, coresets, sets, guides, strict=True):
        other = stage.choose(*alone)
        assert np.array_equal(one.position, other.position)
        assert (one.rounds, one.stopped_because) == (other.rounds, other.stopped_because)
    assert len(together[4].position) == found.target_images
    assert len(together[2].position) == cut.target_images < found.target_images
