"""The figures of a selection from the embeddings of its run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.coreset.drawn import draw, rows_at, some_of
from curate.coreset.figures import Figures, figures
from curate.runfiles.embeddings import read_embeddings
from curate.runfiles.run import Embedded

LOOKED_AT = 20_000  # images of a selection, chosen by a hash
SAMPLED = 10_000  # of the open set
SEED = 2  # of both; estimates that select are made from another sample


def figures_of(found: Embedded, positions: NDArray[np.int64]) -> Figures:
    """positions: of the selected images, in plan order. The same whatever the shards."""
    if not len(positions) or not found.target:
        return Figures(*[None] * 6)
    target = np.concatenate([block for shard in found.target for block in read_embeddings(shard)])
    selected = rows_at(found.open, some_of(positions, LOOKED_AT, SEED))
    return figures(selected, target, draw(found.open, SAMPLED, SEED))
