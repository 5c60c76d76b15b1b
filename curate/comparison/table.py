"""What came of all arms, as one table: rows are arms, columns targets. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trained:
    """One training of one arm, measured."""

    target: str
    arm: str
    seed: int
    images: int  # that it was trained on
    seconds: float
    values: dict[str, float]  # metric → value


def as_json(
    done: list[Trained],
    arms: list[str],
    targets: list[str],
    steps: int,
    selections: list[dict[str, Any]],
) -> dict[str, Any]:
    """comparison.json: a cell for each (arm, target, metric) that has a training.

    mean and std (of a sample; None of one seed) over seeds; best: the highest mean of its target
    and metric.
    """
    grouped: dict[tuple[str, str], list[Trained]] = defaultdict(list)
    for one in sorted(done, key=lambda one: one.seed):
        grouped[one.arm, one.target].append(one)
    metrics = list(dict.fromkeys(name for one in done for name in one.values))
    cells = []
    for metric in metrics:
        for target in targets:
            column = [
                _cell(arm, target, metric, grouped[arm, target])
                for arm in arms
                if any(metric in one.values for one in grouped[arm, target])
            ]
            highest = max((cell["mean"] for cell in column), default=None)
            cells += [cell | {"best": cell["mean"] == highest} for cell in column]
    return {
        "steps": steps,
        "arms": arms,
        "targets": targets,
        "metrics": metrics,
        "cells": cells,
        "selections": selections,
        "trainings": [asdict(one) for one in done],
    }


def _cell(arm: str, target: str, metric: str, trained: list[Trained]) -> dict[str, Any]:
    values = [one.values[metric] for one in trained if metric in one.values]
    return {
        "arm": arm,
        "target": target,
        "metric": metric,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "images": trained[0].images,
    }


def as_markdown(document: dict[str, Any]) -> str:
    """comparison.json as Markdown: a table for each metric, then what was selected."""
    lines = [f"# Comparison of arms, {document['steps']:,} steps each", ""]
    for metric in document["metrics"]:
        cells = {
            (cell["arm"], cell["target"]): cell
            for cell in document["cells"]
            if cell["metric"] == metric
        }
        lines += [f"## {metric}", "", _row(["arm", *document["targets"]])]
        lines.append("|---|" + "---:|" * len(document["targets"]))
        for arm in document["arms"]:
            shown = [_shown(cells.get((arm, target))) for target in document["targets"]]
            lines.append(_row([arm, *shown]))
        lines.append("")
    lines += ["Mean ± standard deviation over seeds, in percent; best in bold.", ""]
    lines += _selections(document["selections"])
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    text = f"{100 * cell['mean']:.1f}"
    if cell["std"] is not None:
        text += f" ± {100 * cell['std']:.1f}"
    return f"**{text}**" if cell["best"] else text


def _selections(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["## What was selected", "", _row(["target", "arm", "images", "oracle share", "lift"])]
    lines.append("|---|---|---:|---:|---:|")
    for row in rows:
        share, lift = row.get("oracle_share"), row.get("lift")
        lines.append(
            _row(
                [
                    row["target"],
                    row["arm"] if row["seed"] == 0 else f"{row['arm']}, seed {row['seed']}",
                    f"{row['selected']:,}",
                    "–" if share is None else f"{share:.1%}",
                    "–" if lift is None else f"{lift:.2f}",
                ]
            )
        )
    return [*lines, ""]


def _row(values: list[str]) -> str:
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in values)} |"
