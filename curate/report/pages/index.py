"""The index page, from the headline figures down to how they were made."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from curate.report.content import Report, Tile
from curate.report.pages import plots
from curate.report.pages.galleries import centroid, preview, shown_of
from curate.report.pages.maps import maps
from curate.report.pages.markup import Html, count, images, join, percent, short, tag
from curate.report.pages.results import classes, comparison, evaluation
from curate.report.pages.shell import (
    document,
    legend,
    links,
    note,
    number,
    row,
    table,
    tiles,
)

CENTROIDS_HERE = 6
TILES_HERE = 20
STRIP = 10


def index(report: Report) -> str:
    found = [
        (anchor, heading, content)
        for anchor, heading, make in SECTIONS
        if (content := make(report)) is not None
    ]
    header = tag(
        "header",
        tag("p", f"Coreset report: {report.name}", class_="kicker"),
        tag("h1", _headline(report)),
        tag("p", _in_short(report), class_="lede"),
        _figures(report),
        links("Sections", [(f"#{anchor}", heading) for anchor, heading, _ in found]),
    )
    main = tag(
        "main",
        _strips(report),
        [tag("section", tag("h2", h), content, id=anchor) for anchor, h, content in found],
        id="content",
    )
    footer = tag(
        "footer",
        f"Made by curate {report.versions.get('curate', '')} from the files of {report.place}. "
        "The pages load nothing from elsewhere.",
    )
    return document(f"{_headline(report)} · {report.name}", [header, main, footer])


def _headline(report: Report) -> str:
    return f"{count(report.selected)} of {images(report.open_embedded)} selected"


def _in_short(report: Report) -> str:
    against = images(report.target_embedded)
    if report.method != "simcore":
        how = {
            "random": "at random",
            "oracle": "by the labels that were asked for",
            "all": "without choosing: all there are",
        }
        return (
            f"The images were taken from the open set {how.get(report.method, '')}, as a baseline."
        )
    return (
        f"The open set was compared with {against} of the target set, as {report.encoder} sees "
        f"them, and the most similar images were taken round by round. {_why(report)}"
    )


def _why(report: Report) -> str:
    rounds = "one round" if report.rounds == 1 else f"{count(report.rounds)} rounds"
    if report.stopped_because == "threshold":
        return (
            f"It stopped after {rounds}, because the next round's picks were less than "
            f"{report.tau:g} times as similar as round {report.reference_round}'s."
        )
    if report.stopped_because == "budget":
        return (
            f"It stopped after {rounds}, because the budget of {images(report.selected)} was full."
        )
    return f"It stopped after {rounds}, because no image was left."


def _figures(report: Report) -> Html:
    share = report.selected / report.open_embedded if report.open_embedded else 0.0
    open_sources = sum(not source.of_target for source in report.sources)
    sources = "one source" if open_sources == 1 else f"{open_sources} sources"
    found = [
        ("Selected", count(report.selected), f"images, {percent(share)} of the open set"),
        ("Open set", count(report.open_embedded), f"images from {sources}"),
        ("Target set", count(report.target_embedded), "images; labels were not used"),
    ]
    if report.clusters is not None:
        found.append(("Rounds", count(report.rounds), f"of k = {count(report.clusters)} centroids"))
    limit = "no threshold" if report.tau is None else f"τ = {report.tau:g}"
    found.append(("Stopped by", report.stopped_because, limit if report.rounds else ""))
    items = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", below) if below else None)
        for name, value, below in found
    ]
    return tag("dl", items, class_="figures")


def _strips(report: Report) -> Html | None:
    """The first look: what was searched for, and what was found."""
    target = [tile for one in report.centroids for tile in one.nearest[:1] if tile.thumb]
    step = max(1, len(target) // STRIP)
    parts = [
        ("From the target set", target[::step][:STRIP]),
        ("From the coreset, first to last", preview(report, STRIP)),
    ]
    return join(
        [
            join(tag("h2", name, class_="group"), tiles(shown, "strip"))
            for name, shown in parts
            if shown
        ],
    )


def _sources(report: Report) -> Html:
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
    key = legend(
        [
            ("selected", "selected"),
            ("rest", "embedded, not selected"),
            ("rejected", "rejected"),
            ("target", "target set"),
        ]
    )
    return join(
        note("Every image seen was embedded or rejected with a reason."), key, found, _shift(report)
    )


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


def _stopping(report: Report) -> Html | None:
    if not report.curve:
        return None
    first, last = report.curve[0], report.curve[-1]
    stopping = None
    if report.stopping_objective is not None:
        stopping = (report.rounds + 1, report.stopping_objective)
    words = [
        f"f(S_t) is the mean similarity of what the centroids took in round t. It went from "
        f"{first[1]:.4f} in round {first[0]} to {last[1]:.4f} in round {count(last[0])}, after "
        f"{images(last[2])}."
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


def _images(report: Report) -> Html:
    parts: list[Html | None] = []
    if report.centroids:
        step = max(1, len(report.centroids) // CENTROIDS_HERE)
        here = report.centroids[::step][:CENTROIDS_HERE]
        parts += [
            tag("h3", "What each centroid stands for, and what it took"),
            note(
                f"{len(here)} of {count(report.clusters or 0)} centroids, which are directions in "
                "which target images lie. ",
                tag("a", _all_centroids(report), href="centroids-1.html"),
            ),
            join([centroid(one, "h4") for one in here]),
        ]
    if "centroids" in report.missing:
        parts.append(note(f"Target images of the centroids: {report.missing['centroids']}"))
    parts += [
        tag("h3", "Selected images, from the first to the last"),
        note(
            f"{shown_of(report)} ",
            tag("a", "Browse them by round, source and class", href="gallery-1.html"),
        ),
        tiles(preview(report, TILES_HERE)),
    ]
    gone = sum(tile.thumb is None for tile in report.gallery)
    if gone:
        parts.append(
            note(
                f"{count(gone)} of the {count(len(report.gallery))} images shown "
                f"{'is' if gone == 1 else 'are'} not readable any more, and "
                f"{'has' if gone == 1 else 'have'} an empty frame instead."
            )
        )
    return join(parts)


def _all_centroids(report: Report) -> str:
    shown = len(report.centroids)
    return f"See all {count(shown)}" if shown == report.clusters else f"See {count(shown)} of them"


def _rejected(report: Report) -> Html | None:
    total = sum(source.rejected for source in report.sources)
    if "rejects" in report.missing:
        return note(report.missing["rejects"])
    if not total:
        return tag("p", "No image was rejected.")
    rejects = report.rejects
    if rejects is None:
        return tag("p", f"{images(total)}; the files that say why are gone.")
    of_all = "" if rejects.counted == total else f" of {count(rejects.counted)} of them"
    reasons = [
        row(
            short(reason),
            tag("td", plots.bar([("rejected", n / rejects.reasons[0][1])]), class_="wide"),
            number(count(n)),
        )
        for reason, n in rejects.reasons
    ]
    rows = [
        row(
            short(one.key),
            tag("td", short(one.reason, 200), class_="long"),
            tag("td", one.stage),
            tag("td", one.source),
            tag("td", _picture(one.tile)),
        )
        for one in rejects.shown
    ]
    heads = [
        ("Image", ""),
        ("Reason", ""),
        ("When", ""),
        ("Source", ""),
        ("What is there of it", ""),
    ]
    listed = table(f"{count(len(rows))} of {images(total)} rejected", heads, rows)
    return join(
        note(f"{images(total)} could not be used, and took no part in the selection."),
        table(
            f"The most frequent reasons{of_all}",
            [("Reason", ""), ("", "wide"), ("Images", "n")],
            reasons,
        ),
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


def _how(report: Report) -> Html:
    total = sum(report.seconds.values())
    rows = [
        row(
            stage.replace("_", " "),
            tag("td", plots.bar([("count", seconds / total if total else 0)]), class_="wide"),
            number(f"{seconds:,.1f} s"),
        )
        for stage, seconds in report.seconds.items()
    ]
    heads = [("Stage", ""), ("", "wide"), ("Time", "n")]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return join(
        tag("p", f"Encoder: {report.encoder}. Versions: {versions}."),
        table(f"Time of each stage in the last run, {total:,.0f} s in all", heads, rows)
        if rows
        else None,
        tag("details", tag("summary", "All settings"), tag("pre", report.settings, tabindex=0)),
    )


def _classes(report: Report) -> Html | None:
    if "classes" in report.missing:
        return note(report.missing["classes"])
    shown = {tile.label for tile in report.gallery}

    def link(label: str) -> str | None:
        fragment = urlencode({"class": label})
        return f"gallery-1.html#{fragment}" if label in shown else None

    return classes(report.classes, link) if report.classes else None


def _evaluation(report: Report) -> Html | None:
    return evaluation(report.evaluation) if report.evaluation else None


def _comparison(report: Report) -> Html | None:
    return comparison(report.comparison) if report.comparison else None


SECTIONS: list[tuple[str, str, Callable[[Report], Html | None]]] = [
    ("sources", "Where the images come from", _sources),
    ("stopping", "Why it stopped there", _stopping),
    ("images", "The images", _images),
    ("map", "Target, open set and coreset", maps),
    ("classes", "Which classes were selected", _classes),
    ("evaluation", "What the encoder is worth", _evaluation),
    ("comparison", "Against other selections", _comparison),
    ("rejected", "Rejected images", _rejected),
    ("how", "How it was run", _how),
]
