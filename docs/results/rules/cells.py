"""What trainings of the comparison came to: kept cell by cell, and how arms differ, paired by seed.

    python docs/results/rules/cells.py [RUN …] [--against simcore]

Adds each finished training of a comparison's outputs to cells.json beside this file, and prints of
each target every arm's figure and its differences from one of them: the mean over the seeds that
both have, ± its standard error. The figure was fixed beforehand: the mean of linear probe, kNN 20
and kNN 200, top 1, in percent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

CELLS = Path(__file__).with_name("cells.json")
MEASURES = ("linear probe, top1", "kNN, k = 20, top1", "kNN, k = 200, top1")

Cell = dict[str, Any]


def cells_of(run: Path) -> list[Cell]:
    trained = [json.loads(f.read_text()) for f in run.glob("*/arms/*/seed-*/result.json")]
    return [
        {
            **{name: one["trained"][name] for name in ("target", "arm", "seed", "images")},
            "seconds": round(one["trained"]["seconds"]),
            "values": {name: round(one["trained"]["values"][name], 5) for name in MEASURES},
        }
        for one in trained
    ]


def identity(cell: Cell) -> tuple[str, str, int]:
    return cell["target"], cell["arm"], cell["seed"]


def figure(cell: Cell) -> float:
    return 100 * float(np.mean([*cell["values"].values()]))


def mean_of(values: list[float]) -> str:
    """± its standard error."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.1f} ± {error:.1f}"


def table_of(cells: list[Cell], against: str) -> str:
    lines = [
        f"| target | arm | seeds | images | figure | less {against}'s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for target in dict.fromkeys(cell["target"] for cell in cells):
        own = [cell for cell in cells if cell["target"] == target]
        base = {cell["seed"]: figure(cell) for cell in own if cell["arm"] == against}
        by_arm: dict[str, list[Cell]] = {}
        for cell in own:
            by_arm.setdefault(cell["arm"], []).append(cell)
        for arm, mine in sorted(by_arm.items(), key=lambda one: np.mean([*map(figure, one[1])])):
            less = [figure(cell) - base[cell["seed"]] for cell in mine if cell["seed"] in base]
            row = [target, arm, len(mine), mine[0]["images"], mean_of([*map(figure, mine)])]
            lines.append(
                f"| {' | '.join(map(str, row))} | {'' if arm == against else mean_of(less)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--against", default="simcore")
    options = parser.parse_args()
    known = json.loads(CELLS.read_text()) if CELLS.exists() else []
    cells = {identity(cell): cell for cell in known}
    for run in options.runs:
        cells |= {identity(cell): cell for cell in cells_of(run)}
    ordered = [cells[one] for one in sorted(cells)]
    CELLS.write_text("[\n" + ",\n".join(json.dumps(cell) for cell in ordered) + "\n]\n")
    print(table_of(ordered, options.against))


if __name__ == "__main__":
    main()
