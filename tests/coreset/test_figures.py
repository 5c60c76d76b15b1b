"""Relevance and variety without labels: against slow oracles, and on sets made to differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curate.coreset import drawn, figures_on_ray
from curate.coreset.figures import Figures, figures
from curate.coreset.figures_on_ray import figures_of
from curate.runfiles.run import Embedded
from tests.coreset.test_on_ray import shards_of

D = 16
NOTHING = Figures(None, None, None, None, None, None)


def around(rng: np.random.Generator, centre: np.ndarray, n: int, spread: float) -> np.ndarray:
    rows = centre + spread * rng.standard_normal((n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target images about one direction; an open set of eight directions, that one among them;
    which of these each image is about."""
    rng = np.random.default_rng(0)
    centres = np.eye(D)[:8]
    kinds = rng.integers(0, 8, 4000)
    open_set = np.concatenate([around(rng, centres[kind], 1, 0.12) for kind in kinds])
    return around(rng, centres[0], 100, 0.12), open_set, kinds


def test_half_of_images_like_the_target_are_relevant(
    sets: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    target, open_set, kinds = sets
    like = figures(open_set[kinds == 0], target, open_set[:2000])
    unlike = figures(open_set[kinds == 3], target, open_set[:2000])
    assert like.relevance is not None and abs(like.relevance - 0.5) < 0.12
    assert unlike.relevance == 0
    assert like.relevance_random is not None and abs(like.relevance_random - 0.5 / 8) < 0.03


def test_variety_counts_kinds(sets: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, open_set, kinds = sets
    one, all_ = (figures(open_set[kinds <= last][:400], target, open_set) for last in (0, 7))
    assert one.clusters is not None and all_.clusters is not None
    assert 6 < all_.clusters / one.clusters < 10
    assert all_.clusters_random == pytest.approx(all_.clusters, rel=0.1)


def test_nearest_against_a_loop(sets: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, open_set, _ = sets
    few = open_set[:60].astype(float)
    slow = [max(float(a @ b) for j, b in enumerate(few) if j != i) for i, a in enumerate(few)]
    found = figures(open_set[:60], target, open_set)
    assert found.nearest == pytest.approx(np.mean(slow), abs=1e-5)
    copies = np.concatenate([open_set[:30], open_set[:30]])
    assert figures(copies, target, open_set).nearest == pytest.approx(1, abs=1e-3)


def test_random_images_are_of_all_sources() -> None:
    """The sample comes in plan order, of two sources that lie apart."""
    rng = np.random.default_rng(0)
    sample = np.concatenate([around(rng, centre, 500, 0.05) for centre in np.eye(D)[:2]])
    found = figures(sample[:50], sample[:20], sample)
    assert found.clusters is not None and found.clusters_random is not None
    assert found.clusters_random > 1.3 * found.clusters


def test_what_is_too_small_has_no_figure(sets: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    target, open_set, _ = sets
    few = figures(open_set[:1], target[:7], open_set[:10])
    assert few == NOTHING
    assert figures(open_set[:50], target[:7], open_set).relevance is None


@pytest.mark.usefixtures("ray_session")
def test_the_same_for_any_shards(
    sets: tuple[np.ndarray, np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The selection's order does not count either."""
    target, open_set, _ = sets
    monkeypatch.setattr(figures_on_ray, "LOOKED_AT", 150)
    picks = np.random.default_rng(1).permutation(4000)[:300]
    found = []
    for number, cuts in enumerate(([], [100, 2000, 2001])):
        folder = tmp_path / str(number)
        for name in ("x", "u"):
            (folder / name).mkdir(parents=True)
        shards = (
            shards_of(folder / "x", target, [], ".npy"),
            shards_of(folder / "u", open_set, list(cuts), ".arrow"),
        )
        embedded = Embedded(shards[0], shards[1], [], "")
        found.append(figures_of(embedded, picks[:: 1 - 2 * number]))
        rows = drawn.rows_at(shards[1], np.sort(picks))
        assert (rows == open_set[np.sort(picks)]).all()
    assert found[0] == found[1]
    assert found[0].relevance is not None
    assert figures_of(embedded, np.empty(0, np.int64)) == NOTHING


def test_some_of_are_the_same_in_any_order() -> None:
    positions = np.arange(0, 9000, 3)
    some = drawn.some_of(positions, 500, 1)
    assert (drawn.some_of(positions[::-1], 500, 1) == some).all()
    assert len(np.unique(some)) == 500 and np.isin(some, positions).all()
    assert abs(some.mean() - 4500) < 4 * 9000 / np.sqrt(12 * 500)
    assert (drawn.some_of(positions[:9], 500, 1) == positions[:9]).all()
