"""Lists of candidates merge: the first m of a union are the first m of the firsts m.

Associative and commutative, so that a tree of any shape over any number of shards gives one result.
"""

from __future__ import annotations

import numpy as np

from curate.coreset.candidates import Candidates, Floor, best, is_below


def merge(parts: list[Candidates], length: int) -> Candidates:
    """The candidates of all the parts' images together, at most `length` a list.

    Complete down to the highest of the parts' floors: below it, some part may know of more.
    """
    floor = parts[0].floor
    for part in parts[1:]:
        higher = is_below(floor.similarity, floor.position, part.floor)
        floor = Floor(
            np.where(higher, part.floor.similarity, floor.similarity),
            np.where(higher, part.floor.position, floor.position),
        )
    return best(
        Candidates(
            np.concatenate([part.centroid for part in parts]),
            np.concatenate([part.similarity for part in parts]),
            np.concatenate([part.position for part in parts]),
            floor,
        ),
        length,
    )


def extend(candidates: Candidates, more: Candidates, which: np.ndarray) -> Candidates:
    """Continue some lists below their floors.

    which (R,): the centroids of `candidates` that lists 0 … R-1 of `more` continue.
    """
    floor = Floor(candidates.floor.similarity.copy(), candidates.floor.position.copy())
    floor.similarity[which] = more.floor.similarity
    floor.position[which] = more.floor.position
    joined = Candidates(
        np.concatenate([candidates.centroid, which[more.centroid].astype(np.int32)]),
        np.concatenate([candidates.similarity, more.similarity]),
        np.concatenate([candidates.position, more.position]),
        floor,
    )
    return best(joined, length=len(joined.centroid) + 1)
