"""How relevant the selection is and how varied, without labels, and what it was not to take."""

from __future__ import annotations

from curate.report.content import Report
from curate.report.pages.markup import Html, count, join, percent, tag
from curate.report.pages.shell import note, number, row, table

# name → what it is, how it is written
FIGURES = {
    "relevance": ("As much like the target as half of its own images are", percent),
    "clusters": ("Kinds of image, of the open set's clusters", lambda value: f"{value:.0f}"),
    "nearest": ("Cosine to the most similar other image", lambda value: f"{value:.3f}"),
}


def worth(report: Report) -> Html | None:
    parts = [_figures(report), _left_out(report)]
    return join([part for part in parts if part]) if any(parts) else None


def _figures(report: Report) -> Html | None:
    rows = []
    for name, (words, shown) in FIGURES.items():
        own, random = report.figures.get(name), report.figures.get(f"{name}_random")
        if own is not None and random is not None:
            rows.append(row(words, number(shown(own)), number(shown(random))))
    if not rows:
        return None
    heads = [("", ""), ("Coreset", "n"), ("Random images", "n")]
    return join(
        table("Relevance and variety, without labels", heads, rows),
        note(
            "Half of the target's own images are as much like it as half are: around 50 % a "
            "selection is as typical of the target as the target itself. Near 100 % it takes the "
            "most typical images over and over; far below, many that are something else."
        ),
    )


def _left_out(report: Report) -> Html | None:
    if not report.left_out:
        return None
    rows = [row(reason.capitalize(), number(count(n))) for reason, n in report.left_out.items()]
    return tag("div", table("Images that were left out", [("Reason", ""), ("Images", "n")], rows))
