"""The table of a comparison, on figures made by hand."""

from __future__ import annotations

import math

from curate.comparison.table import Trained, as_json, as_markdown


def trained(arm: str, target: str, seed: int, **values: float) -> Trained:
    return Trained(target, arm, seed, 100, 1.0, values)


DONE = [
    trained("x", "pets", 1, linear=0.30, knn=0.2),
    trained("x", "pets", 0, linear=0.20, knn=0.2),
    trained("simcore", "pets", 0, linear=0.40, knn=0.1),
    trained("x", "cars", 0, linear=0.50, knn=0.3),
]
SELECTIONS = [
    {"arm": "simcore", "target": "pets", "seed": 0, "selected": 1650, "oracle_share": 0.125}
    | {"base_share": 0.05, "lift": 2.5},
    {"arm": "simcore", "target": "cars", "seed": 1, "selected": 7},
]


def document() -> dict:
    return as_json(DONE, ["x", "simcore"], ["pets", "cars"], 1000, SELECTIONS)


def cell(arm: str, target: str, metric: str) -> dict:
    [found] = [
        one
        for one in document()["cells"]
        if (one["arm"], one["target"], one["metric"]) == (arm, target, metric)
    ]
    return found


def test_mean_and_deviation_over_seeds() -> None:
    one = cell("x", "pets", "linear")
    assert math.isclose(one["mean"], 0.25) and one["seeds"] == 2
    assert math.isclose(one["std"], 0.1 / math.sqrt(2))  # of a sample of two
    assert cell("simcore", "pets", "linear")["std"] is None


def test_the_best_of_each_target_and_metric() -> None:
    best = {(c["target"], c["metric"]): c["arm"] for c in document()["cells"] if c["best"]}
    assert best == {
        ("pets", "linear"): "simcore",
        ("pets", "knn"): "x",
        ("cars", "linear"): "x",
        ("cars", "knn"): "x",
    }


def test_an_arm_that_has_no_training_yet_has_no_cell() -> None:
    assert not [c for c in document()["cells"] if (c["arm"], c["target"]) == ("simcore", "cars")]


def test_the_order_of_trainings_does_not_matter() -> None:
    turned = as_json(DONE[::-1], ["x", "simcore"], ["pets", "cars"], 1000, SELECTIONS)
    assert {k: v for k, v in turned.items() if k != "trainings"} | {"metrics": None} == {
        k: v for k, v in document().items() if k != "trainings"
    } | {"metrics": None}


def test_markdown() -> None:
    text = as_markdown(document())
    assert "| arm | pets | cars |\n|---|---:|---:|\n| x | 25.0 ± 7.1 | **50.0** |" in text
    assert "| simcore | **40.0** | – |" in text
    assert "| pets | simcore | 1,650 | 12.5% | 2.50 |" in text
    assert "| cars | simcore, seed 1 | 7 | – | – |" in text
    assert text.startswith("# Comparison of arms, 1,000 steps each\n")


def test_nothing_trained_yet() -> None:
    empty = as_json([], ["x"], ["pets"], 10, [])
    assert empty["cells"] == [] and as_markdown(empty).startswith("# Comparison of arms, 10 steps")
