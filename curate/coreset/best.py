"""The first images of a single list: what a score selects, without rounds."""

from __future__ import annotations

import numpy as np

from curate.coreset.lists import Lists
from curate.coreset.rounds import RanOut, Selection


class Best:
    """In the place of Rounds."""

    def __init__(self, lists: Lists, budget: int | None) -> None:
        assert lists.k == 1 and budget is not None
        self.lists, self.budget = lists, budget

    def run(self) -> Selection | RanOut:
        there, whole = int(self.lists.lengths[0]), bool(self.lists.whole[0])
        if there < self.budget and not whole:
            return RanOut(np.zeros(1, np.intp), self.lists.lengths, None, there)
        entries = self.lists.all_of(0)[: self.budget]
        return Selection(
            entries["position"].copy(),
            None,
            None,
            entries["similarity"].copy(),
            [],
            "budget" if there >= self.budget else "open set used up",
        )
