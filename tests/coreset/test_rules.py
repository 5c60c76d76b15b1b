"""Selections by a density ratio on Ray: the same for any shards, and those of a brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.coreset import drawn, ratio, rules, sample, scored
from curate.coreset.constraints import Constraints
from curate.coreset.ratio import Linear, Noisy
from curate.coreset.rounds import Limits
from curate.coreset.rules import Guide, guide_of, select_by
from curate.errors import CurateError
from curate.settings import CoresetSettings
from tests.coreset.test_on_ray import shards_of
from tests.oracles import brute_force_rounds, same_selection, unit_rows

pytestmark = pytest.mark.usefixtures("ray_session")

N, D = 700, 8
CUTS: list[list[int]] = [[], [17, 300, 301]]


def quiet(lists: int, length: int) -> None:
    pass


@pytest.fixture(scope="module")
def open_set() -> np.ndarray:
    """With many copies: ties."""
    return unit_rows(np.random.default_rng(5), N, D, duplicates=0.3, lean=0.3)


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    return unit_rows(np.random.default_rng(6), 60, D, lean=0.8)


def best_first(scores: np.ndarray) -> np.ndarray:
    """Positions, ties by position."""
    return np.argsort(-scores, kind="stable")


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", ["linear", "logistic", "kernel"])
@pytest.mark.parametrize("count", [0, 1, 90, N, N + 1])
def test_the_highest_ratios(
    open_set: np.ndarray,
    target: np.ndarray,
    tmp_path: Path,
    cuts: list[int],
    kind: str,
    count: int,
) -> None:
    shards = shards_of(tmp_path, open_set, cuts, ".npy")
    coreset = CoresetSettings(method="ratio", ratio=kind, budget=count)  # type: ignore[arg-type]
    guide = guide_of(coreset, target, shards)
    assert guide.score is not None and guide.centroids is None
    found = select_by(coreset, guide, shards, Limits(None, 1, count), Constraints(), quiet)
    scores = guide.score.exact(open_set.astype(np.float32))
    expected = best_first(scores)[:count]
    if isinstance(guide.score, Linear):  # a sum of it with an offset may tie where it does not
        expected = best_first(open_set.astype(float) @ guide.score.direction)[:count]
    assert found.position.tolist() == expected.tolist()
    assert found.similarity is not None
    assert (found.similarity == scores[expected]).all()
    assert found.stopped_because == ("budget" if count <= N else "open set used up")


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", ["linear", "kernel"])
@pytest.mark.parametrize(("gate", "budget", "tau"), [(2, 60, None), (1, 40, None), (3.3, 90, 0.9)])
def test_rounds_behind_a_gate(
    open_set: np.ndarray,
    target: np.ndarray,
    tmp_path: Path,
    cuts: list[int],
    kind: str,
    gate: float,
    budget: int,
    tau: float | None,
) -> None:
    """SimCore's definition, as if there were no images but those that the ratio lets through."""
    shards = shards_of(tmp_path, open_set, cuts, ".arrow")
    asked: dict[str, Any] = {"ratio": kind, "gate": gate, "budget": budget, "tau": tau}
    coreset = CoresetSettings(method="gate", clusters=5, **asked)
    guide = guide_of(coreset, target, shards)
    assert guide.score is not None and guide.centroids is not None
    found = select_by(coreset, guide, shards, Limits(tau, 1, budget), Constraints(), quiet)
    scores = guide.score.exact(open_set.astype(np.float32))
    if isinstance(guide.score, Linear):
        scores = open_set.astype(float) @ guide.score.direction
    let_in = np.sort(best_first(scores)[: int(np.ceil(gate * budget))])
    grid = np.rint(guide.centroids.astype(float) * 2**24) / 2**24
    truth = brute_force_rounds(open_set[let_in], grid, tau=tau, budget=budget)
    truth["rows"] = [(int(let_in[row[0]]), *row[1:]) for row in truth["rows"]]
    same_selection(found, truth)


@pytest.mark.parametrize("cuts", CUTS)
def test_a_gate_over_a_sample_and_refills(
    open_set: np.ndarray,
    target: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuts: list[int],
) -> None:
    monkeypatch.setattr(sample, "LEAST_ROWS", 40)
    monkeypatch.setattr(rules, "SAMPLED", 100)
    shards = shards_of(tmp_path, open_set, cuts, ".npy")
    coreset = CoresetSettings(method="gate", clusters=5, gate=4, budget=100, tau=None)
    guide = guide_of(coreset, target, shards)
    assert isinstance(guide.score, Linear) and guide.centroids is not None
    found = select_by(coreset, guide, shards, Limits(None, 1, 100), Constraints(), quiet)
    let_in = np.sort(best_first(open_set.astype(float) @ guide.score.direction)[:400])
    grid = np.rint(guide.centroids.astype(float) * 2**24) / 2**24
    truth = brute_force_rounds(open_set[let_in], grid, budget=100)
    assert found.position.tolist() == [int(let_in[row[0]]) for row in truth["rows"]]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", ["linear", "kernel"])
