"""Tables of figures that were measured: classes, evaluation, comparison."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from curate.comparison.table import Cell, Comparison
from curate.report.content import Classes, Figure, Report
from curate.report.pages import plots
from curate.report.pages.markup import Html, count, images, join, percent, short, tag
from curate.report.pages.shell import note, number, row, table


def classes(report: Report) -> Html | None:
    """Histograms beside each other."""
    if not report.classes:
        return None
    shown = {tile.label for tile in report.gallery}

    def link(label: str) -> str | None:
        """Where the images of a label are, if they are shown."""
        return f"gallery-1.html#{urlencode({'class': label})}" if label in shown else None

    own, *others = report.classes
    parts = [_histogram(own, link), *(_histogram(one, lambda _: None) for one in others)]
    return join(
        note(
            "Labels were used for this count alone, never for the selection. “Against open set” "
            "compares a class's share of the selection with its share of the open set."
        ),
        tag("div", [tag("div", part) for part in parts], class_="two"),
    )


def _histogram(one: Classes, link: Callable[[str], str | None]) -> Html:
    if not one.labelled:
        return join(tag("h3", one.title), note(f"{images(one.images)}, none with a label."))
    most = one.top[0][1]
    rows = []
    for label, n, of_open in one.top:
        href, name = link(label), short(label, 60)
        share = n / one.images
        rows.append(
            row(
                join(tag("a", name, href=href) if href else name, plots.bar([("count", n / most)])),
                number(count(n)),
                number(percent(share)),
                number(f"{share / of_open:.1f} ×" if of_open else "–"),
            )
        )
    heads = [("Class", ""), ("Images", "n"), ("Share", "n"), ("Against open set", "n")]
    classes_ = "class" if one.distinct == 1 else "classes"
    caption = f"The {len(rows)} most frequent of {count(one.distinct)} {classes_}"
    unlabelled = one.images - one.labelled
    return join(
        tag("h3", one.title),
        table(caption, heads, rows, f"Classes of {one.title}"),
        note(f"{images(unlabelled)} without a label.") if unlabelled else None,
    )


def evaluation(report: Report) -> Html | None:
    if not report.evaluation:
        return None
    rows = [
        row(
            short(one.metric),
            tag("td", _bar_of(one.value, one.std) if one.unit == "share" else None, class_="wide"),
            number(_value(one)),
            number(count(one.seeds)),
            number(count(one.n)),
        )
        for one in report.evaluation
    ]
    heads = [("Metric", ""), ("0 to 100 %", "wide"), ("Value", "n"), ("Seeds", "n")]
    caption = "Of the encoder on labelled images, ± one standard deviation over seeds"
    return table(caption, [*heads, ("Images", "n")], rows)


def _value(one: Figure) -> str:
    if one.unit != "share":
        spread = f" ± {one.std:.3f}" if one.seeds > 1 else ""
        return f"{one.value:.3f}{spread} {one.unit}"
    spread = f" ± {100 * one.std:.1f}" if one.seeds > 1 else ""
    return f"{100 * one.value:.1f}{spread} %"


def _bar_of(value: float, std: float, best: bool = False) -> Html:
    return plots.interval(value - std, value, value + std, best)


def comparison(report: Report) -> Html | None:
    """A table for each metric: arms down, targets across."""
    one = report.comparison
    if one is None:
        return None
    cells = {(cell.metric, cell.arm, cell.target): cell for cell in one.cells}
    tables = []
    for metric in one.metrics:
        of_metric = [cell for cell in one.cells if cell.metric == metric]
        scale = _scale(of_metric)
        rows = [
            row(arm, *[_cell(cells.get((metric, arm, target)), scale) for target in one.targets])
            for arm in one.arms
        ]
        heads = [("Arm", ""), *((target, "wide") for target in one.targets)]
        caption = (
            f"Mean ± standard deviation over seeds; bars go from {100 * scale[0]:.0f} % to "
            f"{100 * scale[1]:.0f} %, the best is bold"
        )
        tables.append(join(tag("h3", metric), table(caption, heads, rows, metric)))
    return join(
        note(
            f"Every arm was trained for {count(one.steps)} steps, and differs in its images alone."
        ),
        tables,
        _selections(one),
    )


def _scale(cells: list[Cell]) -> tuple[float, float]:
    """Of the error bars of one metric: from below the least to above the greatest."""
    low = min((cell.mean - (cell.std or 0) for cell in cells), default=0.0)
    high = max((cell.mean + (cell.std or 0) for cell in cells), default=1.0)
    pad = max((high - low) * 0.1, 0.005)
    return max(0.0, low - pad), min(1.0, high + pad)


def _cell(cell: Cell | None, scale: tuple[float, float]) -> Html:
    if cell is None:
        return tag("td", "–", class_="wide")
    low, high = scale
    std = cell.std or 0.0
    values = (cell.mean - std, cell.mean, cell.mean + std)
    a, m, b = ((value - low) / (high - low) for value in values)
    spread = "" if cell.std is None else f" ± {100 * cell.std:.1f}"
    words = f"{100 * cell.mean:.1f}{spread} %"
    seeds = "1 seed" if cell.seeds == 1 else f"{cell.seeds} seeds"
    return tag(
        "td",
        tag("strong", words) if cell.best else words,
        plots.interval(a, m, b, cell.best),
        tag("span", f"{seeds}, {images(cell.images)}", class_="note"),
        class_="wide",
    )


def _selections(one: Comparison) -> Html | None:
    """By the labels of the open set, where they are known."""
    if not one.selections:
        return None

    def share(value: float | None) -> Html:
        return number("–" if value is None else percent(value))

    rows = [
        row(
            f"{of_arm.arm}, seed {of_arm.seed}" if of_arm.seed else of_arm.arm,
            tag("td", of_arm.target),
            number(count(of_arm.selected)),
            share(of_arm.oracle_share),
            share(of_arm.base_share),
            number("–" if of_arm.lift is None else f"{of_arm.lift:.2f} ×"),
        )
        for of_arm in one.selections
    ]
    heads = [
        *(("Arm", ""), ("Target", ""), ("Selected images", "n")),
        *(("Of the target's classes", "n"), ("In the open set", "n"), ("Ratio", "n")),
    ]
    return join(
        tag("h3", "What each arm selected"),
        table("Share of images with a label of the target's classes", heads, rows),
    )
