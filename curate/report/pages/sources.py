"""How many images each source gave, and how its share changes."""

from __future__ import annotations

from curate.report.content import Report
from curate.report.pages import plots
from curate.report.pages.markup import Html, count, join, percent, tag
from curate.report.pages.shell import legend, note, number, row, table

COLOURS = [
    *(("selected", "selected"), ("rest", "embedded, not selected")),
    *(("rejected", "rejected"), ("target", "target set")),
]


def sources(report: Report) -> Html:
    largest = max([source.seen for source in report.sources], default=1) or 1
    rows = []
    for source in sorted(report.sources, key=lambda source: not source.of_target):
        rest = source.embedded - source.selected
        kind = "of-target" if source.of_target else "rest"
        parts = [("selected", source.selected), (kind, rest), ("rejected", source.rejected)]
        drawn = plots.bar([(class_, n / largest) for class_, n in parts])
        name = f"{source.name} (target)" if source.of_target else source.name
        share = source.selected / source.embedded if source.embedded else 0.0
        rows.append(
            row(
                join(name, drawn),
                *map(number, map(count, (source.seen, source.embedded, source.rejected))),
                number("–" if source.of_target else count(source.selected)),
                number("–" if source.of_target else percent(share)),
            )
        )
    heads = [("Source", ""), ("Seen", "n"), ("Embedded", "n"), ("Rejected", "n"), ("Selected", "n")]
    found = table("Images by source", [*heads, ("of embedded", "n")], rows)
    every = note("Every image seen was embedded or rejected with a reason.")
    return join(every, legend(COLOURS), found, _shift(report))


def _shift(report: Report) -> Html | None:
    """How the mix of sources changes from the open set to the coreset."""
    opened = [source for source in report.sources if not source.of_target]
    if len(opened) < 2 or not report.selected or not report.open_embedded:
        return None
    opened = sorted(opened, key=lambda source: -source.embedded)
    shares = [
        (source.embedded / report.open_embedded, source.selected / report.selected)
        for source in opened
    ]
    words = [
        (f"s{min(i, 6)}", f"{source.name}: {percent(before)} → {percent(after)}")
        for i, (source, (before, after)) in enumerate(zip(opened, shares, strict=True))
    ]
    return tag(
        "figure",
        tag("h3", "Shares of the open set (above) and of the coreset (below)"),
        plots.shift(shares),
        tag("figcaption", legend(words[:20])),
    )