def test_a_sample_by_weight(
    open_set: np.ndarray, target: np.ndarray, tmp_path: Path, cuts: list[int], kind: str
) -> None:
    shards = shards_of(tmp_path, open_set, cuts, ".parquet")
    coreset = CoresetSettings(method="resample", ratio=kind, budget=50, seed=4)  # type: ignore[arg-type]
    guide = guide_of(coreset, target, shards)
    assert guide.score is not None
    found = select_by(coreset, guide, shards, Limits(None, 1, 50), Constraints(), quiet)
    scores = Noisy(guide.score, 4).exact(open_set.astype(np.float32))
    assert found.position.tolist() == best_first(scores)[:50].tolist()


def test_a_sample_that_misleads_costs_a_pass_and_no_image(
    open_set: np.ndarray, target: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor is far too high at first."""
    shards = shards_of(tmp_path, open_set, [100], ".npy")
    score = ratio.estimate("kernel", target, open_set, 0)
    exact = score.exact(open_set.astype(np.float32))
    best = open_set[best_first(exact)[:30]]
    monkeypatch.setattr(scored, "draw", lambda *_: np.repeat(best, 9, axis=0))
    position, value = scored.best_by(shards, score, 200)
    assert position.tolist() == best_first(exact)[:200].tolist()
    assert (value == exact[position]).all()


def test_counts_above(open_set: np.ndarray, target: np.ndarray, tmp_path: Path) -> None:
    shards = shards_of(tmp_path, open_set, [100, 350], ".npy")
    score = ratio.estimate("linear", target, open_set, 0)
    exact = score.exact(open_set.astype(np.float32))
    bars = np.sort(exact[[3, 50, 600]])[::-1]
    expected = [(exact >= bar).sum() for bar in bars]
    assert scored.counts_above(shards, score, bars).tolist() == expected


@pytest.mark.parametrize("most", [20, 200, N, 10 * N])
def test_the_draw_is_of_positions(open_set: np.ndarray, tmp_path: Path, most: int) -> None:
    draws = []
    for number, cuts in enumerate(CUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        draws.append(drawn.draw(shards_of(folder, open_set, cuts, ".npy"), most, 3))
    assert (draws[0] == draws[1]).all()
    expected = open_set[drawn.is_drawn(np.arange(N), N, most, 3)]
    assert (draws[0] == expected).all()
    assert abs(len(expected) - min(most, N)) <= 4 * np.sqrt(most)


def test_of_a_large_set_runs_are_drawn() -> None:
    positions = np.arange(640_000)
    drawn_rows = drawn.is_drawn(positions, len(positions), 6400, 0)
    assert abs(drawn_rows.sum() - 6400) < 1500
    assert (drawn_rows.reshape(-1, 64).all(1) == drawn_rows.reshape(-1, 64).any(1)).all()


def test_budget_auto(tmp_path: Path) -> None:
    """A fifth of the open set is drawn as the target is."""
    rng = np.random.default_rng(0)
    like = unit_rows(rng, 400, D, lean=2.0)
    others = unit_rows(rng, 1600, D)
    open_set = np.concatenate([others[:800], like, others[800:]])
    shards = shards_of(tmp_path, open_set, [500], ".npy")
    coreset = CoresetSettings(method="ratio", budget="auto")
    guide = guide_of(coreset, unit_rows(rng, 200, D, lean=2.0), shards)
    assert guide.budget is not None
    assert 250 < guide.budget < 550
    found = select_by(coreset, guide, shards, Limits(None, 1, guide.budget), Constraints(), quiet)
    assert ((found.position >= 800) & (found.position < 1200)).mean() > 0.8


def test_few_target_images(
    open_set: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = shards_of(tmp_path, open_set, [], ".npy")
    few = unit_rows(np.random.default_rng(0), 5, D)
    with caplog.at_level("INFO"):
        guide_of(CoresetSettings(method="ratio", budget=3), few, shards)
    assert "5 target images of 8 dimensions are few for a ratio" in caplog.text
    with pytest.raises(CurateError, match=r"budget=auto: needs 40 target images, not 5"):
        guide_of(CoresetSettings(method="ratio", budget="auto"), few, shards)
    with pytest.raises(CurateError, match=r"ratio=linear: a ratio needs two images"):
        guide_of(CoresetSettings(method="ratio", budget=3), few[:1], shards)
    assert guide_of(CoresetSettings(method="all"), few, shards) == Guide()
