"""Label-free figures: against slow loops, and where their values are known."""

from __future__ import annotations

import math

import pytest
import torch

from curate.pretraining.probe import Measuring
from curate.pretraining.quality import ROWS, Quality, alignment, rankme, uniformity
from curate.pretraining.recorder import best_of
from tests.methods.references import directions


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-3)
    assert rankme(torch.ones(40, 8)) == pytest.approx(1, abs=1e-3)
    two = torch.cat([torch.eye(2), torch.zeros(2, 6)], 1).repeat(10, 1)
    assert rankme(two) == pytest.approx(2, rel=1e-3)
    values = [3.0, 2.0, 1.0]
    shares = [value / 6 for value in values]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert rankme(torch.diag(torch.tensor(values))) == pytest.approx(expected, rel=1e-3)


def test_alignment_and_uniformity() -> None:
    a, b = normal(7, 5), normal(7, 5, seed=1)
    x, y = directions(a), directions(b)
    apart = [math.dist(p, q) ** 2 for p, q in zip(x, y, strict=True)]
    assert alignment(a, b) == pytest.approx(sum(apart) / 7, rel=1e-5)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-6)
    pairs = [math.exp(-2 * math.dist(x[i], x[j]) ** 2) for i in range(7) for j in range(i)]
    assert uniformity(a) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-5)


def test_the_newest_images_count() -> None:
    """In their first view; the window is of whole batches."""
    quality = Quality()
    quality.add(torch.ones(2 * 64, 8), 64)
    before = quality.figures()
    assert before["rankme"] == pytest.approx(1, abs=1e-3)
    assert before["alignment"] == pytest.approx(0, abs=1e-6)
    for step in range(ROWS // 64):
        quality.add(normal(64, 8, seed=step), 64)
    assert quality.figures()["rankme"] > 7.9
    assert "alignment" not in quality.figures()  # of a method with one view
    assert sum(map(len, quality.views)) == ROWS


def test_the_best_of_records() -> None:
    records = [{"step": n, "loss": 5 - n} for n in range(4)]
    records[1]["knn"], records[2]["knn"], records[3]["knn"] = 0.4, 0.6, 0.6
    best = best_of(records, "knn")
    assert best is records[2] and best_of(records, "loss") is records[3]
    assert best_of(records, "rankme") is None


def test_measured_in_the_background_as_it_was() -> None:
    module = torch.nn.Linear(2, 1)
    measuring = Measuring(lambda m: float(m.weight.sum()))
    records = [{"step": n} for n in range(3)]
    for value, record in enumerate(records):
        torch.nn.init.constant_(module.weight, value)
        measuring.begin(record, module)
    torch.nn.init.constant_(module.weight, 100)
    found = measuring.done(wait=True)
    assert [(record["step"], value) for record, _, value in found] == [(0, 0), (1, 2), (2, 4)]
    assert measuring.done(wait=True) == []
    failing = Measuring(lambda m: 1 / 0)
    failing.begin({}, module)
    with pytest.raises(ZeroDivisionError):
        failing.done(wait=True)
