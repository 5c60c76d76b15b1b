"""What came of all arms, as one table: rows are arms, columns targets. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field

import numpy as np

SELECTIONS = (
    "Relevance: share of the images that are as much like the target as half of its own are. "
    "Clusters: effective number of the open set's that they are in. Nearest: mean cosine to the "
    "most similar other image. None of these needs a label."
)


@dataclass(frozen=True)
class Trained:
    """One training of one arm, measured."""

    target: str
    arm: str
    seed: int
    images: int  # that it was trained on
    seconds: float
    values: dict[str, float]  # metric → value


@dataclass(frozen=True)
class Selected:
    """What one arm selected; shares and lift by the labels of the open set, where they are known:
    see coreset.quality."""

    arm: str
    target: str
    seed: int
    selected: int
    oracle_share: float | None = None
    base_share: float | None = None
    lift: float | None = None
    recall: float | None = None
    relevance: float | None = None  # and the next two: see coreset.figures
    clusters: float | None = None
    nearest: float | None = None


@dataclass(frozen=True)
class Cell:
    """One arm on one target, by one metric, over its seeds."""

    arm: str
    target: str
    metric: str
    mean: float
    std: float | None  # of a sample; None of one seed
    seeds: int
    images: int  # that each seed was trained on
    best: bool  # the highest mean of its target and metric


@dataclass(frozen=True)
class Comparison:
    """comparison.json: a cell for each (arm, target, metric) that has a training."""

    steps: int  # of every training
    arms: list[str]
    targets: list[str]
    metrics: list[str]
    cells: list[Cell]
    selections: list[Selected] = field(default_factory=list)
    trainings: list[Trained] = field(default_factory=list)

    @staticmethod
    def of(
        done: list[Trained],
        arms: list[str],
        targets: list[str],
        steps: int,
        selections: list[Selected],
    ) -> Comparison:
        grouped: dict[tuple[str, str], list[Trained]] = defaultdict(list)
        for one in sorted(done, key=lambda one: one.seed):
            grouped[one.arm, one.target].append(one)
        metrics = list(dict.fromkeys(name for one in done for name in one.values))
        cells = []
        for metric in metrics:
            for target in targets:
                column = {arm: _values(grouped[arm, target], metric) for arm in arms}
                means = {arm: float(np.mean(values)) for arm, values in column.items() if values}
                cells += [
                    Cell(
                        arm,
                        target,
                        metric,
                        mean,
                        float(np.std(column[arm], ddof=1)) if len(column[arm]) > 1 else None,
                        len(column[arm]),
                        grouped[arm, target][0].images,
                        mean == max(means.values()),
                    )
                    for arm, mean in means.items()
                ]
        return Comparison(steps, arms, targets, metrics, cells, selections, done)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def markdown(self) -> str:
        """A table for each metric, then what was selected."""
        lines = [f"# Comparison of arms, {self.steps:,} steps each", ""]
        for metric in self.metrics:
            cells = {(one.arm, one.target): one for one in self.cells if one.metric == metric}
            lines += [f"## {metric}", "", _row(["arm", *self.targets])]
            lines.append("|---|" + "---:|" * len(self.targets))
            for arm in self.arms:
                shown = [_shown(cells.get((arm, target))) for target in self.targets]
                lines.append(_row([arm, *shown]))
            lines.append("")
        if self.metrics:
            lines += ["Mean ± standard deviation over seeds, in percent; best in bold.", ""]
        return "\n".join(lines + _selections(self.selections)) + "\n"


def _values(trained: list[Trained], metric: str) -> list[float]:
    return [one.values[metric] for one in trained if metric in one.values]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"{100 * cell.mean:.1f}"
    if cell.std is not None:
        text += f" ± {100 * cell.std:.1f}"
    return f"**{text}**" if cell.best else text


def _selections(rows: list[Selected]) -> list[str]:
    if not rows:
        return []
    heads = ["target", "arm", "images", "oracle share", "lift", "relevance", "clusters", "nearest"]
    lines = ["## What was selected", "", _row(heads), "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in rows:
        arm = row.arm if row.seed == 0 else f"{row.arm}, seed {row.seed}"
        share, lift = _figure(row.oracle_share, "{:.1%}"), _figure(row.lift, "{:.2f}")
        own = {"relevance": "{:.1%}", "clusters": "{:.1f}", "nearest": "{:.3f}"}
        figures = [_figure(getattr(row, name), form) for name, form in own.items()]
        lines.append(_row([row.target, arm, f"{row.selected:,}", share, lift, *figures]))
    return [*lines, "", SELECTIONS, ""]


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _row(values: list[str]) -> str:
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in values)} |"
