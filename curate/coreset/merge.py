"""Lists of candidates merge: the first m of a union are the first m of the firsts m.

Associative and commutative, so that a tree of any shape over any number of shards gives one result.
"""

from __future__ import annotations

import numpy as np

from curate.coreset.candidates import Candidates, Floor, Lengths, best, is_below


def merge(parts: list[Candidates], lengths: Lengths) -> Candidates:
    """The candidates of all the parts' images together, at most `lengths` of each list.

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
        lengths,
    )
