"""Density ratios: against closed forms, and by what they tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import gumbel_r, kstest

from curate.coreset import ratio
from curate.coreset.ratio import Kernel, Linear, Noisy, Stop
from curate.coreset.similarity import widen
from tests.oracles import unit_rows

D = 12


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """A target that leans along the fourth axis, and an open set that leans along the first, where
    it spreads most."""
    rng = np.random.default_rng(3)
    spread = np.linspace(1, 0.2, D)
    target = rng.standard_normal((150, D)) * spread
    open_set = rng.standard_normal((3000, D)) * spread + np.eye(D)[0]
    target += np.eye(D)[3] * 2.5 + np.eye(D)[0]
    made = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (target, open_set)]
    return made[0].astype(np.float16), made[1].astype(np.float16)


def area_under_curve(score: ratio.Score, target: np.ndarray, open_set: np.ndarray) -> float:
    mine, theirs = (score.exact(widen(rows)) for rows in (target, open_set))
    return float(np.mean(mine[:, None] > theirs[None]))


@pytest.mark.parametrize("kind", ["linear", "logistic", "kernel"])
def test_images_that_no_estimate_saw_are_told_apart(
    sets: tuple[np.ndarray, np.ndarray], kind: ratio.Ratio
) -> None:
    target, open_set = sets
    score = ratio.estimate(kind, target[::2], open_set[::2], 0)
    assert area_under_curve(score, target[1::2], open_set[1::2]) > 0.9


@pytest.mark.parametrize("kind", ["linear", "logistic", "kernel"])
def test_of_sets_that_do_not_differ_nothing_is_told(kind: ratio.Ratio) -> None:
    rng = np.random.default_rng(1)
    rows = unit_rows(rng, 3000, D)
    score = ratio.estimate(kind, rows[:150], rows[150:1500], 0)
    assert abs(area_under_curve(score, rows[1500:1650], rows[1650:]) - 0.5) < 0.08


def test_linear_is_fishers_discriminant(sets: tuple[np.ndarray, np.ndarray]) -> None:
    """By the log ratio of two Gaussians of the open set's covariance."""
    target, open_set = (rows.astype(float) for rows in sets)
    found = ratio.estimate("linear", *sets, 0)
    covariance = np.cov(open_set.T, bias=True)

    def log_density(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        away = rows - mean
        return -0.5 * np.einsum("ij,jk,ik->i", away, np.linalg.inv(covariance), away)

    expected = log_density(open_set, target.mean(0)) - log_density(open_set, open_set.mean(0))
    got = found.exact(widen(open_set))
    assert np.corrcoef(got, expected)[0, 1] > 0.9999
    assert abs(np.polyfit(expected, got, 1)[0] - 1) < 0.05  # shrinkage
    assert abs(np.mean(got - expected)) < 0.05 * np.std(expected)


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_directions_are_unit_and_on_the_grid(
    sets: tuple[np.ndarray, np.ndarray], kind: ratio.Ratio
) -> None:
    found = ratio.estimate(kind, *sets, 0)
    assert isinstance(found, Linear)
    assert abs(np.linalg.norm(found.direction) - 1) < 1e-6
    assert (found.direction * 2**24 == np.rint(found.direction * 2**24)).all()


def test_kernel_against_scipy(sets: tuple[np.ndarray, np.ndarray]) -> None:
    target, open_set = (rows.astype(np.float64) for rows in sets)
    score = Kernel(target[:5], open_set[:9], 0.1)
    rows = open_set[100:200]
    expected = logsumexp(rows @ target[:5].T / 0.1, axis=1) - np.log(5)
    expected -= logsumexp(rows @ open_set[:9].T / 0.1, axis=1) - np.log(9)
    assert np.abs(score.exact(rows.astype(np.float32)) - expected).max() < 1e-6


@pytest.mark.parametrize("kind", ["linear", "logistic", "kernel"])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_rough_score_is_as_near_as_it_says(
    sets: tuple[np.ndarray, np.ndarray], kind: ratio.Ratio, noisy: bool
) -> None:
    score: ratio.Score = ratio.estimate(kind, *sets, 0)
    score = Noisy(score, 5) if noisy else score
    rows = widen(sets[1])
    near, error = score.rough(rows)
    assert np.abs(near - score.exact(rows)).max() < error < 0.1


def test_scores_do_not_depend_on_what_stands_beside(sets: tuple[np.ndarray, np.ndarray]) -> None:
    rows = widen(sets[1])
    for kind in ("linear", "logistic", "kernel"):
        score = Noisy(ratio.estimate(kind, *sets, 0), 2)
        whole = score.exact(rows)
        parts = [score.exact(rows[i : i + 7]) for i in range(0, len(rows), 7)]
        assert (np.concatenate(parts) == whole).all()


def test_noise_is_gumbels_and_the_images_own() -> None:
    rows = widen(unit_rows(np.random.default_rng(0), 20_000, 8))
    noise = ratio.gumbel(rows, 1)
    assert kstest(noise, gumbel_r.cdf).pvalue > 0.001
    assert (ratio.gumbel(rows[::-1], 1) == noise[::-1]).all()
    assert abs(np.corrcoef(noise, ratio.gumbel(rows, 2))[0, 1]) < 0.03
    assert abs(np.corrcoef(noise, rows[:, 0])[0, 1]) < 0.03
    zero = np.zeros((1, 8), np.float32)
    assert ratio.gumbel(zero, 0) == ratio.gumbel(-zero, 0)


def test_resampling_draws_by_weight() -> None:
    """Of two kinds of image, ten times as likely the one as the other, by their share."""
    rng = np.random.default_rng(0)
    rows = widen(unit_rows(rng, 20_000, 8))
    likely = rng.random(20_000) < 0.2

    class Fixed:
        def exact(self, rows: ratio.Rows) -> ratio.Scores:
            return np.where(likely, np.log(10), 0.0)

        def rough(self, rows: ratio.Rows) -> tuple[ratio.Scores, float]:
            return self.exact(rows), 0.0

    drawn = np.argsort(-Noisy(Fixed(), 0).exact(rows))[:500]
    assert abs(likely[drawn].mean() - 2 / 2.8) < 0.06


def test_where_to_stop() -> None:
    """30,000 images, of which 1,000 are like the target's, and score 3 higher."""
    rng = np.random.default_rng(0)
    held_out = rng.standard_normal(400) + 3
    like, other = rng.standard_normal(1000) + 3, rng.standard_normal(29_000)
    stop = Stop.of(held_out)
    assert len(stop.bars) == 19 and (np.diff(stop.bars) < 0).all()
    above = np.array([(np.concatenate([like, other]) >= bar).sum() for bar in stop.bars])
    count, there = stop.count(above)
    last = next(bar for bar, n in zip(stop.bars, above, strict=True) if n >= count)
    bins = np.histogram(other, [last, last + 0.3])[0], np.histogram(like, [last, last + 0.3])[0]
    assert 0.3 < bins[1][0] / (bins[0][0] + bins[1][0]) < 0.95
    assert 600 < there < 1300
    assert 500 < count < 1200


def test_where_nothing_is_like_the_target_nothing_is_taken() -> None:
    rng = np.random.default_rng(0)
    stop = Stop.of(rng.standard_normal(400) + 9)
    above = np.array([(rng.standard_normal(10_000) >= bar).sum() for bar in stop.bars])
    assert stop.count(above) == (0, 0.0)


def test_what_cannot_be_estimated_is_refused() -> None:
    rows = unit_rows(np.random.default_rng(0), 10, 4)
    with pytest.raises(ValueError, match="two images"):
        ratio.estimate("linear", rows[:1], rows, 0)
    with pytest.raises(ValueError, match="do not differ"):
        ratio.estimate("linear", rows, rows, 0)


def test_a_target_of_fewer_images_than_dimensions() -> None:
    rng = np.random.default_rng(0)
    target, open_set = unit_rows(rng, 5, 64, lean=0.3), unit_rows(rng, 40, 64)
    for kind in ("linear", "logistic", "kernel"):
        score = ratio.estimate(kind, target, open_set, 0)
        assert area_under_curve(score, unit_rows(rng, 50, 64, lean=0.3), open_set) > 0.7


@pytest.mark.parametrize("kind", ["linear", "logistic", "kernel"])
def test_a_log_ratio_is_one(sets: tuple[np.ndarray, np.ndarray], kind: ratio.Ratio) -> None:
    """The mean of p(target) / p(open) over the open set is 1; here roughly."""
    target, open_set = sets
    score = ratio.estimate(kind, target[::2], open_set[::2], 0)
    assert 0.3 < np.exp(score.exact(widen(open_set[1::2]))).mean() < 4
