"""The index page, from the headline figures down to how they were made."""

from __future__ import annotations

from collections.abc import Callable

from curate.report.content import Report
from curate.report.pages import plots
from curate.report.pages.galleries import centroid, preview, shown_of
from curate.report.pages.maps import maps
from curate.report.pages.markup import Html, count, images, join, percent, tag
from curate.report.pages.rejects import rejects
from curate.report.pages.results import classes, comparison, evaluation
from curate.report.pages.shell import document, links, note, number, row, table, tiles
from curate.report.pages.sources import sources
from curate.report.pages.stopping import stopping
from curate.report.pages.worth import worth

CENTROIDS = 6
TILES = 20
STRIP = 10


def index(report: Report) -> str:
    found = [
        (anchor, heading, content)
        for anchor, heading, make in SECTIONS
        if (content := _missing(report, anchor) or make(report)) is not None
    ]
    header = tag(
        "header",
        tag("p", f"Coreset report: {report.name}", class_="kicker"),
        tag("h1", _headline(report)),
        tag("p", _lede(report), class_="lede"),
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


def _missing(report: Report, section: str) -> Html | None:
    return note(report.missing[section]) if section in report.missing else None


def _headline(report: Report) -> str:
    return f"{count(report.selected)} of {images(report.open_embedded)} selected"


def _lede(report: Report) -> str:
    against = images(report.target_embedded)
    if report.method not in ("simcore", "gate"):
        if report.method in ("ratio", "resample"):
            drawn = "those most like it were taken"
            if report.method == "resample":
                drawn = "a sample was drawn, the likelier the more"
            return (
                f"By how much likelier an image is in the target set, of which there are "
                f"{against}, than in the open set, as {report.encoder} sees them, {drawn}."
            )
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
        f"them, and {_taken(report)} were taken round by round. {_why(report)}"
    )


def _taken(report: Report) -> str:
    if report.method == "gate":
        return "of the images that are likeliest in the target set the most similar"
    return "the most similar images"


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
    origin = "one source" if open_sources == 1 else f"{open_sources} sources"
    found = [
        ("Selected", count(report.selected), f"images, {percent(share)} of the open set"),
        ("Open set", count(report.open_embedded), f"images from {origin}"),
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


def _images(report: Report) -> Html:
    parts: list[Html | None] = []
    if report.centroids:
        step = max(1, len(report.centroids) // CENTROIDS)
        here = report.centroids[::step][:CENTROIDS]
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
        tiles(preview(report, TILES)),
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


SECTIONS: list[tuple[str, str, Callable[[Report], Html | None]]] = [
    ("sources", "Where the images come from", sources),
    ("worth", "How relevant and how varied it is", worth),
    ("stopping", "Why it stopped there", stopping),
    ("images", "The images", _images),
    ("map", "Target, open set and coreset", maps),
    ("classes", "Which classes were selected", classes),
    ("evaluation", "What the encoder is worth", evaluation),
    ("comparison", "Against other selections", comparison),
    ("rejected", "Rejected images", rejects),
    ("how", "How it was run", _how),
]
