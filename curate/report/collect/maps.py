"""Target, open set and coreset, a sample of each, in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from curate.coreset import projection
from curate.coreset.projection import Floats
from curate.errors import CurateError
from curate.report.collect import sampling
from curate.report.collect.sampling import Rows, spread
from curate.report.collect.subject import Subject
from curate.report.content import Cloud, Map

MAPPED = 1500  # images of each set
OUTLINED = (0.9, 0.5)  # of a set's mass
SEED = 0


def maps(subject: Subject) -> list[Map]:
    """By PCA, and by UMAP where that is installed."""
    sets = _samples(subject)
    compared = min(map(len, sets.values()))
    nearness = _nearness(sets, compared)
    matrices = list(sets.values())
    flat, shown = projection.pca(matrices)
    about = f"The two directions hold {shown:.0%} of the variance.".replace("%", " %")
    pictures = [("PCA", about, flat)]
    try:
        flat = projection.umap(matrices, SEED)
    except ImportError:
        pass
    else:
        about = "UMAP keeps neighbours together; distances between groups say little."
        pictures.append(("UMAP", about, flat))
    return [
        Map(method, about, *_clouds(dict(zip(sets, flat, strict=True))), nearness, compared)
        for method, about, flat in pictures
    ]


def _samples(subject: Subject) -> dict[str, Rows]:
    """(N, D) embeddings of each set that has any."""
    found, selected = subject.embedded, subject.manifest
    positions = selected.numbers("position")[spread(len(selected), MAPPED)]
    sets = {
        "open": sampling.of_set(found.open, MAPPED, SEED),
        "target": sampling.of_set(found.target, MAPPED, SEED),
        "coreset": sampling.at_positions(found.open, positions, SEED),
    }
    sets = {name: rows for name, rows in sets.items() if len(rows)}
    if "target" not in sets or "open" not in sets:
        raise CurateError("there are no embeddings to draw")
    return sets


def _nearness(sets: Mapping[str, Rows], compared: int) -> dict[str, float]:
    """Of as many images of each set to the target set."""
    rng = np.random.default_rng(SEED)
    equal = {name: rng.permutation(rows)[:compared] for name, rows in sets.items()}
    near = {name: projection.nearness(sets["target"], rows) for name, rows in equal.items()}
    return {name: value for name, value in near.items() if name != "target" and value is not None}


def _clouds(flat: Mapping[str, Floats]) -> tuple[list[Cloud], dict[str, float]]:
    """(N, 2) of each set → what is drawn of it; and how far the target's density overlaps with
    those of the others."""
    box = projection.frame(list(flat.values()))
    grid = projection.grid(box)
    densities, clouds = {}, []
    for name, points in flat.items():
        density = projection.density(points, grid)
        outlines = []
        if density is not None and density.any():
            densities[name] = density
            levels = [projection.level_of(density, mass) for mass in OUTLINED]
            outlines = [projection.outlines(density, level) for level in levels]
        inside = (points - box[:2]) / box[2:]
        seen = ((inside >= 0) & (inside <= 1)).all(axis=1)
        clouds.append(Cloud(name, inside[seen], outlines))
    target = densities.pop("target", None)
    if target is None:
        return clouds, {}
    return clouds, {name: projection.overlap(target, one) for name, one in densities.items()}
