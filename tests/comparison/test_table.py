"""The table of a comparison, on figures made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from pydantic import TypeAdapter

from curate.comparison.table import Cell, Comparison, Selected, Trained


def trained(arm: str, target: str, seed: int, **values: float) -> Trained:
    return Trained(target, arm, seed, 100, 1.0, values)


DONE = [
    trained("x", "pets", 1, linear=0.30, knn=0.2),
    trained("x", "pets", 0, linear=0.20, knn=0.2),
    trained("simcore", "pets", 0, linear=0.40, knn=0.1),
    trained("x", "cars", 0, linear=0.50, knn=0.3),
]
SELECTIONS = [
    Selected("simcore", "pets", 0, 1650, oracle_share=0.125, base_share=0.05, lift=2.5),
    Selected("simcore", "cars", 1, 7),
]


def table() -> Comparison:
    return Comparison.of(DONE, ["x", "simcore"], ["pets", "cars"], 1000, SELECTIONS)


def cell(arm: str, target: str, metric: str) -> Cell:
    [found] = [
        one for one in table().cells if (one.arm, one.target, one.metric) == (arm, target, metric)
    ]
    return found


def test_mean_and_deviation_over_seeds() -> None:
    one = cell("x", "pets", "linear")
    assert math.isclose(one.mean, 0.25) and one.seeds == 2
    assert math.isclose(one.std, 0.1 / math.sqrt(2))  # of a sample of two
    assert cell("simcore", "pets", "linear").std is None


def test_the_best_of_each_target_and_metric() -> None:
    best = {(c.target, c.metric): c.arm for c in table().cells if c.best}
    assert best == {
        ("pets", "linear"): "simcore",
        ("pets", "knn"): "x",
        ("cars", "linear"): "x",
        ("cars", "knn"): "x",
    }


def test_an_arm_that_has_no_training_yet_has_no_cell() -> None:
    assert not [c for c in table().cells if (c.arm, c.target) == ("simcore", "cars")]


def test_the_order_of_trainings_does_not_matter() -> None:
    turned = Comparison.of(DONE[::-1], ["x", "simcore"], ["pets", "cars"], 1000, SELECTIONS)
    same = {"trainings": [], "metrics": []}
    assert replace(turned, **same) == replace(table(), **same)


def test_what_is_written_is_read_again() -> None:
    assert TypeAdapter(Comparison).validate_json(json.dumps(table().to_json())) == table()


def test_markdown() -> None:
    text = table().markdown()
    assert "| arm | pets | cars |\n|---|---:|---:|\n| x | 25.0 ± 7.1 | **50.0** |" in text
    assert "| simcore | **40.0** | – |" in text
    assert "| pets | simcore | 1,650 | 12.5% | 2.50 |" in text
    assert "| cars | simcore, seed 1 | 7 | – | – |" in text
    assert text.startswith("# Comparison of arms, 1,000 steps each\n")


def test_nothing_trained_yet() -> None:
    empty = Comparison.of([], ["x"], ["pets"], 10, [])
    assert empty.cells == [] and empty.markdown().startswith("# Comparison of arms, 10 steps")
