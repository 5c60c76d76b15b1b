"""The table that `curate evaluate` prints."""

from __future__ import annotations

from typing import Any

from curate.runfiles.summary import evaluation_table


def row(metric: str, value: float, unit: str = "share", **more: Any) -> dict[str, Any]:
    known = {"std": 0.0125, "seeds": 3, "n": 1450, "seconds": 2.25, "config": {}}
    return {"metric": metric, "value": value, "unit": unit, **known, **more}


def test_each_figure_is_in_its_unit() -> None:
    lines = evaluation_table(
        [
            row("kNN", 0.875),
            row("lift", 8.4321, "ratio", seeds=1),
            row("entropy", 3.456, "bits", seeds=1),
            row("similarity", 0.98765, "cosine"),
            row("m" * 50, 1),
        ]
    ).splitlines()
    assert lines[0].split() == ["metric", "value", "±", "std", "seeds", "images", "seconds"]
    assert lines[1].split() == ["kNN", "87.5%", "1.2%", "3", "1,450", "2.2"]
    assert lines[2].split()[:5] == ["lift", "8.43", "×", "–", "1"], "one seed has no deviation"
    assert lines[3].split()[:3] == ["entropy", "3.46", "bits"]
    assert lines[4].split()[1:3] == ["0.988", "0.013"]
    assert lines[5].split()[:2] == ["m" * 50, "100.0%"]
    assert len({len(line) for line in lines}) == 1, "columns stand in line"


def test_rounds_and_classes_follow() -> None:
    by_round = [(n, 10 * n, 0.5) for n in range(1, 96)]
    config = {"by_round": by_round, "top_classes": [["cat", 1200, 0.25], ["dog", 3, 0.5]]}
    lines = evaluation_table([row("oracle share", 0.5, config=config)]).splitlines()
    start = lines.index("") + 1
    rounds = lines[start + 1 : lines.index("", start)]
    assert len(rounds) == 10 and rounds[-1].split() == ["95", "950", "50.0%"]
    assert lines[-2].split() == ["cat", "1,200", "25.0%"] and lines[-1].split()[0] == "dog"


def test_a_baseline_has_no_rounds_to_show() -> None:
    lines = evaluation_table([row("oracle share", 0.5, config={"by_round": [(0, 9, 0.5)]})])
    assert len(lines.splitlines()) == 2
