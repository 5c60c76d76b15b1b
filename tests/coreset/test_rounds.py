"""The rounds against the brute-force definition, and what happens when lists are too short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.coreset.candidates import Floor, scan
from curate.coreset.rounds import RanOut, Selection, run_rounds
from curate.coreset.similarity import prepare
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
    lists = scan(open_set, 0, prepare(centroids), length=max(n, 1), floor=Floor.bottom(k))
    same_selection(run_rounds(lists, **limits), brute_force_rounds(open_set, centroids, **limits))


@given(seeds, st.integers(1, 50), st.integers(1, 8), st.integers(1, 30), taus, budgets)
def test_short_lists_give_the_answer_or_say_that_they_ran_out(
    seed: int, n: int, k: int, length: int, tau: float | None, budget: int | None
) -> None:
    _, open_set, centroids = random_problem(seed, n, k, 3)
    limits = {"tau": tau, "reference_round": 1, "budget": budget}
    lists = scan(open_set, 0, prepare(centroids), length=length, floor=Floor.bottom(k))
    outcome = run_rounds(lists, **limits)
    if isinstance(outcome, Selection):
        same_selection(outcome, brute_force_rounds(open_set, centroids, **limits))
        return
    assert isinstance(outcome, RanOut)
    assert len(outcome.centroids) > 0
    assert (outcome.used[outcome.centroids] == 1).all()
    assert ((outcome.used >= 0) & (outcome.used <= 1)).all()
    # A list of everything never runs out: it ends the selection
    assert not np.isneginf(lists.floor.similarity[outcome.centroids]).any()


def test_more_centroids_than_images() -> None:
    rng = np.random.default_rng(0)
    open_set, centroids = unit_rows(rng, 5, 4), unit_rows(rng, 40, 4)
    lists = scan(open_set, 0, prepare(centroids), length=5, floor=Floor.bottom(40))
    outcome = run_rounds(lists, tau=None, reference_round=1, budget=None)
    assert isinstance(outcome, Selection)
    assert sorted(outcome.position) == [0, 1, 2, 3, 4]
    assert outcome.stopped_because == "open set used up"


def test_one_centroid_takes_one_image_a_round() -> None:
    rng = np.random.default_rng(0)
    open_set, centroid = unit_rows(rng, 30, 4, duplicates=0.5), unit_rows(rng, 1, 4)
    lists = scan(open_set, 0, prepare(centroid), length=30, floor=Floor.bottom(1))
    outcome = run_rounds(lists, tau=None, reference_round=1, budget=12)
    assert isinstance(outcome, Selection)
    assert outcome.round.tolist() == list(range(1, 13))
    assert (np.diff(outcome.similarity) <= 0).all()


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_the_round_under_the_threshold_is_not_added(tau: float) -> None:
    rng = np.random.default_rng(0)
    open_set, centroids = unit_rows(rng, 200, 8), unit_rows(rng, 5, 8)
    lists = scan(open_set, 0, prepare(centroids), length=200, floor=Floor.bottom(5))
    outcome = run_rounds(lists, tau=tau, reference_round=1, budget=None)
    assert isinstance(outcome, Selection)
    threshold = tau * outcome.rounds[0].objective
    assert outcome.stopped_because == "threshold"
    assert outcome.stopping_objective is not None
    assert outcome.stopping_objective < threshold <= outcome.rounds[-1].objective


def test_a_tie_at_the_budget_goes_by_plan_order() -> None:
    images = np.eye(2, dtype=np.float16)
    lists = scan(images, 0, prepare(images[::-1]), length=2, floor=Floor.bottom(2))
    outcome = run_rounds(lists, tau=None, reference_round=1, budget=1)
    same_selection(outcome, brute_force_rounds(images, images[::-1], budget=1))
    assert isinstance(outcome, Selection)
    assert (outcome.position.tolist(), outcome.centroid.tolist()) == ([0], [1])
