"""`curate report`: files of a run → `report/`, a folder of pages."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from curate import storage
from curate.report import publish
from curate.report.collect.report import collect
from curate.report.content import Report, Tile
from curate.report.pages import galleries, index
from curate.runfiles.files import RunFiles

log = logging.getLogger(__name__)

OWN_PAGES = re.compile(r"(gallery|gallery-source|gallery-class|centroids)-\d+\.html")


@dataclass(frozen=True)
class Built:
    uri: str  # of the index page
    pages: int
    thumbnails: int
    unreadable: int  # images that have no thumbnail
    seconds: float


def build(output: str) -> Built:
    """The report on the run under `output`, in its folder `report`; made again, it keeps the
    thumbnails.

    Raises CurateError where there is no finished run.
    """
    started = time.monotonic()
    folder = RunFiles(output).report
    report = collect(output, folder)
    pages = [*galleries.gallery_pages(report), *galleries.centroid_pages(report)]
    earlier = {name for name in storage.names_in(folder) if OWN_PAGES.fullmatch(name)}
    # The index last: where it is, what it leads to is there
    for name, html in [*pages, ("index.html", index.index(report))]:
        publish.write(storage.join(folder, name), html.encode())
    for name in earlier - {name for name, _ in pages}:
        storage.remove_tree(storage.join(folder, name))
    shown = set(_all_tiles(report))
    return Built(
        storage.join(folder, "index.html"),
        1 + len(pages),
        len({tile.thumb for tile in shown if tile.thumb}),
        sum(tile.thumb is None for tile in shown),
        time.monotonic() - started,
    )


def _all_tiles(report: Report) -> Iterator[Tile]:
    yield from report.gallery
    for one in report.centroids:
        yield from (*one.nearest, *one.first, *one.last)
