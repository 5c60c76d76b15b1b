"""The rounds against the brute-force definition, and what happens when lists are too short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset.candidates import Candidates, Floor, scan
from curate.coreset.lists import Lists, piece_of
from curate.coreset.rounds import Limits, RanOut, Rounds, Selection
from curate.coreset.similarity import Centroids, prepare
from curate.int8 import Block
from tests.oracles import brute_force_rounds, same_selection, unit_rows

seeds = st.integers(0, 2**32)
taus = st.sampled_from([None, 0.0, 0.3, 0.8, 0.95, 1.0])
budgets = st.one_of(st.none(), st.integers(0, 70))
references = st.sampled_from([1, 2, 20])
SPREADS = (0.0, 1.0)  # how far the open set leans towards the target: objectives of either sign


def random_problem(
    seed: int, n: int, k: int, d: int
) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Half of the images are copies; some problems lie in one direction, some all around."""
    rng = np.random.default_rng(seed)
    lean = float(rng.choice(SPREADS))
    open_set = unit_rows(rng, n, d, duplicates=0.5, lean=lean)
    centroids = unit_rows(rng, k, d, duplicates=0.2, lean=lean)
    return rng, open_set, centroids


def best_of(
    open_set: np.ndarray, centroids: Centroids, length: int, after: Floor | None = None
) -> Candidates:
    k = centroids.k
    return scan(
        Block(open_set),
        0,
        centroids,
        lengths=np.full(k, length),
        floor=Floor.bottom(k),
        after=after,
    )


def lists_of(open_set: np.ndarray, centroids: np.ndarray, length: int) -> Lists:
    found = best_of(open_set, prepare(centroids), length)
    lists = Lists(len(centroids))
    lists.add(piece_of(found, np.arange(len(centroids))))
    return lists


def rounds_on(
    open_set: np.ndarray, centroids: np.ndarray, length: int, **limits: float | None
) -> Selection | RanOut:
    given = Limits(**({"tau": None, "reference_round": 1, "budget": None} | limits))
    return Rounds(lists_of(open_set, centroids, length), len(open_set), given).run()


@given(seeds, st.integers(0, 50), st.integers(1, 8), st.integers(1, 6), taus, references, budgets)
def test_equal_to_brute_force(
    seed: int,
    n: int,
    k: int,
    d: int,
    tau: float | None,
    reference_round: int,
    budget: int | None,
) -> None:
    _, open_set, centroids = random_problem(seed, n, k, d)
    limits = {"tau": tau, "reference_round": reference_round, "budget": budget}
    outcome = rounds_on(open_set, centroids, max(n, 1), **limits)
    same_selection(outcome, brute_force_rounds(open_set, centroids, **limits))


@given(
    seeds,
    st.integers(1, 50),
    st.integers(1, 8),
    st.integers(1, 30),
    st.integers(1, 10),
    taus,
    references,
    budgets,
    st.integers(1, 5),
)
def test_rounds_on_short_lists_go_on_when_these_are_longer(
    seed: int,
    n: int,
    k: int,
    length: int,
    more: int,
    tau: float | None,
    reference_round: int,
    budget: int | None,
    block: int,
) -> None:
    """The same as on whole lists, however often they run out, and however little is read of them at
    a time."""
    rng, open_set, centroids = random_problem(seed, n, k, 3)
    limits = {"tau": tau, "reference_round": reference_round, "budget": budget}
    ready, lists = prepare(centroids), lists_of(open_set, centroids, length)
    rounds = Rounds(lists, n, Limits(**limits))
    rounds._walks._block = min(block, rounds._walks._block)
    while isinstance(outcome := rounds.run(), RanOut):
        assert len(outcome.centroids) > 0
        assert (outcome.used[outcome.centroids] == lists.lengths[outcome.centroids]).all()
        assert ((outcome.used >= 0) & (outcome.used <= lists.lengths)).all()
        # A list of everything never runs out: it ends the selection
        assert not lists.whole[outcome.centroids].any()
        which = np.union1d(outcome.centroids, np.flatnonzero(~lists.whole & (rng.random(k) < 0.5)))
        found = best_of(open_set, ready.only(which), more, after=lists.floor.only(which))
        lists.add(piece_of(found, which))
    same_selection(outcome, brute_force_rounds(open_set, centroids, **limits))


def test_more_centroids_than_images() -> None:
    rng = np.random.default_rng(0)
    open_set, centroids = unit_rows(rng, 5, 4), unit_rows(rng, 40, 4)
    outcome = rounds_on(open_set, centroids, 5, tau=None, reference_round=1, budget=None)
    assert isinstance(outcome, Selection)
    assert sorted(outcome.position) == [0, 1, 2, 3, 4]
    assert outcome.stopped_because == "open set used up"


def test_one_centroid_takes_one_image_a_round() -> None:
    rng = np.random.default_rng(0)
    open_set, centroid = unit_rows(rng, 30, 4, duplicates=0.5), unit_rows(rng, 1, 4)
    outcome = rounds_on(open_set, centroid, 30, tau=None, reference_round=1, budget=12)
    assert isinstance(outcome, Selection)
    assert outcome.round.tolist() == list(range(1, 13))
    assert (np.diff(outcome.similarity) <= 0).all()


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_the_round_under_the_threshold_is_not_added(tau: float) -> None:
    rng = np.random.default_rng(0)
    open_set, centroids = unit_rows(rng, 200, 8), unit_rows(rng, 5, 8)
    outcome = rounds_on(open_set, centroids, 200, tau=tau, reference_round=1, budget=None)
    assert isinstance(outcome, Selection)
    threshold = tau * outcome.rounds[0].objective
    assert outcome.stopped_because == "threshold"
    assert outcome.stopping_objective is not None
    assert outcome.stopping_objective < threshold <= outcome.rounds[-1].objective


def test_a_tie_at_the_budget_goes_by_plan_order() -> None:
    images = np.eye(2, dtype=np.float16)
    outcome = rounds_on(images, images[::-1], 2, tau=None, reference_round=1, budget=1)
    same_selection(outcome, brute_force_rounds(images, images[::-1], budget=1))
    assert isinstance(outcome, Selection)
    assert (outcome.position.tolist(), outcome.centroid.tolist()) == ([0], [1])
