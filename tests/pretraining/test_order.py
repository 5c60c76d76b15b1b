"""How often images of sets with shares of their own are seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest

from curate.errors import CurateError
from curate.pretraining.order import places_of, turns_of
from curate.pretraining.plan import TrainingPlan, make_plan, sets_of
from curate.settings import EncoderSettings, TrainingSettings


def plan_of(
    sets: tuple[tuple[int, float], ...], batch: int = 7, seed: int = 0, epochs: int = 30
) -> TrainingPlan:
    settings = TrainingSettings(epochs=epochs, batch_size=batch, seed=seed)
    images = sum(count for count, _ in sets)
    size = {"images": images, "open_images": 0, "workers": 1, "section": "pretrain"}
    return replace(make_plan(settings, EncoderSettings(), **size), sets=sets)


SETS = [
    ((30, 0.5), (470, 0.5)),
    ((3, 0.9), (200, 0.1)),
    ((400, 0.123), (11, 0.877)),
    ((1, 1 / 3), (99, 2 / 3)),
]


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_exact_and_images_take_turns(
    sets: tuple[tuple[int, float], ...], seed: int
) -> None:
    plan = plan_of(sets, seed=seed)
    (images, share), (others, _) = sets
    times: Counter[int] = Counter()
    for epoch in range(plan.epochs):
        turns = [tuple(row) for row in turns_of(plan, epoch).tolist()]
        assert len(turns) == plan.images == images + others
        mine = sum(place < images for _, place in turns)
        assert abs(mine - share * plan.images) < 1
        times.update(place for _, place in turns)
        # As often as any other of its set, give or take one
        for places in (range(images), range(images, plan.images)):
            seen = [times[place] for place in places]
            assert max(seen) - min(seen) <= 1
    total = sum(times[place] for place in range(images))
    assert abs(total - share * plan.images * plan.epochs) < 1


@pytest.mark.parametrize("sets", SETS)
def test_no_image_has_a_turn_twice(sets: tuple[tuple[int, float], ...]) -> None:
    """Its views would be the same."""
    plan = plan_of(sets)
    every = [pair for epoch in range(plan.epochs) for pair in map(tuple, turns_of(plan, epoch))]
    assert len(set(every)) == len(every)


def test_for_any_number_of_workers_and_after_a_restart() -> None:
    plan = plan_of(SETS[0], batch=8)
    whole = list(places_of(plan, 0, 0, 1))
    assert len(whole) == plan.steps
    ranks = [list(places_of(plan, 0, rank, 4)) for rank in range(4)]
    assert [[*chain(*parts)] for parts in zip(*ranks, strict=True)] == whole
    for step in (1, 62, 63, 1000):
        assert list(places_of(plan, step, 0, 1)) == whole[step:]
    assert list(places_of(replace(plan, seed=1), 0, 0, 1)) != whole


def test_orders_differ_from_epoch_to_epoch() -> None:
    plan = plan_of(SETS[0])
    assert turns_of(plan, 0)[:, 1].tolist() != turns_of(plan, 1)[:, 1].tolist()
    first, last = turns_of(plan, 0)[:250, 1], turns_of(plan, 0)[250:, 1]
    assert (first < 30).any() and (last < 30).any(), "sets are mixed"


def test_without_shares_all_are_seen_alike() -> None:
    plan = plan_of(((500, 1.0),))
    plan = replace(plan, sets=())
    turns = turns_of(plan, 3)
    assert (turns[:, 0] == 3).all() and sorted(turns[:, 1]) == list(range(500))
    assert plan.seen() == [plan.steps * 7 / 500]


def test_sets_of_a_training() -> None:
    data = ["target", "coreset"]
    assert sets_of(data, None, 100, 90, "pretrain") == ()
    assert sets_of(data, [0.3, 0.7], 100, 90, "pretrain") == ((10, 0.3), (90, 0.7))
    assert sets_of(data[::-1], [0.7, 0.3], 100, 90, "pretrain") == ((90, 0.7), (10, 0.3))
    with pytest.raises(CurateError, match="shares: coreset has no image to train on"):
        sets_of(data, [0.5, 0.5], 100, 0, "pretrain")
    plan = plan_of(((10, 0.3), (90, 0.7)), batch=10, epochs=20)
    assert plan.seen() == pytest.approx([60, 200 * 10 * 0.7 / 90])
