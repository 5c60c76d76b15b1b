"""The objective round by round, why the rounds stopped, and where others would have."""

from __future__ import annotations

from curate.report.content import Report
from curate.report.pages import plots
from curate.report.pages.markup import Html, count, images, join, tag
from curate.report.pages.shell import note, number, row, table


def stopping(report: Report) -> Html | None:
    if not report.curve:
        return None
    (first, at_first, _), (last, at_last, total) = report.curve[0], report.curve[-1]
    stopping = None
    if report.stopping_objective is not None:
        stopping = (report.rounds + 1, report.stopping_objective)
    words = [
        f"f(S_t) is the mean similarity of what the centroids took in round t. It went from "
        f"{at_first:.4f} in round {first} to {at_last:.4f} in round {count(last)}, after "
        f"{images(total)}."
    ]
    if report.threshold is not None:
        words.append(
            f"The threshold is τ = {report.tau:g} times round {report.reference_round}'s: "
            f"{report.threshold:.4f}."
        )
    if stopping is not None:
        words.append(f"The next round would have had {stopping[1]:.4f} (the hollow point).")
    drawn = plots.curve(report.curve, report.threshold, stopping, " ".join(words))
    left = tag("figure", drawn, tag("figcaption", tag("p", " ".join(words))))
    return tag("div", left, tag("div", _cuts(report)), class_="two")


def _cuts(report: Report) -> Html | None:
    if "cuts" in report.missing:
        return note(f"Other thresholds: {report.missing['cuts']}")
    if not report.cuts:
        return None
    most = max(cut.selected for cut in report.cuts) or 1
    rows = [
        row(
            f"{cut.tau:g}{' (this run)' if cut.tau == report.tau else ''}",
            tag("td", plots.bar([("count", cut.selected / most)]), class_="wide"),
            number(count(cut.selected)),
            number(count(cut.rounds)),
            tag("td", cut.stopped_because),
            own=cut.tau == report.tau,
        )
        for cut in report.cuts
    ]
    heads = [("τ", ""), ("", "wide"), ("Images", "n"), ("Rounds", "n"), ("Stopped by", "")]
    same = None
    if {cut.stopped_because for cut in report.cuts} == {"budget"}:
        same = "At each of them the budget is full before the threshold is reached. "
    return join(
        table("What other thresholds would have selected", heads, rows),
        note(
            same,
            "Computed from the stored embeddings. ",
            tag("code", "curate recut RUN --tau 0.9"),
            " writes the manifest of any of them.",
        ),
    )
