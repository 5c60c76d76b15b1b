"""Target, open set and coreset in two dimensions, and figures of how near they are."""

from __future__ import annotations

from curate.report.content import Cloud, Map, Report
from curate.report.pages import plots
from curate.report.pages.markup import Html, images, join, percent, tag
from curate.report.pages.shell import note, number, row, swatch, table

POINTS_ALONE = 500
SETS = {"open": "open set", "target": "target set", "coreset": "coreset"}


def maps(report: Report) -> Html | None:
    """Each map beside its figures."""
    return join([_map(one) for one in report.maps]) if report.maps else None


def _map(one: Map) -> Html:
    drawn = {cloud.name: cloud for cloud in one.clouds}
    description = f"{one.method} of the " + ", ".join(
        f"{SETS[name]} ({images(len(cloud.points))})" for name, cloud in drawn.items()
    )
    boxes = [
        tag(
            "li",
            tag(
                "label",
                tag(
                    "input", type="checkbox", checked=True, class_=f"of-{name}", autocomplete="off"
                ),
                swatch(name),
                f"{SETS[name]}, {images(len(cloud.points))}",
            ),
        )
        for name, cloud in drawn.items()
    ]
    points = tag("input", type="checkbox", checked=True, class_="of-points", autocomplete="off")
    boxes.append(tag("li", tag("label", points, "single images")))
    left = tag(
        "figure",
        tag("ul", boxes, class_="legend"),
        plots.clouds(one.clouds, description),
        tag(
            "figcaption",
            tag(
                "p",
                "A dot is an image of a random sample; lines go around the densest half and the "
                f"densest nine tenths of a set, by Gaussian kernel densities. {one.about}",
            ),
        ),
        class_="of-map",
    )
    rows = [
        row(
            f"Target and {SETS[name]}",
            number(percent(one.overlaps[name]) if name in one.overlaps else "–"),
            number(f"{one.nearness[name]:.4f}" if name in one.nearness else "–"),
        )
        for name in ("open", "coreset")
        if name in drawn
    ]
    heads = [("", ""), ("Overlap here", "n"), ("Nearest, all dimensions", "n")]
    right = [
        table("How near the sets are", heads, rows),
        note(
            "Overlap: what two densities share in this picture, 100 % if they are the same. "
            "Nearest: the similarity of a target image to the most similar one of the other set, "
            f"in the mean, over {images(one.compared)} of each; 1 if they are the same image. The "
            "picture leaves out most dimensions, this does not."
        ),
        tag("div", [_alone(cloud) for cloud in one.clouds], class_="alone"),
    ]
    return tag(
        "div", tag("div", tag("h3", f"By {one.method}"), left), tag("div", right), class_="two"
    )


def _alone(one: Cloud) -> Html:
    drawn = plots.clouds([one], f"The {SETS[one.name]} alone", POINTS_ALONE)
    return tag("figure", drawn, tag("figcaption", SETS[one.name]))
