"""The pages beside the index: all shown images by round, source and class; all shown centroids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from curate.report.content import Centroid, Report, Tile
from curate.report.pages.markup import Html, count, images, join, json_text, short, tag
from curate.report.pages.shell import (
    NO_LABEL,
    alt_text,
    caption_of,
    document,
    links,
    note,
    tiles,
    title_of,
)

PER_PAGE = 100
CENTROIDS_PER_PAGE = 20
ROUND_GROUPS = 20

ORDERS = {"round": "gallery", "source": "gallery-source", "class": "gallery-class"}


def gallery_pages(report: Report) -> Iterator[tuple[str, str]]:
    """(file name, HTML) of every page, in three orders; filters are on the first by round."""
    for order, stem in ORDERS.items():
        name_of = _groups(report, order)
        ordered = sorted(report.gallery, key=lambda tile: name_of(tile)[0])
        total = -(-len(ordered) // PER_PAGE) or 1
        for page in range(1, total + 1):
            part = ordered[(page - 1) * PER_PAGE : page * PER_PAGE]
            grouped = [
                join(
                    tag("h2", name, " ", _tally(len(group), "on this page"), class_="group"),
                    tiles(group),
                )
                for name, group in (
                    (name, list(inside)) for (_, name), inside in groupby(part, key=name_of)
                )
            ]
            first = order == "round" and page == 1
            body = [
                _header(report, f"Selected images by {order}", gallery_links(report)),
                tag(
                    "main",
                    note(shown_of(report)),
                    links(
                        "Orders",
                        [(f"{s}-1.html", f"By {o}") for o, s in ORDERS.items()],
                        f"{stem}-1.html",
                    ),
                    _filter(report) if first else _to_filter(),
                    tag(
                        "div",
                        _pager(stem, page, total),
                        grouped or tag("p", "No image was selected."),
                        _pager(stem, page, total),
                        id="pages" if first else None,
                    ),
                    id="content",
                ),
            ]
            title = f"Selected images by {order}, page {page} of {total} · {report.name}"
            yield f"{stem}-{page}.html", document(title, body, "filter.js" if first else None)


def shown_of(report: Report) -> str:
    shown, total = len(report.gallery), report.selected
    if shown == total:
        return f"All {images(total)} that were selected." if total else "No image was selected."
    return (
        f"{count(shown)} of {count(total)} selected images are shown, spread evenly from the first "
        "to the last."
    )


def centroid_pages(report: Report) -> Iterator[tuple[str, str]]:
    total = -(-len(report.centroids) // CENTROIDS_PER_PAGE)
    for page in range(1, total + 1):
        part = report.centroids[(page - 1) * CENTROIDS_PER_PAGE : page * CENTROIDS_PER_PAGE]
        body = [
            _header(report, "Centroids of the target set", gallery_links(report)),
            tag(
                "main",
                note(
                    f"{centroids_shown(report)} Each is a direction in which target images lie; in "
                    "each round it takes the open-set image most similar to it."
                ),
                _pager("centroids", page, total),
                [centroid(one, "h2") for one in part],
                _pager("centroids", page, total),
                id="content",
            ),
        ]
        title = f"Centroids, page {page} of {total} · {report.name}"
        yield f"centroids-{page}.html", document(title, body)


def centroids_shown(report: Report) -> str:
    shown, total = len(report.centroids), report.clusters or 0
    if shown == total:
        return "There is one centroid." if total == 1 else f"All {count(total)} centroids."
    return f"{count(shown)} of {count(total)} centroids are shown, spread evenly over them."


def centroid(one: Centroid, level: str = "h3") -> Html:
    name = f"Centroid {count(one.number)} "
    head = tag(level, name, _tally(one.selected, "selected"), class_="group")
    parts = [
        ("Nearest target images", one.nearest, "none to show"),
        ("First selected", one.first, "none"),
        ("Last selected", one.last, "no more than the first"),
    ]
    columns = [
        tag("div", tag("p", title), tiles(shown) if shown else tag("p", otherwise, class_="none"))
        for title, shown, otherwise in parts
    ]
    return tag("section", head, tag("div", columns, class_="three"), class_="centroid")


def gallery_links(report: Report) -> list[tuple[str, str]]:
    found = [("index.html", "← Report"), ("gallery-1.html", "Selected images")]
    if report.centroids:
        found.append(("centroids-1.html", "Centroids"))
    return found


def _header(report: Report, heading: str, entries: list[tuple[str, str]]) -> Html:
    return tag(
        "header",
        tag("p", f"Coreset report: {report.name}", class_="kicker"),
        tag("h1", heading),
        links("Pages of this report", entries),
    )


def _tally(n: int, what: str = "") -> Html:
    return tag("span", f"{images(n)} {what}".strip(), class_="tally")


def _groups(report: Report, order: str) -> Callable[[Tile], tuple[Any, str]]:
    """Of a tile: what it is sorted by, and the heading that it stands under."""
    if order == "source":
        places = {source.name: i for i, source in enumerate(report.sources)}
        return lambda tile: (places.get(tile.source, -1), tile.source)
    if order == "class":
        return lambda tile: (
            (tile.label is None, tile.label or ""),
            NO_LABEL if tile.label is None else short(tile.label),
        )
    rounds = [tile.round for tile in report.gallery if tile.round is not None]
    if not rounds:
        return lambda tile: (0, "No rounds: a baseline takes all images at once")
    width = -(-max(rounds) // ROUND_GROUPS)

    def of_round(tile: Tile) -> tuple[Any, str]:
        group = ((tile.round or 1) - 1) // width
        if width == 1:
            return group, f"Round {count(group + 1)}"
        last = min((group + 1) * width, max(rounds))
        return group, f"Rounds {count(group * width + 1)} to {count(last)}"

    return of_round


def _pager(stem: str, page: int, total: int) -> Html | None:
    if total < 2:
        return None
    entries = [(f"{stem}-{p}.html", str(p)) for p in range(1, total + 1)]
    if page > 1:
        entries.insert(0, (f"{stem}-{page - 1}.html", "← Previous"))
    if page < total:
        entries.append((f"{stem}-{page + 1}.html", "Next →"))
    return links(
        "Pages of images" if stem != "centroids" else "Pages", entries, f"{stem}-{page}.html"
    )


def _to_filter() -> Html:
    return note(
        tag("a", "Filter all shown images by round, source and class", href="gallery-1.html#filter")
    )


def _filter(report: Report) -> Html:
    """Controls that a script wakes, and what it filters."""
    sources = [source.name for source in report.sources if not source.of_target]
    labels = sorted({NO_LABEL if tile.label is None else tile.label for tile in report.gallery})
    place = {label: i for i, label in enumerate(labels)}
    data = {
        "sources": sources,
        "labels": labels,
        "images": [
            [
                tile.thumb,
                alt_text(tile),
                title_of(tile),
                caption_of(tile),
                sources.index(tile.source) if tile.source in sources else None,
                place[NO_LABEL if tile.label is None else tile.label],
                tile.round,
            ]
            for tile in report.gallery
        ],
    }
    rounds = [
        tag("label", words, tag("input", type="number", name=name, min=1, max=report.rounds))
        for name, words in (("from", "From round"), ("to", "To round"))
        if report.rounds
    ]
    form = tag(
        "form",
        tag("label", "Source", _choice("source", "all sources", sources)),
        tag("label", "Class", _choice("class", "all classes", labels)) if len(labels) > 1 else None,
        rounds,
        tag("button", "Clear", type="reset"),
        id="filter",
        hidden=True,
        aria_label="Filter the images",
    )
    return join(
        form,
        tag(
            "noscript",
            note("Filters need JavaScript. Without it, the pages in the three orders do."),
        ),
        tag("p", id="found", role="status", class_="note"),
        tag("div", id="matches", class_="tiles"),
        tag("button", "Show more", id="more", type="button", hidden=True),
        tag("script", json_text(data), type="application/json", id="images"),
    )


def _choice(name: str, all_of_them: str, values: list[str]) -> Html:
    options = [tag("option", short(value, 80), value=value) for value in values]
    return tag("select", tag("option", all_of_them, value=""), options, name=name)


def preview(report: Report, wanted: int) -> list[Tile]:
    """Some of the gallery, from its first image to its last."""
    total = len(report.gallery)
    places = sorted(
        {round(i * (total - 1) / max(wanted - 1, 1)) for i in range(min(wanted, total))}
    )
    return [report.gallery[place] for place in places]
