"""What all pages of a report have in common: head, navigation, images."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources

from curate.report.content import Tile
from curate.report.pages.markup import Html, count, join, short, tag

THUMB_PX = 112
NO_LABEL = "(no label)"


@cache
def asset(name: str) -> Html:
    return Html(resources.files("curate.report.pages").joinpath(name).read_text(encoding="utf-8"))


def document(title: str, body: Iterable[Html], script: str | None = None) -> str:
    """A page. It may load images beside itself, and nothing else: its style and script are inside,
    allowed by their hashes, because 'self' has no meaning where a page was opened from disk."""
    style = asset("style.css")
    code = asset(script) if script else None
    policy = (
        "default-src 'none'; img-src 'self' file: data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(code) if code else repr('none')}"
    )
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),  # else a server is asked for one
        tag("title", title),
        tag("style", style),
    ]
    content = [
        tag("a", "Skip to the content", class_="skip", href="#content"),
        *body,
        tag("script", code) if code else None,
    ]
    page = tag("html", tag("head", head), tag("body", content), lang="en")
    return f"<!doctype html>\n{page}\n"


def _hash(inside: str) -> str:
    digest = hashlib.sha256(inside.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def links(label: str, entries: Iterable[tuple[str, str]], current: str | None = None) -> Html:
    items = [
        tag("li", tag("a", words, href=href, aria_current="page" if href == current else None))
        for href, words in entries
    ]
    return tag("nav", tag("ul", items), aria_label=label)


def table(
    caption: str, heads: Iterable[tuple[str, str]], rows: Iterable[Html], label: str | None = None
) -> Html:
    """heads: (text, class). A table that is too wide scrolls in a box of its own, which a keyboard
    can reach."""
    head = tag("tr", [tag("th", words, scope="col", class_=c or None) for words, c in heads])
    inside = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", list(rows))
    )
    return tag(
        "div", inside, class_="scroll", tabindex=0, role="region", aria_label=label or caption
    )


def row(name: str | Html, *cells: Html, own: bool = False) -> Html:
    return tag(
        "tr", tag("th", name, scope="row", class_="name"), cells, class_="own" if own else None
    )


def number(value: str | Html) -> Html:
    return tag("td", value, class_="n")


def alt_text(tile: Tile) -> str:
    """What a screen reader says in place of an image."""
    what = short(tile.key)
    if tile.label is not None:
        what = f"{short(tile.label)}, {what}"
    text = f"{what}, from {tile.source}"
    return text if tile.thumb else f"Not readable ({tile.trouble}): {text}"


def title_of(tile: Tile) -> str:
    return short(tile.label if tile.label else tile.key, 60)


def caption_of(tile: Tile) -> str:
    """When an image was taken, and how similar to its centroid it is."""
    parts = []
    if tile.round is not None:
        parts.append(f"round {count(tile.round)}")
    if tile.similarity is not None:
        parts.append(f"{tile.similarity:.3f}")
    return " · ".join(parts)


def figure(tile: Tile) -> Html:
    if tile.thumb:
        picture = tag(
            "img",
            src=f"thumbs/{tile.thumb}",
            alt=alt_text(tile),
            width=THUMB_PX,
            height=THUMB_PX,
            loading="lazy",
            decoding="async",
        )
    else:
        picture = tag("div", "not readable", class_="gone", role="img", aria_label=alt_text(tile))
    title = title_of(tile)
    caption = [tag("b", title, title=title), tag("span", tile.source, class_="from")]
    caption.append(tag("span", caption_of(tile)))
    return tag("figure", picture, tag("figcaption", caption), class_="tile")


def tiles(shown: Iterable[Tile], class_: str = "tiles") -> Html:
    return tag("div", [figure(tile) for tile in shown], class_=class_)


def swatch(class_: str) -> Html:
    return tag("span", class_=f"swatch {class_}", aria_hidden="true")


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """(class of the swatch, words)."""
    return tag("ul", [tag("li", swatch(c), words) for c, words in entries], class_="legend")


def note(*words: str | Html | None) -> Html:
    return tag("p", join(*words), class_="note")
