"""Rejected images with their reasons."""

from __future__ import annotations

from curate.report.content import Report, Tile
from curate.report.pages import plots
from curate.report.pages.markup import Html, count, images, join, short, tag
from curate.report.pages.shell import note, number, row, table

REASONS = [("Reason", ""), ("", "wide"), ("Images", "n")]


def rejects(report: Report) -> Html:
    total = sum(source.rejected for source in report.sources)
    if not total:
        return tag("p", "No image was rejected.")
    found = report.rejects
    if found is None:
        return tag("p", f"{images(total)}; the files that say why are gone.")
    of_all = "" if found.counted == total else f" of {count(found.counted)} of them"
    reasons = [
        row(
            short(reason),
            tag("td", plots.bar([("rejected", n / found.reasons[0][1])]), class_="wide"),
            number(count(n)),
        )
        for reason, n in found.reasons
    ]
    rows = [
        row(
            short(one.key),
            tag("td", short(one.reason, 200), class_="long"),
            tag("td", one.stage),
            tag("td", one.source),
            tag("td", _picture(one.tile)),
        )
        for one in found.shown
    ]
    heads = [(head, "") for head in ("Image", "Reason", "When", "Source", "What is there of it")]
    listed = table(f"{count(len(rows))} of {images(total)} rejected", heads, rows)
    return join(
        note(f"{images(total)} could not be used, and took no part in the selection."),
        table(f"The most frequent reasons{of_all}", REASONS, reasons),
        tag("details", tag("summary", f"The images, one by one ({count(len(rows))})"), listed),
    )


def _picture(tile: Tile | None) -> Html | str:
    if tile is None or tile.thumb is None:
        return "–"
    return tag(
        "img",
        src=f"thumbs/{tile.thumb}",
        alt=f"What can be seen of {short(tile.key)}",
        loading="lazy",
        height=48,
    )
